"""Crowds at one worker: connections that wait, streams that go on, and clients that never finish a head."""

import asyncio
import resource
import subprocess
import sys
from array import array
from collections.abc import Iterator

import psutil
import pytest
import uvloop
from tests.gateway.certificates import Root
from tests.gateway.crowd import Asker, Reader, SlowCrowd, ask_all, connect, leave, percentile, time_requests
from tests.gateway.lab import CHAT, CITY, Lab, LabSite, wait_until
from tests.gateway.raw import chat_body, post
from tests.gateway.test_tls import hold_secure_sockets
from tests.gateway.worker_process import WorkerProcess

from madang.core import ServiceName
from madang.model import EngineFeature, ReplicaPhase
from madang.wire.feed import LocalReplica

pytestmark = [pytest.mark.peer, pytest.mark.deep, pytest.mark.timeout(600)]

IDLE, IDLE_TLS, STREAMS = 10_000, 1_000, 2_000
RATE_HZ, TOKENS = 10, 200
MIB = 1 << 20
LIST = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n\r\n" % CITY.key.encode()


@pytest.fixture
def engine() -> Iterator[int]:
    """The port of a paced engine in a process of its own."""
    words = [sys.executable, "-m", "tests.gateway.paced_engine", str(TOKENS), str(RATE_HZ)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = IDLE + IDLE_TLS + STREAMS + 1000
    if hard != resource.RLIM_INFINITY and hard < needed + STREAMS + 1000:
        pytest.skip(f"the hard limit of open files is {hard}; the worker needs {needed + STREAMS + 1000}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def site(lab: Lab, engine: int) -> LabSite:
    site = lab.site()
    site.replicas.append(
        LocalReplica(
            replica_id="paced-0",
            service=ServiceName(CHAT),
            phase=ReplicaPhase.READY,
            endpoint=f"http://127.0.0.1:{engine}",
            engine_key="",
            chip_kind="cpu",
            slots=STREAMS,
            slot=0,
            features=(EngineFeature.UNSTREAMED_ABORT,),
        )
    )
    site.write_feed()
    return site


def rss_mib(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / MIB


class Ledger:
    """What was measured on the way, for the report of the run."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.rows: list[tuple[str, float]] = []

    def note(self, what: str) -> float:
        value = rss_mib(self.pid)
        self.rows.append((what, value))
        return value

    def __str__(self) -> str:
        return "; ".join(f"{what}: {value:.0f} MiB" for what, value in self.rows)


def test_a_crowd_at_one_worker(lab: Lab, site: LabSite, many_files: None, tmp_path) -> None:
    root = Root(tmp_path / "root")
    certificate, key = root.issue(tmp_path / "tls")
    hold_secure_sockets(site)
    worker = WorkerProcess(
        site,
        connections_max=IDLE + IDLE_TLS + STREAMS + 100,
        connections_per_address_max=0,  # all of them come from this machine
        upstreams_max=STREAMS + 100,
        idle_timeout_s=600.0,
        tls_port=site.ports["tenant-tls"],
        tls_certificate_file=str(certificate),
        tls_key_file=str(key),
    )
    try:
        worker.wait_ready()
        assert site.request("GET", "/readyz", port="admin").json["warnings"] == []
        said = uvloop.run(crowd(site, worker.process.pid, root))
    finally:
        code = worker.end()
    assert code == 0
    assert [one for one in worker.log if one["level"] == "error"] == []
    events = site.events()
    assert len(events) == STREAMS
    assert {event.outcome for event in events} == {"completed"}
    print(said)


async def crowd(site: LabSite, pid: int, root: Root) -> str:
    loop = asyncio.get_running_loop()
    ledger = Ledger(pid)
    empty = ledger.note("empty")
    idle = await connect(Asker, IDLE, site.ports["tenant"])
    await ask_all(idle, LIST)
    plain = ledger.note(f"{IDLE} idle")
    secure = await connect(Asker, IDLE_TLS, site.ports["tenant-tls"], root.client())
    await ask_all(secure, LIST)
    tls = ledger.note(f"{IDLE_TLS} idle with TLS")
    gaps_s = array("d")
    readers = await connect(lambda: Reader(gaps_s), STREAMS, site.ports["tenant"])
    began_s = loop.time()
    streams = [one.ask(post(chat_body(stream=True), CITY.key)) for one in readers]
    await asyncio.sleep(TOKENS / RATE_HZ / 2)  # until all of them run; a time by the engine's own pace
    full = ledger.note(f"{STREAMS} streams")
    ends = await asyncio.gather(*streams)
    took_s = loop.time() - began_s
    assert all(end.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for end in ends)
    assert {one.events for one in readers} == {TOKENS + 3}, "every event of every stream came"
    assert not any(one.is_lost for one in (*idle, *secure)), "nobody who waited was dropped"
    await ask_all((*idle, *secure), LIST)
    last = ledger.note("after")
    for one in (*idle, *secure, *readers):
        one.transport.abort()
    await asyncio.to_thread(wait_until, lambda: "open_connections 0.0" in metrics_of(site), "all have left", 60)
    left = ledger.note("all left")
    per_plain, per_tls = (plain - empty) * 1024 / IDLE, (tls - plain) * 1024 / IDLE_TLS
    per_stream = (full - tls) * 1024 / STREAMS
    said = (
        f"{ledger}; KiB each: idle {per_plain:.1f}, idle TLS {per_tls:.1f}, stream {per_stream:.1f}; streams took "
        f"{took_s:.1f} s, gaps p50 {percentile(gaps_s, 0.5) * 1e3:.0f} ms, p99 {percentile(gaps_s, 0.99) * 1e3:.0f} ms"
    )
    assert percentile(gaps_s, 0.99) < 1.0, said
    assert max(full, last, left) < 400, said
    return said


def metrics_of(site: LabSite) -> str:
    return site.request("GET", "/metrics", port="admin").body.decode()


SLOW, SLOW_HEAD_S = 1_000, 4.0


def test_slow_heads_do_not_keep_others_waiting(lab: Lab, site: LabSite) -> None:
    worker = WorkerProcess(site, connections_max=3 * SLOW, connections_per_address_max=0, head_timeout_s=SLOW_HEAD_S)
    try:
        worker.wait_ready()
        said = uvloop.run(among_slow_ones(site))
    finally:
        worker.kill()
    assert [one for one in worker.log if one["level"] == "error"] == []
    print(said)


async def among_slow_ones(site: LabSite) -> str:
    askers = await connect(Asker, 16, site.ports["tenant"])
    request = post(chat_body(), CITY.key)
    await time_requests(askers, request, 2.0, 0.01)
    pairs: list[tuple[float, float]] = []
    lives_s = array("d")
    for _ in range(5):
        calm_s = percentile(await time_requests(askers, request, 4.0, 0.01), 0.99)
        crowd = SlowCrowd(SLOW, site.ports["tenant"], 0.5, SLOW_HEAD_S)
        task = asyncio.ensure_future(crowd.run())
        await crowd.is_here.wait()
        slow_s = percentile(await time_requests(askers, request, SLOW_HEAD_S + 2.0, 0.01), 0.99)
        assert crowd.lives_s, "some were there for longer than a head may take, so they were told"
        assert not task.done(), "they dripped all the while"
        crowd.is_over = True
        await task
        assert crowd.lost_untold == 0, "each was told 408"
        pairs.append((calm_s, slow_s))
        lives_s += crowd.lives_s
    await leave(askers)
    ratio = percentile([slow_s / calm_s for calm_s, slow_s in pairs], 0.5)
    said = f"p99 without and with {SLOW} slow heads: " + ", ".join(f"{c * 1e3:.1f}/{s * 1e3:.1f} ms" for c, s in pairs)
    assert max(lives_s) < SLOW_HEAD_S + 1.5, "a head has its time and no more"
    assert ratio <= 2.0, said
    return f"{said}; median ratio {ratio:.2f}; longest head {max(lives_s):.1f} s"
