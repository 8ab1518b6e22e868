"""The worker as a process: sockets held by somebody else, an orderly end, errors that name themselves."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.gateway.lab import CITY, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post
from tests.gateway.worker_process import WorkerProcess

pytestmark = pytest.mark.peer


@pytest.fixture
def processes() -> Iterator[list[WorkerProcess]]:
    found: list[WorkerProcess] = []
    yield found
    for one in found:
        one.kill()


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    site.write_feed()
    return site


def test_an_orderly_end(lab: Lab, site: LabSite, processes: list[WorkerProcess]) -> None:
    engine = lab.engines[0]
    processes.append(worker := WorkerProcess(site).wait_ready())
    assert site.chat(CITY).status == 200
    engine.mode = "wait"
    with closing(RawClient(site.connect())) as busy, closing(RawClient(site.connect())) as idle:
        idle.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n\r\n" % CITY.key.encode())
        assert idle.answer().status == 200
        busy.send(post(chat_body(stream=True), CITY.key))
        wait_until(lambda: engine.active == 1, "a request is in progress")
        worker.process.send_signal(signal.SIGTERM)
        assert idle.is_closed(), "an idle connection is closed at once"
        late = RawClient(site.connect())  # waits in the supervisor's socket for the next worker
        late.send(post(chat_body(), CITY.key))
        lab.loop.call_soon_threadsafe(engine.gate.set)
        answer = busy.answer()
        assert (answer.status, answer.body.endswith(b"data: [DONE]\n\n")) == (200, True)
    assert worker.process.wait(20) == 0
    assert [one["event"] for one in worker.log][-1] == "gateway_worker_stopped"
    assert len(site.events()) == 2
    engine.mode = "ok"
    processes.append(WorkerProcess(with_fresh_admin_socket(site)).wait_ready())
    assert late.answer().status == 200, "no connection that waited to be accepted was lost"
    late.close()


def with_fresh_admin_socket(site: LabSite) -> LabSite:
    """The same site with another admin socket: each worker has its own."""
    site.sockets["admin"].close()
    held = site.sockets["admin"] = socket.create_server(("127.0.0.1", 0))
    site.ports["admin"] = held.getsockname()[1]
    return site


def test_kill_loses_no_completed_request(lab: Lab, site: LabSite, processes: list[WorkerProcess]) -> None:
    processes.append(worker := WorkerProcess(site).wait_ready())
    receipts = [site.chat(CITY).headers["x-madang-receipt"] for _ in range(30)]
    worker.kill()
    assert [event.event_id for event in site.events()] == receipts


def test_a_client_that_stays_is_cut_at_the_end_of_patience(
    lab: Lab, site: LabSite, processes: list[WorkerProcess]
) -> None:
    lab.engines[0].mode = "hang"
    processes.append(worker := WorkerProcess(site, drain_timeout_s=0.2).wait_ready())
    with closing(RawClient(site.connect())) as client:
        client.send(post(chat_body(), CITY.key))
        wait_until(lambda: lab.engines[0].active == 1, "a request is in progress")
        assert worker.end() == 0
    (event,) = site.events()
    assert event.outcome == "client_gone"


def test_two_workers_share_a_port_and_see_each_others_load(
    lab: Lab, site: LabSite, processes: list[WorkerProcess]
) -> None:
    engine, other = lab.engines[0], lab.engine()
    site.add_replica(other, slots=1)
    site.write_feed()
    engine.mode = "wait"
    first = WorkerProcess(site)
    processes.append(first)
    first.wait_ready()
    with closing(RawClient(site.connect())) as client:
        client.send(post(chat_body(), CITY.key))
        wait_until(lambda: engine.active == 1, "the first worker's request is at the engine")
        second = WorkerProcess(with_fresh_admin_socket(site), worker=1)
        processes.append(second)
        second.wait_ready()
        first_table = site.feed_dir / "inflight-0.bin"
        assert first_table.read_bytes()[:4] == b"\x01\0\0\0"
        assert (site.feed_dir / "inflight-1.bin").read_bytes() == bytes(1024)
        lab.loop.call_soon_threadsafe(engine.gate.set)
        assert client.answer().status == 200
    segments = {path.name.split("-")[0] for path in site.usage_dir.glob("w*.log")}
    assert segments == {"w0", "w1"}


@pytest.mark.parametrize(
    ("settings", "flags", "code", "words"),
    [
        ({"prot": 1}, [], 1, ["gateway.toml", "prot", "known keys"]),
        ({"port": "x"}, [], 1, ["gateway.toml", "key port", "expected"]),
        ({"usage_dir": "/proc/nowhere"}, [], 1, ["/proc/nowhere"]),
        ({"feed_dir": "/proc/nowhere"}, [], 1, ["/proc/nowhere"]),
        ({}, ["-O"], 2, ["-O"]),
    ],
)
def test_what_is_wrong_names_itself(
    tmp_path: Path, settings: dict[str, object], flags: list[str], code: int, words: list[str]
) -> None:
    config = tmp_path / "gateway.toml"
    values = {"site": "daegu", "feed_dir": str(tmp_path / "feed"), "usage_dir": str(tmp_path / "usage"), **settings}
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    done = subprocess.run(
        [sys.executable, *flags, "-m", "madang.gateway", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr


def test_a_port_in_use_names_itself(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        config = tmp_path / "gateway.toml"
        config.write_text(f'site = "daegu"\nfeed_dir = "{tmp_path}/f"\nusage_dir = "{tmp_path}/u"\nport = {port}\n')
        done = subprocess.run(
            [sys.executable, "-m", "madang.gateway", "--config", str(config)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1, done.stderr
    assert f"127.0.0.1:{port}" in done.stderr
    assert "tenant port" in done.stderr
