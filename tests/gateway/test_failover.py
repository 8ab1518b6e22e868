"""Engines that fail, clients that leave, logs that cannot be written: who is told what, and what is written down."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.lab import CITY, EMBED, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post

from madang.gateway.relay import Suspects
from madang.gateway.usage_log import SystemDisk
from madang.machine.retry_budget import EARNED_PER_REQUEST, EARNED_PER_S
from madang.model import Outcome


@pytest.fixture
def site(lab: Lab) -> LabSite:
    return lab.site()


def start(lab: Lab, site: LabSite, *modes: str, **settings: object) -> list[FakeEngine]:
    engines = [lab.engine(mode=mode) for mode in modes]
    for engine in engines:
        site.add_replica(engine)
    lab.start(site, **settings)
    return engines


def served(engines: list[FakeEngine]) -> list[int]:
    return [len(engine.requests) for engine in engines]


@pytest.mark.parametrize("mode", ["die_first", "status", "hang"])
def test_another_replica_is_tried_before_the_first_byte(lab: Lab, site: LabSite, mode: str) -> None:
    broken, good = lab.engine(mode=mode), lab.engine()
    site.add_replica(broken, slots=8)  # more free slots: chosen first
    site.add_replica(good, slots=4)
    lab.start(site, first_byte_timeout_s=0.2)
    for _ in range(3):
        answer = site.chat(CITY, stream=True)
        assert answer.status == 200
        assert answer.events[-1] == "[DONE]"
        assert site.worker is not None
        site.worker.relay.suspects = Suspects(lab.loop)
    assert served([broken, good]) == [3, 3]
    assert [(event.attempt, event.replica_id) for event in site.events()] == [(2, "daegu-qwen-1")] * 3


def test_a_failed_replica_stands_behind_the_others(lab: Lab, site: LabSite) -> None:
    broken, good = start(lab, site, "die_first", "ok")
    for _ in range(20):
        assert site.chat(CITY).status == 200
    assert len(broken.requests) <= 1
    assert len(good.requests) == 20
    assert len(site.log.named("gateway_route_failing")) <= 1, "a change of state is said once"


def test_at_most_three_attempts(lab: Lab, site: LabSite) -> None:
    engines = start(lab, site, *["status"] * 5)
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
    assert sum(served(engines)) == 3
    assert site.events() == []


def test_a_storm_of_failures_is_not_tried_again_in_full(lab: Lab, site: LabSite) -> None:
    """Engines that fail for want of room must not get three times the work."""
    engines = start(lab, site, *["status"] * 3)
    assert site.worker is not None
    site.worker.relay.retries.drain()
    began_s = time.monotonic()
    for _ in range(40):
        assert site.chat(CITY).status == 502
    asked, refused = sum(served(engines)), site.worker.meter.retries_refused
    assert asked + refused >= 40 * 2, "each request was tried once, and wanted to be tried again"
    assert asked <= 40 + 40 * EARNED_PER_REQUEST + EARNED_PER_S * (time.monotonic() - began_s)
    assert refused > 0


def test_engine_that_is_gone(lab: Lab, site: LabSite) -> None:
    (engine,) = start(lab, site, "ok")
    lab.run(engine.stop())
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "no_replica", "5")


def test_engine_that_loads(lab: Lab, site: LabSite) -> None:
    (engine,) = start(lab, site, "status")
    engine.status = 503
    assert site.chat(CITY).error["code"] == "no_replica"


def test_engine_that_says_nothing(lab: Lab, site: LabSite) -> None:
    (engine,) = start(lab, site, "hang", first_byte_timeout_s=0.2)
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    wait_until(lambda: engine.left == 1, "the engine is left")


def test_an_engine_that_refuses_the_request_is_believed(lab: Lab, site: LabSite) -> None:
    engines = start(lab, site, "status", "status")
    for engine in engines:
        engine.status = 400
        engine.error_body = {
            "error": {"message": "request (900 tokens) exceeds the context (512)", "type": "exceed_context_size_error"}
        }
    answer = site.chat(CITY, stream=True)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    assert "exceeds the context" in answer.error["message"]
    assert sum(served(engines)) == 1


@pytest.mark.parametrize("mode", ["die_middle", "error_middle"])
def test_a_stream_that_breaks_ends_with_an_error_event(lab: Lab, site: LabSite, mode: str) -> None:
    start(lab, site, mode)
    with closing(RawClient(site.connect())) as client:
        client.send(post(chat_body(stream=True), CITY.key))
        assert client.head()[0] == 200
        rest = client.rest()
    assert b'"code":"upstream_failed"' in rest
    assert b"[DONE]" not in rest
    assert not rest.endswith(b"0\r\n\r\n"), "nobody may take it for complete"
    (event,) = wait_until(site.events, "the event")
    assert (event.outcome, event.completion_tokens, event.is_estimated) == (Outcome.UPSTREAM_FAILED, 2, True)


@pytest.mark.parametrize("mode", ["die_middle", "error_middle"])
def test_an_object_that_breaks_is_502_and_not_tried_again(lab: Lab, site: LabSite, mode: str) -> None:
    engines = start(lab, site, mode, mode)
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
    assert sum(served(engines)) == 1
    (event,) = wait_until(site.events, "the event")
    assert event.outcome is Outcome.UPSTREAM_FAILED


def test_an_engine_without_done_or_usage(lab: Lab, site: LabSite) -> None:
    (engine,) = start(lab, site, "no_done")
    engine.usage = None
    answer = site.chat(CITY, stream=True)
    assert answer.events[-1] == "[DONE]"
    (event,) = site.events()
    assert (event.completion_tokens, event.is_estimated) == (3, True)


def test_a_pooled_connection_that_the_engine_closed(lab: Lab, site: LabSite) -> None:
    (engine,) = start(lab, site, "drop_after")
    for _ in range(10):
        assert site.chat(CITY).status == 200
    assert len(engine.requests) == 10
    assert {event.attempt for event in site.events()} == {1}


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("mode", ["endless", "hang"])
def test_the_engine_is_left_when_the_client_goes(lab: Lab, site: LabSite, mode: str, is_stream: bool) -> None:
    (engine,) = start(lab, site, mode)
    with closing(RawClient(site.connect())) as client:
        client.send(post(chat_body(stream=is_stream), CITY.key))
        wait_until(lambda: engine.active == 1 and (engine.sent_bytes > 600 or mode == "hang"), "the engine works")
    began = time.monotonic()
    wait_until(lambda: engine.left == 1, "the engine is left")
    assert time.monotonic() - began < 0.05
    (event,) = wait_until(site.events, "the event")
    assert event.outcome is Outcome.CLIENT_GONE
    assert (event.completion_tokens > 0) is (mode == "endless")
    assert event.is_estimated


def test_embeddings_fail_over_and_are_left(lab: Lab, site: LabSite) -> None:
    bad, good = lab.engine(mode="die_first"), lab.engine()
    site.add_replica(bad, EMBED)
    site.add_replica(good, EMBED)
    lab.start(site)
    for _ in range(4):
        answer = site.request("POST", "/v1/embeddings", {"model": EMBED, "input": "진동"}, key=CITY.key)
        assert answer.status == 200
    good.dimensions = 0
    bad.mode = good.mode = "hang"
    with closing(RawClient(site.connect())) as client:
        client.send(post(b'{"model":"e5","input":"x"}', CITY.key, path=b"/v1/embeddings"))
        wait_until(lambda: good.active + bad.active == 1, "an engine works")
    wait_until(lambda: good.left + bad.left == 1, "the engine is left")


# --- the usage log


class HeldDisk(SystemDisk):
    """A fake disk whose appends wait until they are let go, or fail as told."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.appends = 0
        self.error: OSError | None = None

    def create(self, path: Path) -> int:
        if self.error is not None:
            raise self.error
        return super().create(path)

    def append(self, descriptor: int, data: bytes) -> None:
        self.appends += 1
        self.is_open.wait(10)
        if self.error is not None:
            os.write(descriptor, data[: len(data) // 2])  # a torn record, as a full disk leaves it
            raise self.error
        super().append(descriptor, data)


@pytest.fixture
def disk() -> Iterator[HeldDisk]:
    disk = HeldDisk()
    yield disk
    disk.error = None
    disk.is_open.set()


def test_the_last_byte_waits_for_the_disk(lab: Lab, site: LabSite, disk: HeldDisk) -> None:
    site.add_replica(lab.engine())
    lab.start(site, disk=disk)
    disk.is_open.clear()
    with closing(RawClient(site.connect())) as stream, closing(RawClient(site.connect())) as whole:
        stream.send(post(chat_body(stream=True), CITY.key))
        assert stream.head()[0] == 200
        stream.recv_until(b'"finish_reason":"stop"')
        whole.send(post(chat_body(), CITY.key))
        wait_until(lambda: disk.appends == 2, "the commit has begun")
        for client in (stream, whole):
            client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stream.recv_until(b"[DONE]")
        with pytest.raises(TimeoutError):
            whole.head()
        disk.is_open.set()
        for client in (stream, whole):
            client.sock.settimeout(10)
        stream.recv_until(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert whole.answer().status == 200
    assert len(site.events()) == 2


def test_a_full_disk(lab: Lab, site: LabSite, disk: HeldDisk) -> None:
    site.add_replica(lab.engine())
    lab.start(site, disk=disk)
    assert site.chat(CITY).status == 200
    disk.error = OSError(28, "No space left on device")
    with closing(RawClient(site.connect())) as client:
        client.send(post(chat_body(stream=True), CITY.key))
        rest = client.rest()
        assert b"[DONE]" not in rest
        assert b"No space left on device" in rest
        assert not rest.endswith(b"0\r\n\r\n")
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert "No space left on device" in answer.error["message"]
    assert str(site.usage_dir) in answer.error["message"]
    assert int(answer.headers["retry-after"]) >= 1
    ready = site.request("GET", "/readyz", port="admin")
    assert (ready.status, ready.json["is_ready"]) == (503, False)
    assert site.request("GET", "/v1/models", key=CITY.key).status == 200
    disk.error = None
    wait_until(lambda: site.request("GET", "/readyz", port="admin").status == 200, "the log recovers by itself")
    assert site.chat(CITY).status == 200
    assert len(site.events()) == 2, "torn records are no events, and the segment with them is never written again"
    assert len(list(site.usage_dir.glob("w*.log"))) == 2


def test_a_folder_that_cannot_be_written_at_start(lab: Lab, site: LabSite, disk: HeldDisk) -> None:
    disk.error = PermissionError(13, "Permission denied")
    site.add_replica(lab.engine())
    lab.start(site, disk=disk)
    assert "Permission denied" in site.chat(CITY).error["message"]
    disk.error = None
    wait_until(lambda: site.chat(CITY).status == 200, "the log recovers by itself")


def test_one_commit_covers_many_requests(lab: Lab, site: LabSite, disk: HeldDisk) -> None:
    site.add_replica(lab.engine(), slots=100)
    lab.start(site, disk=disk)
    disk.is_open.clear()
    clients = [RawClient(site.connect()) for _ in range(30)]
    for client in clients:
        client.send(post(chat_body(), CITY.key))
    assert site.worker is not None
    wait_until(
        lambda: sum(one.completion_tokens for one in site.worker.meter.services.values()) == 90, "all are served"
    )
    before = disk.appends
    disk.is_open.set()
    for client in clients:
        assert client.answer().status == 200
        client.close()
    assert disk.appends - before <= 1
    assert len(site.events()) == 30


# --- the feed


def test_before_the_first_snapshot(lab: Lab, site: LabSite) -> None:
    lab.start(site, is_fed=False)
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "no_replica", "1")
    assert site.request("GET", "/readyz", port="admin").status == 503
    assert site.request("GET", "/healthz", port="admin").status == 200
    site.add_replica(lab.engine())
    site.write_feed()
    wait_until(lambda: site.chat(CITY).status == 200, "the feed is read")


def test_a_broken_feed_leaves_the_last_one_in_place(lab: Lab, site: LabSite) -> None:
    start(lab, site, "ok")
    for name in ("snapshot.msgpack", "live.msgpack"):
        (site.feed_dir / name).write_bytes(b"\xc1nonsense")
    wait_until(lambda: len(site.log.named("gateway_feed_unreadable")) == 2, "it is said")
    assert site.chat(CITY).status == 200
    (site.feed_dir / "live.msgpack").unlink()
    assert site.chat(CITY).status == 200
    assert len(site.log.named("gateway_feed_unreadable")) == 2, "once"
    site.refresh()
    assert len(site.log.named("gateway_feed_readable")) == 2


def test_a_dead_site_process_stops_nobody(lab: Lab, site: LabSite) -> None:
    start(lab, site, "ok")
    wait_until(lambda: site.log.named("gateway_feed_stale"), "the feed is stale")
    assert site.chat(CITY).status == 200
    assert site.request("GET", "/readyz", port="admin").status == 200


def test_keys_change_with_the_feed(lab: Lab, site: LabSite) -> None:
    start(lab, site, "ok")
    city = lab.tenants[2]
    assert site.chat(city).status == 200
    for change, text in (
        ({"is_revoked": True}, "revoked"),
        ({"is_revoked": False, "expires_at_s": time.time() - 1}, "expired"),
    ):
        for name, value in change.items():
            setattr(city, name, value)
        site.refresh()
        answer = site.chat(city)
        assert (answer.status, answer.error["code"]) == (401, "invalid_key")
        assert text in answer.error["message"]
    city.expires_at_s = None
    city.is_revoked = False
    for key, text in ((None, "no API key"), ("sk-abc", "malformed"), ("mdg_other_" + "A" * 43, "not known")):
        answer = site.request("GET", "/v1/models", key=key)
        assert (answer.status, text in answer.error["message"]) == (401, True)


def test_admission_closed_by_the_site(lab: Lab, site: LabSite) -> None:
    start(lab, site, "ok")
    site.closed_reason = "the outbox is full"
    site.refresh()
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert "outbox is full" in answer.error["message"]


def test_overload_is_said(lab: Lab, site: LabSite) -> None:
    engine = lab.engine(mode="wait")
    site.add_replica(engine, slots=1)
    lab.start(site)
    clients = [RawClient(site.connect()) for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(post(chat_body(), CITY.key))
        wait_until(lambda number=number: engine.active == number + 1, "it is at the engine")
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    lab.loop.call_soon_threadsafe(engine.gate.set)
    for client in clients:
        assert client.answer().status == 200
        client.close()
