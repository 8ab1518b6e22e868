"""Every request whose answer was completed is in the ledger once, though each program of the site is killed under load.

See `loaded_site` for what is real. The rate that is offered and the one that was reached are printed; how much the
machine can carry is not what is asked here.
"""

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest
import uvloop
from bench.gateway.site import SERVICE, SITE
from tests import loopback
from tests.e2e.embedded import wait_for
from tests.e2e.loaded_site import LoadedSite
from tests.e2e.open_load import OpenLoad

pytestmark = [pytest.mark.peer, pytest.mark.deep, pytest.mark.timeout(900)]

RATE_HZ = float(os.environ.get("MADANG_TEST_RATE_HZ", "2000"))
DURATION_S = float(os.environ.get("MADANG_TEST_DURATION_S", "60"))
TOKENS = 3
KILLED = ("gateway0", "site", "nats", "gateway1", "node")


def request(key: str, number: int, *, is_stream: bool) -> bytes:
    question = [{"role": "user", "content": f"question {number}"}]
    value = {"model": SERVICE, "messages": question, "stream": is_stream}
    body = json.dumps(value, separators=(",", ":")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def is_serving(site: LoadedSite) -> bool:
    url = f"http://127.0.0.1:{site.port}/v1/chat/completions"
    body = {"model": SERVICE, "messages": [{"role": "user", "content": "?"}]}
    try:
        headers = {"authorization": f"Bearer {site.key}"}
        return loopback.post(url, json=body, headers=headers, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def count_rows(site: LoadedSite) -> int:
    with sqlite3.connect(f"file:{site.hub_db}?mode=ro", uri=True, timeout=10) as database:
        (count,) = database.execute("select count(*) from ledger").fetchone()
    database.close()
    return count


def completed_in_ledger(site: LoadedSite) -> Counter[str]:
    """How often each request is in the ledger as completed."""
    words = "select request_id from ledger where outcome = 'completed' and is_superseded = 0"
    with sqlite3.connect(f"file:{site.hub_db}?mode=ro", uri=True, timeout=10) as database:
        found = Counter(row[0] for row in database.execute(words))
    database.close()
    return found


@pytest.fixture
def site(tmp_path) -> Iterator[LoadedSite]:
    with LoadedSite(tmp_path / "s", tokens=TOKENS, rate_hz=20) as site:
        try:
            wait_for("the site serves", lambda: is_serving(site), 60, every_s=0.2)
            yield site
        finally:
            print(site.logs())  # shown when the test fails


def offer(site: LoadedSite, duration_s: float, acts: Sequence[tuple[float, Callable[[], object]]]) -> None:
    """Offer the load while `acts` are done, then hold the answers against the ledger."""
    requests = [request(site.key, number, is_stream=number % 10 == 0) for number in range(100)]
    load = OpenLoad(site.port, requests, RATE_HZ)
    uvloop.run(load.run(duration_s, acts))
    asked = Counter(load.completed)
    assert len(asked) == len(load.completed), "a request id came twice"
    began_s = time.monotonic()
    rows = wait_for(
        "the ledger has every completed answer",
        lambda: count_rows(site) >= len(asked) and count_if_complete(site, asked),
        240,
        every_s=1.0,
    )
    drained_s = time.monotonic() - began_s
    sys.__stdout__.write(
        f"\noffered {load.offered / duration_s:.0f}/s, completed {len(asked)} ({len(asked) / duration_s:.0f}/s), "
        f"refused {dict(load.refused)}, unclear {load.unclear}, overdue {load.overdue}, "
        f"forgotten {load.forgotten}; restarts {site.restarts()}; "
        f"{rows} completed in the ledger {drained_s:.0f} s after\n"
    )
    counts = completed_in_ledger(site)
    twice = {one: count for one, count in counts.items() if count > 1}
    assert not twice, f"{len(twice)} requests are in the ledger twice"
    assert all(counts[one] == 1 for one in asked)
    assert len(asked) > RATE_HZ * duration_s / 4, "there was a load"


def count_if_complete(site: LoadedSite, asked: Counter[str]) -> int:
    counts = completed_in_ledger(site)
    return sum(counts.values()) if all(one in counts for one in asked) else 0


def test_each_program_is_killed_in_turn_and_then_all(site: LoadedSite) -> None:
    killed: list[str] = []

    def kill(*parts: str) -> None:
        killed.extend(site.kill(*(f"{SITE}-{part}" for part in parts)))

    gap_s = DURATION_S / (len(KILLED) + 3)  # time to catch up after the last
    acts = [(gap_s * (n + 1), lambda part=part: kill(part)) for n, part in enumerate(KILLED)]
    offer(site, DURATION_S, [*acts, (gap_s * (len(KILLED) + 1), lambda: kill(*KILLED))])
    assert killed == [f"{SITE}-{part}" for part in KILLED * 2], "each was killed, and once more all together"


def test_the_supervisor_is_killed(site: LoadedSite) -> None:
    restarted: list[asyncio.Future[None]] = []

    def restart() -> None:
        restarted.append(asyncio.get_running_loop().run_in_executor(None, site.restart_supervisor))

    offer(site, DURATION_S / 2, [(DURATION_S / 8, restart)])
    assert [one.exception() for one in restarted] == [None], "it was killed, and another was started"
