"""Load and faults for the chaos test: clients that remember what they were answered, and what to break when."""

import contextlib
import http.client
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from madang.model import UsageEvent
from madang.wire.usage_log import MAGIC, decode_records


@dataclass
class Answered:
    """One answer that reached its client whole."""

    tenant: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Clients:
    """Threads that ask, one at a time each, and keep what they were answered."""

    answered: dict[str, Answered] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    unclear: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, url: str, tenant: str, key: str, *, count: int, pause_s: float) -> None:
        for index in range(count):
            thread = threading.Thread(target=self._run, args=(url, tenant, key, index, pause_s), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a client hangs"

    def _run(self, url: str, tenant: str, key: str, index: int, pause_s: float) -> None:
        host, port = url.removeprefix("http://").split(":")
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=20)) as connection:
            self._ask_until_stopped(connection, tenant, key, index, pause_s)

    def _ask_until_stopped(
        self, connection: http.client.HTTPConnection, tenant: str, key: str, index: int, pause_s: float
    ) -> None:
        number = 0
        while not self._stop.wait(pause_s):
            number += 1
            is_stream = (number + index) % 3 == 0
            body = {
                "model": "madang-chat",
                "messages": [{"role": "user", "content": f"question {number} " * (1 + number % 5)}],
                "max_tokens": 2 + number % 7,
                "stream": is_stream,
            }
            if is_stream:
                body["stream_options"] = {"include_usage": True}
            try:
                self._ask(connection, tenant, key, body)
            except (OSError, http.client.HTTPException, ValueError):
                with self._lock:
                    self.unclear += 1
                connection.close()

    def _ask(self, connection: http.client.HTTPConnection, tenant: str, key: str, body: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            code = json.loads(data)["error"]["code"]
            with self._lock:
                self.failures[code] = self.failures.get(code, 0) + 1
            return
        usage = _usage_of_stream(data) if body["stream"] else json.loads(data)["usage"]
        if usage is None:
            raise ValueError("the stream broke off")
        request_id = answer.headers["x-request-id"]
        with self._lock:
            assert request_id not in self.answered, f"request id {request_id} came twice"
            self.answered[request_id] = Answered(tenant, usage["prompt_tokens"], usage["completion_tokens"])


def _usage_of_stream(data: bytes) -> dict[str, int] | None:
    events = [line[6:] for line in data.split(b"\n\n") if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        return None
    return next((u for e in reversed(events[:-1]) if (u := json.loads(e).get("usage"))), None)


@dataclass
class SegmentKeeper:
    """Hard links to every usage segment, so that what was emitted is known apart from what was imported."""

    usage_dirs: list[Path]
    archive: Path
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self.archive.mkdir()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(timeout=10)
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self._look()

    def _look(self) -> None:
        for index, folder in enumerate(self.usage_dirs):
            for path in folder.glob("w*.log"):
                link = self.archive / f"{index}-{path.name}"
                if not link.exists():
                    try:
                        os.link(path, link)
                    except FileNotFoundError:
                        continue

    def emitted(self) -> Iterator[UsageEvent]:
        for path in sorted(self.archive.iterdir()):
            data = path.read_bytes()
            if data.startswith(MAGIC):
                yield from decode_records(data[len(MAGIC) :])[0]


def ledger_rows(hub_db: Path) -> list[dict[str, Any]]:
    """Return every row of the ledger, read from the hub's database itself."""
    with sqlite3.connect(f"file:{hub_db}?mode=ro", uri=True, timeout=10) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("select * from ledger")]
    database.close()
    return rows
