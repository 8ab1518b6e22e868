"""Access records of a real worker: every request, before its answer is complete, with no content and no flood."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.lab import CHAT, CITY, CLINIC, PARTS, Lab, LabSite, make_key, wait_until
from tests.gateway.test_usage_log import Bench

from madang.gateway.access_log import COUNTED_S, FIELD_CHARS_MAX, REFUSERS_MAX, AccessLog
from madang.gateway.usage_log import Disk, SystemDisk
from madang.wire.access_log import AccessRecord, decode_segment

ZERO_MS = 1_790_000_000_000


class FakeClock:
    def __init__(self) -> None:
        self.now_s = ZERO_MS / 1000

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)

    def wall_s(self) -> float:
        return self.now_s


class FullDisk:
    """A disk that takes nothing while it is full, and half of a write when it fills up."""

    def __init__(self, inner: Disk) -> None:
        self.inner = inner
        self.is_full = False

    def create(self, path: Path) -> int:
        return self.inner.create(path)

    def append(self, descriptor: int, data: bytes) -> None:
        if self.is_full:
            self.inner.append(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        self.inner.append(descriptor, data)

    def close(self, descriptor: int) -> None:
        self.inner.close(descriptor)

    def remove(self, path: Path) -> None:
        self.inner.remove(path)


def read_all(folder: Path) -> list[AccessRecord]:
    return [record for path in sorted(folder.glob("*.acc")) for record in decode_segment(path.read_bytes()).records]


def record(number: int, **changes: Any) -> tuple[Any, ...]:
    values = {
        "at_ms": ZERO_MS + number,
        "request_id": f"daegu-{number:032x}",
        "tenant_id": "t1",
        "project_id": "",
        "key_id": "k1",
        "data_class": "sensitive",
        "address": "10.0.0.1",
        "endpoint": "/v1/chat/completions",
        "service": "chat",
        "status": 200,
        "count": 1,
        "last_at_ms": 0,
    }
    return tuple({**values, **changes}.values())


@pytest.fixture
def log(tmp_path: Path) -> AccessLog:
    return AccessLog(tmp_path, 0, "ab", clock=FakeClock())


# --- a real worker


@pytest.fixture
def site(tmp_path: Path) -> Any:
    with Lab(tmp_path) as lab:
        site = lab.site()
        engine = lab.engine()
        site.add_replica(engine)
        lab.start(site)
        yield site


def records_of(site: LabSite) -> list[AccessRecord]:
    return read_all(site.usage_dir.parent / "access")


def wait_for(site: LabSite, count: int) -> list[AccessRecord]:
    def look() -> list[AccessRecord] | None:
        assert site.worker is not None
        site.lab.loop.call_soon_threadsafe(site.worker.usage.poke)  # instead of waiting for the next second
        found = records_of(site)
        return found if len(found) >= count else None

    return wait_until(look, f"{count} access records")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_completed_request_is_recorded_before_its_last_byte(site: LabSite, is_stream: bool) -> None:
    answer = site.chat(CITY, stream=is_stream)
    assert answer.status == 200
    found = records_of(site)  # at once, without waiting: the answer is complete
    assert len(found) == 1
    one = found[0]
    assert one.request_id == answer.headers["x-request-id"]
    assert (one.tenant_id, one.key_id) == (site.events()[0].tenant_id, site.events()[0].key_id)
    assert (one.address, one.endpoint, one.service, one.status) == ("127.0.0.1", "/v1/chat/completions", CHAT, 200)
    assert abs(one.at_ms / 1000 - site.events()[0].started_at_s) < 1
    assert one.data_class == "sensitive"


def test_no_prompt_and_no_answer_is_in_a_record(site: LabSite) -> None:
    site.chat(CITY, messages=[{"role": "user", "content": "주민번호 SECRET-PROMPT"}])
    site.request("GET", "/v1/models?q=SECRET-QUERY", key=CITY.key)
    wait_for(site, 2)
    for path in (site.usage_dir.parent / "access").iterdir():
        assert b"SECRET" not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((site.usage_dir.parent / "access").stat().st_mode) == 0o700


def test_what_is_refused_is_recorded_with_who_it_was(site: LabSite) -> None:
    site.request("POST", "/v1/chat/completions", {}, key=make_key("nobody"))
    site.request("POST", "/v1/chat/completions", {"messages": 1}, key=CITY.key)
    site.request("GET", "/nowhere", key=CITY.key)
    found = {one.status: one for one in wait_for(site, 3)}
    assert set(found) == {401, 400, 404}
    assert (found[401].tenant_id, found[401].address) == ("", "127.0.0.1")
    assert (found[404].tenant_id, found[404].endpoint) == (CITY.name, "other")


def test_a_long_path_is_cut_in_its_record(site: LabSite) -> None:
    site.request("GET", "/v1/files/" + "x" * 5000, key=CITY.key)
    assert wait_for(site, 1)[0].endpoint == "/v1/files/" + "x" * (FIELD_CHARS_MAX - len("/v1/files/"))


def test_residency_refusals_name_the_tenant(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        site = lab.site("gwangju", "honam")
        lab.start(site)
        assert site.chat(CLINIC).status == 403
        (one,) = wait_for(site, 1)
        assert (one.tenant_id, one.status) == (CLINIC.name, 403)
        assert one.key_id


def test_a_spilled_request_is_recorded_at_both_sites(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        entry, peer = lab.site("daegu"), lab.site("gumi")
        entry.peers, peer.peers = ["gumi"], ["daegu"]
        peer.add_replica(lab.engine())
        lab.start(peer)
        lab.start(entry)
        assert entry.chat(PARTS).headers["x-madang-site"] == "gumi"
        (here,), (there,) = wait_for(entry, 1), wait_for(peer, 1)
        assert here.request_id == there.request_id
        assert (here.address, there.address) == ("127.0.0.1", "site:daegu")
        assert (here.service, there.service, there.status) == (CHAT, CHAT, 200)


def test_a_client_that_leaves_is_recorded(site: LabSite) -> None:
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "x"}]}).encode()
    with site.connect() as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:-1])
        wait_until(lambda: site.worker.ports["tenant"].connections, "the request is seen")
    assert wait_for(site, 1)[0].status == 499


@pytest.mark.parametrize(
    ("framing", "body", "status"),
    [
        ("content-length: 999999999", b"", 413),
        ("transfer-encoding: chunked", b"fffffff\r\nx", 413),
        ("transfer-encoding: chunked", b"x\r\n", 400),
    ],
)
def test_a_body_that_is_refused_is_recorded_as_it_was_answered(
    site: LabSite, framing: str, body: bytes, status: int
) -> None:
    with site.connect() as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\n"
        client.sendall(f"{head}{framing}\r\n\r\n".encode() + body)
        assert client.recv(100).startswith(f"HTTP/1.1 {status} ".encode())
    (one,) = wait_for(site, 1)
    assert (one.status, one.tenant_id) == (status, CITY.name)


# --- refusals in bursts


def test_a_burst_is_written_once_and_then_counted(log: AccessLog, tmp_path: Path) -> None:
    clock = log._clock
    for number in range(1000):
        log.add(record(number, status=401, tenant_id="", key_id=""))
    log.write()
    assert [one.count for one in read_all(tmp_path)] == [1]
    clock.now_s += COUNTED_S  # type: ignore[attr-defined]
    assert log.tick()
    log.write()
    first, rest = read_all(tmp_path)
    assert (rest.count, rest.at_ms, rest.last_at_ms) == (999, ZERO_MS, ZERO_MS + 999)
    assert rest.request_id == first.request_id
    log.add(record(5000, status=401, tenant_id="", key_id=""))
    log.write()
    assert [one.count for one in read_all(tmp_path)] == [1, 999, 1]


def test_refusals_of_different_kinds_are_not_mixed(log: AccessLog, tmp_path: Path) -> None:
    for number, changes in enumerate(
        ({"address": "10.0.0.2"}, {"status": 403}, {"status": 429}, {"key_id": "k2"}, {"endpoint": "/v1/files"})
    ):
        for _ in range(2):
            log.add(record(number, **{"status": 401, **changes}))
    log.write()
    assert len(read_all(tmp_path)) == 5


def test_addresses_without_bound_are_counted_together(log: AccessLog, tmp_path: Path) -> None:
    for number in range(REFUSERS_MAX + 500):
        log.add(record(number, status=401, address=f"2001:db8::{number:x}"))
    assert len(log._refusals) == REFUSERS_MAX + 1
    log.stop()
    log.write()
    found = read_all(tmp_path)
    assert sum(one.count for one in found) == REFUSERS_MAX + 500
    assert max(found, key=lambda one: one.count).address == "*"


def test_what_was_counted_is_written_at_the_end(log: AccessLog, tmp_path: Path) -> None:
    for number in range(3):
        log.add(record(number, status=429))
    log.stop()
    log.write()
    assert [one.count for one in read_all(tmp_path)] == [1, 2]


# --- sampling


@pytest.mark.parametrize(("data_class", "expected"), [("open", 0), ("sensitive", 50), ("classified", 50), ("", 50)])
def test_only_open_data_is_ever_sampled(tmp_path: Path, data_class: str, expected: int) -> None:
    log = AccessLog(tmp_path, 0, "ab", clock=FakeClock(), open_ratio=0.0)
    for number in range(50):
        log.add(record(number, data_class=data_class))
    log.write()
    assert len(read_all(tmp_path)) == expected


def test_a_sample_is_about_the_share_that_was_asked_for(tmp_path: Path) -> None:
    log = AccessLog(tmp_path, 0, "ab", clock=FakeClock(), open_ratio=0.25)
    for number in range(4000):
        request_id = f"daegu-{number:012x}{(number * 2654435761) % 2**80:020x}"
        log.add(record(number, data_class="open", request_id=request_id))
    log.write()
    assert 800 < len(read_all(tmp_path)) < 1200


# --- the disk


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    from madang.gateway.access_log import AccessDisk

    disk = FullDisk(AccessDisk())
    log = AccessLog(tmp_path, 0, "ab", clock=FakeClock(), disk=disk)
    log.add(record(1))
    log.write()
    disk.is_full = True
    for number in (2, 3):
        log.add(record(number))
        log.write()
    assert "No space left" in log.failure
    assert log.tick()
    disk.is_full = False
    log.write()
    assert not log.failure
    assert sorted(one.at_ms - ZERO_MS for one in read_all(tmp_path)) == [1, 2, 3]


def test_what_waits_is_bounded_and_losses_are_counted(tmp_path: Path) -> None:
    log = AccessLog(tmp_path, 0, "ab", clock=FakeClock(), records_waiting_max=10)
    for number in range(15):
        log.add(record(number))
    assert log.lost == 5
    log.write()
    assert (log.written, len(read_all(tmp_path))) == (10, 10)


def test_segments_end_by_size_and_by_age(tmp_path: Path) -> None:
    clock = FakeClock()
    log = AccessLog(tmp_path, 0, "ab", clock=clock, segment_bytes_max=500)
    for number in range(10):
        log.add(record(number))
        log.write()
    count = len(list(tmp_path.iterdir()))
    assert count > 1
    assert len(read_all(tmp_path)) == 10
    log.add(record(99))
    log.write()
    assert not log.tick()
    clock.now_s += 3600
    assert log.tick()
    log.write()
    assert log._descriptor is None
    assert not log.tick()


def test_a_path_without_bound_is_cut(log: AccessLog, tmp_path: Path) -> None:
    log.refuse_unknown("r", ("", ""), "10.0.0.1", "/" + "x" * 5000, 404)
    log.write()
    assert len(read_all(tmp_path)[0].endpoint) == FIELD_CHARS_MAX


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "none", 0, "ab", clock=FakeClock())
    log.add(record(1))
    log.write()
    assert str(tmp_path / "none") in log.failure
    os.mkdir(tmp_path / "none")
    log.write()
    assert not log.failure


# --- on the usage log's thread


def test_what_rides_is_written_before_each_commit_and_when_asked(tmp_path: Path) -> None:
    seen: list[str] = []

    class Disk(SystemDisk):
        def append(self, descriptor: int, data: bytes) -> None:
            seen.append("commit")
            super().append(descriptor, data)

    bench = Bench(tmp_path, Disk(), rider=lambda: seen.append("rider"))
    try:
        del seen[:]  # the magic of the first segment
        bench.append(1)
        wait_until(lambda: bench.told, "the event is durable")
        assert seen == ["rider", "commit"]
        bench.log.poke()
        wait_until(lambda: seen[2:] == ["rider"], "the rider is called without a commit")
    finally:
        bench.stop()
    assert seen[-1] == "rider"  # once more at the end


def test_asking_the_rider_does_not_multiply_retries(tmp_path: Path) -> None:
    class Disk(SystemDisk):
        creates = 0

        def create(self, path: Path) -> int:
            self.creates += 1
            raise OSError(28, "No space left on device")

    disk, calls = Disk(), []
    bench = Bench(tmp_path, disk, rider=lambda: calls.append(1), retry_period_s=60.0)
    try:
        for _ in range(50):
            bench.log.poke()
        wait_until(lambda: len(calls) == 50, "every call")
        assert disk.creates == 1
    finally:
        bench.stop()


def test_a_disk_that_takes_no_records_closes_admission_and_opens_again(site: LabSite) -> None:
    site.chat(CITY)
    log = site.worker.access
    healthy = log._disk
    log._disk = FullDisk(healthy)
    log._disk.is_full = True
    site.request("GET", "/v1/models", key=CITY.key)
    wait_until(lambda: site.lab.loop.call_soon_threadsafe(site.worker.usage.poke) and log.failure, "the disk is full")
    refused = site.chat(CITY)
    assert (refused.status, refused.error["code"]) == (429, "overloaded")
    assert "access" in refused.error["message"]
    log._disk.is_full = False
    wait_until(lambda: site.lab.loop.call_soon_threadsafe(site.worker.usage.poke) and not log.failure, "it is written")
    assert site.chat(CITY).status == 200
    assert len([one for one in records_of(site) if one.endpoint == "/v1/models"]) == 1
