"""What the gateway costs: CPU per request and per streamed chunk, beside a blind splice in the same run.

The upstream is synthetic and answers at once; it is no model. Gateway on one core, upstream and clients on the
other. CPU is the gateway process's own (user + system) over the requests counted by the clients; every feature is
on: key, residency, routing, metering with fdatasync before the last byte. Quote ratios, not single numbers.
"""

import asyncio
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.gateway.lab import CHAT, CITY, EMBED, TENANTS, LabSite  # noqa: E402
from tests.gateway.raw import chat_body  # noqa: E402

from madang.core import ServiceName  # noqa: E402
from madang.model import Service  # noqa: E402

CONNECTIONS = 64
ROUNDS = 3
WARM_UP_S, MEASURE_S = 1.0, 4.0
CHUNKS = 100


def sse(value: object) -> bytes:
    """Return a chunk of HTTP with one server-sent event."""
    data = b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream_of(count: int, text: str) -> bytes:
    """Return a whole streamed answer with `count` pieces of text."""
    base = {"id": "synthetic", "created": 1, "model": "synthetic", "object": "chat.completion.chunk"}
    pieces = [sse({**base, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})] * count
    usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
    ends = [
        sse({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        sse({**base, "choices": [], "usage": usage}),
        b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    ]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(pieces + ends)


ANSWERS = {"json": stream_of(3, "가" * 110), "stream": stream_of(CHUNKS, "가나다")}


class SyntheticUpstream(asyncio.Protocol):
    """Answers every request at once with the same bytes."""

    answer = b""
    opened = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        self.transport, self.data = transport, b""
        type(self).opened += 1

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n")[0])
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length :]
            self.transport.write(self.answer)


class Client(asyncio.Protocol):
    """Asks again as soon as it was answered."""

    done = bad = 0

    def __init__(self, request: bytes) -> None:
        self.request, self.data = request, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Count whole answers."""
        self.data += data
        if not self._is_whole():
            return
        type(self).done += 1
        type(self).bad += not self.data.startswith(b"HTTP/1.1 200")
        self.data = b""
        self.transport.write(self.request)

    def _is_whole(self) -> bool:
        head_end = self.data.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        head = self.data[:head_end].lower()
        if b"transfer-encoding: chunked" in head:
            return self.data.endswith(b"0\r\n\r\n")
        length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n")[0])
        return len(self.data) >= head_end + 4 + length


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def make_gateway(folder: Path, upstream_port: int) -> tuple[list[str], int]:
    """Write a site's feed and settings; return how to start its worker, and its port."""
    services = [Service(name=ServiceName(CHAT), model="chat-model"), Service(name=ServiceName(EMBED), model="e")]
    lab = SimpleNamespace(sites={}, tenants=TENANTS, services=services)
    site = LabSite(lab, "daegu", "yeongnam", folder / "daegu")
    lab.sites["daegu"] = site
    site.ports = {name: free_port() for name in ("tenant", "peer", "admin")}
    site.add_replica(SimpleNamespace(endpoint=f"http://127.0.0.1:{upstream_port}"), slots=1000)
    site.write_feed()
    config = folder / "gateway.toml"
    config.write_text(
        f'site = "daegu"\nfeed_dir = "{site.feed_dir}"\nusage_dir = "{site.usage_dir}"\n'
        f"port = {site.ports['tenant']}\npeer_port = {site.ports['peer']}\nadmin_port = {site.ports['admin']}\n"
    )
    argv = [sys.executable, "-P", "-m", "madang.gateway", "--config", str(config), "--worker", "0"]
    return argv, site.ports["tenant"]


async def measure(argv: list[str], port: int, request: bytes, log: Path) -> tuple[float, float, float]:
    """Return CPU microseconds and requests a second, and resident MiB, of one subject under load."""
    loop = asyncio.get_running_loop()
    with log.open("ab") as stream:
        subject = subprocess.Popen(argv, stderr=stream, stdin=subprocess.DEVNULL)
    try:
        process = psutil.Process(subject.pid)
        process.cpu_affinity([0])
        await until_open(port)
        transports = [
            (await loop.create_connection(lambda: Client(request), "127.0.0.1", port))[0] for _ in range(CONNECTIONS)
        ]
        await asyncio.sleep(WARM_UP_S)
        before, done, started = process.cpu_times(), Client.done, time.monotonic()
        await asyncio.sleep(MEASURE_S)
        after, count, took_s = process.cpu_times(), Client.done - done, time.monotonic() - started
        cpu_s = after.user + after.system - before.user - before.system
        rss = process.memory_info().rss / 2**20
        for transport in transports:
            transport.abort()
        return cpu_s / max(count, 1) * 1e6, count / took_s, rss
    finally:
        subject.terminate()
        subject.wait(20)


async def until_open(port: int) -> None:
    """Wait until somebody accepts on the port, at most 15 s."""
    for _ in range(300):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await asyncio.sleep(0.5)
            return
    raise SystemExit(f"nothing listens on {port}")


async def main() -> int:
    """Run the rounds in turn and print medians, spread and ratios."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    loop = asyncio.get_running_loop()
    upstream = await loop.create_server(SyntheticUpstream, "127.0.0.1", 0)
    upstream_port = upstream.sockets[0].getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="madang-bench-"))
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    try:
        with Progress(transient=True) as progress:
            task = progress.add_task("gateway", total=ROUNDS * len(ANSWERS) * 2)
            for number in range(ROUNDS):
                for mode, answer in ANSWERS.items():
                    SyntheticUpstream.answer = answer
                    argv, port = make_gateway(folder / f"{number}-{mode}", upstream_port)
                    splice_port = free_port()
                    splice = [sys.executable, str(ROOT / "bench" / "splice.py"), str(upstream_port), str(splice_port)]
                    body = chat_body(stream=mode == "stream", max_tokens=CHUNKS)
                    head = (
                        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                        f"Authorization: Bearer {CITY.key}\r\nContent-Length: {len(body)}\r\n\r\n"
                    )
                    for name, words, where in (("gateway", argv, port), ("splice", splice, splice_port)):
                        result = await measure(words, where, head.encode() + body, folder / "log")
                        found.setdefault((name, mode), []).append(result)
                        progress.advance(task)
    finally:
        upstream.close()
        shutil.rmtree(folder, ignore_errors=True)
    report(found)
    return 1 if Client.bad else 0


def report(found: dict[tuple[str, str], list[tuple[float, float, float]]]) -> None:
    """Print the table."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    title = f"{CONNECTIONS} connections, {ROUNDS} rounds, commit {commit}, {platform.processor() or platform.machine()}"
    table = Table(
        "subject", "answer", "CPU µs/request", "CPU µs/chunk", "min-max", "requests/s", "RSS MiB", title=title
    )
    for (name, mode), rows in found.items():
        cpu = [row[0] for row in rows]
        chunk = f"{statistics.median(cpu) / CHUNKS:.2f}" if mode == "stream" else ""
        rate, rss = statistics.median(row[1] for row in rows), max(row[2] for row in rows)
        spread = f"{min(cpu):.0f}-{max(cpu):.0f}"
        table.add_row(name, mode, f"{statistics.median(cpu):.0f}", chunk, spread, f"{rate:.0f}", f"{rss:.0f}")
    console = Console(width=max(100, Console().width))
    console.print(table)
    for mode in ANSWERS:
        ratios = [g[0] / s[0] for g, s in zip(found["gateway", mode], found["splice", mode], strict=True)]
        console.print(f"{mode}: gateway / splice = {statistics.median(ratios):.1f} (pair by pair)")
    console.print(f"load average {os.getloadavg()[0]:.1f}; wrong answers: {Client.bad}; upstream is synthetic")


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
