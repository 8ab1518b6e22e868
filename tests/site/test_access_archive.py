"""Access records at a site: sealed, kept their time, and no change to them goes unseen."""

import asyncio
import fcntl
import io
import json
import os
import stat
import zlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.site.fresh_database import open_database

from madang.core import Rejected, Unavailable
from madang.runtime.signing import is_signed_by
from madang.runtime.telemetry import EventLog
from madang.site.access_archive import EXPIRED_PER_PASS, AccessArchive
from madang.site.access_chain import SEALED_FOLDER
from madang.site.access_query import Filter, list_records, verify_records
from madang.site.audit import AUDIT_LOG
from madang.site.guard import GuardedStore
from madang.wire.access_log import (
    MAGIC,
    SEALS_FILE,
    decode_line,
    decode_segment,
    encode_chunk,
    encode_line,
    seal_bytes,
    sealed_name,
    survey_segment,
)
from madang.wire.receipts import make_kid

DAY_S = 86_400.0
START_S = 1_790_000_000.0


class FakeClock:
    def __init__(self):
        self.now_s = START_S

    def monotonic_ns(self):
        return int(self.now_s * 1e9)

    def wall_s(self):
        return self.now_s


def record(number, at_s=START_S, tenant="t1", address="10.0.0.1", status=200, count=1, last_at_ms=0):
    return (
        int(at_s * 1000) + number,
        f"daegu-{number:032x}",
        tenant,
        "",
        "k1",
        "sensitive",
        address,
        "/v1/chat/completions",
        "chat",
        status,
        count,
        last_at_ms,
    )


class Worker:
    """One life of a gateway worker, as the archive sees it."""

    def __init__(self, folder, boot="b0", worker=0):
        self.folder, self.stem, self.seq, self.descriptor = folder, f"w{worker}-{boot}", 0, None

    def write(self, *records):
        if self.descriptor is None:
            self.seq += 1
            path = self.folder / f"{self.stem}-{self.seq:06d}.acc"
            self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            os.write(self.descriptor, MAGIC)
        os.write(self.descriptor, encode_chunk(records))

    def write_raw(self, data):
        os.write(self.descriptor, data)

    def close(self):
        os.close(self.descriptor)
        self.descriptor = None


class Site:
    """An access folder, a database and an archive; `restart` is what remains after kill -9."""

    def __init__(self, folder, **limits):
        self.folder = folder / "access"
        self.folder.mkdir()
        self.database = folder / "site.db"
        self.clock = FakeClock()
        self.text = io.StringIO()
        self.identity = Ed25519PrivateKey.generate()
        self.limits = {"retention_days": 730, "bytes_max": 10**9, **limits}
        self.worker = Worker(self.folder)
        self.start()

    def start(self):
        self.store = open_database(self.database)
        self.log = EventLog(self.clock, self.text)
        self.archive = AccessArchive(
            site="daegu",
            folder=self.folder,
            identity=self.identity,
            store=GuardedStore(self.store, self.log),
            clock=self.clock,
            log=self.log,
            **self.limits,
        )
        asyncio.run(self.archive.load())

    def restart(self):
        self.store.close()
        self.start()

    def seal(self, *records):
        """Have a worker write and finish a segment, and seal it."""
        self.worker.write(*records)
        self.worker.close()
        return asyncio.run(self.archive.step())

    def verify(self, after=0):
        public_key = self.identity.public_key().public_bytes_raw()
        check = lambda _kid, signature, message: is_signed_by(public_key, signature, message)  # noqa: E731
        return verify_records(self.folder, "daegu", check, {make_kid(public_key)}, after)

    def list(self, limit=1000, before=None, **wanted):
        entries = list(self.archive.chain.entries.values())
        return list_records(self.folder, entries, Filter(**wanted), limit=limit, before=before)

    def numbers(self, **wanted):
        return [int(one.request_id[-8:], 16) for one in self.list(**wanted).records]

    def events(self):
        return [json.loads(line)["event"] for line in self.text.getvalue().splitlines()]

    def segments(self):
        return sorted(path.name for path in self.folder.glob("*.acc"))


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.store.close()


# --- sealing


def test_finished_segments_are_sealed_and_live_ones_are_read_as_they_are(site):
    assert site.seal(record(1), record(2)) == 1
    site.worker.write(record(3))
    assert asyncio.run(site.archive.step()) == 0
    assert site.numbers() == [3, 2, 1]
    assert site.segments() == ["w0-b0-000002.acc"]
    found = site.verify()
    assert (found.checked, found.records, found.problems, found.following) == (1, 2, [], None)
    for path in (site.folder / SEALS_FILE, site.folder / SEALED_FOLDER / sealed_name(1)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_dead_worker_left_is_sealed_with_its_torn_end(site):
    site.worker.write(record(1))
    site.worker.write_raw(encode_chunk([record(2)])[:-3])
    site.worker.close()
    assert asyncio.run(site.archive.step()) == 1
    assert site.numbers() == [1]
    assert "access_tail_torn" in site.events()
    assert site.verify().problems == []


def test_an_empty_segment_leaves_no_seal(site):
    site.worker.write(record(1))
    site.worker.close()
    path = site.folder / "w1-b9-000001.acc"
    path.write_bytes(MAGIC)
    os.utime(path, (site.clock.now_s, site.clock.now_s))
    asyncio.run(site.archive.step())
    assert path.exists()  # its writer may be about to take its lock
    site.clock.now_s += 60
    asyncio.run(site.archive.step())
    assert (site.archive.chain.head.number, site.segments()) == (1, [])


@pytest.mark.parametrize("step", ["sealed file", "line", "removal", "head"])
def test_a_death_at_any_step_neither_loses_nor_doubles(site, step, monkeypatch):
    site.seal(record(1))

    def die(*_args, **_values):
        raise OSError(5, "killed")

    target = {
        "sealed file": ("madang.site.access_archive.replace_file", None),
        "line": ("madang.site.access_chain.Chain.append", None),
        "removal": ("pathlib.Path.unlink", None),
        "head": ("madang.site.access_archive.write_meta", None),
    }[step][0]
    with monkeypatch.context() as patch:
        patch.setattr(target, die)
        with pytest.raises((Unavailable, OSError)):
            site.seal(record(2))
    site.restart()
    asyncio.run(site.archive.step())
    assert site.numbers() == [2, 1]
    assert site.segments() == []
    assert (site.verify().checked, site.verify().problems) == (2, [])


class Killed(BaseException):
    """The process ends here: nothing after it runs, no handler of errors either."""


EFFECTS = ("open", "write", "fdatasync", "fsync", "fchmod", "replace", "ftruncate", "close", "unlink")


def die_at(patch, number):
    """Let the process die at the `number`-th effect on the disk from now on; return the counter."""
    seen = [0]

    def count(inner):
        def effect(*args, **values):
            seen[0] += 1
            if seen[0] == number:
                raise Killed
            return inner(*args, **values)

        return effect

    for name in EFFECTS:
        patch.setattr(os, name, count(getattr(os, name)))
    return seen


@pytest.mark.deep
def test_a_death_at_every_effect_loses_and_doubles_nothing(tmp_path, monkeypatch):
    """Sealing two segments and removing an old one, killed at the first effect, the second, and so on to the last."""
    for number in range(1, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        site = Site(folder)
        site.seal(record(0, at_s=START_S - 800 * DAY_S))
        for worker in (1, 2):
            other = Worker(site.folder, boot="b1", worker=worker)
            other.write(record(10 * worker), record(10 * worker + 1))
            other.close()
        with monkeypatch.context() as patch:
            seen = die_at(patch, number)
            try:
                asyncio.run(site.archive.step())
                asyncio.run(site.archive.expire())
            except Killed:
                pass
        is_over = seen[0] < number
        site.restart()
        asyncio.run(site.archive.step())
        asyncio.run(site.archive.expire())
        found = site.verify()
        assert (sorted(site.numbers()), found.problems) == ([10, 11, 20, 21], []), f"killed at effect {number}"
        assert (found.records, site.segments()) == (4, [])
        assert site.archive.problem == ""
        site.store.close()
        if is_over:
            assert number > 20
            return
    raise AssertionError("there is no end to the effects")


def test_a_line_that_was_cut_off_is_dropped_and_made_again(site):
    site.seal(record(1))
    with (site.folder / SEALS_FILE).open("ab") as file:
        file.write(b'{"alg":"ed25519","seal":{"first')
    assert site.verify().problems == ["the last line of seals.jsonl is torn"]
    site.restart()
    assert "access_seals_tail_dropped" in site.events()
    site.seal(record(2))
    assert (site.numbers(), site.verify().problems) == ([2, 1], [])


def test_the_chain_goes_on_over_restarts(site):
    for number in range(3):
        site.seal(record(number))
        site.restart()
    assert (site.verify().checked, site.verify().problems) == (3, [])
    assert site.archive.size_bytes == sum(path.stat().st_size for path in (site.folder / SEALED_FOLDER).iterdir())


# --- tampering


def reseal(site, number, **changes):
    """Write a line anew with a changed seal, signed by somebody who has no key of the site."""
    path = site.folder / SEALS_FILE
    lines = path.read_bytes().splitlines()
    line = decode_line(lines[number - 1])
    fields = {name: getattr(line.seal, name) for name in line.seal.__struct_fields__}
    seal = type(line.seal)(**{**fields, **changes})
    lines[number - 1] = encode_line(seal, Ed25519PrivateKey.generate().sign(seal_bytes(seal)))
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.fixture
def sealed(site):
    for number in range(4):
        site.seal(record(2 * number), record(2 * number + 1))
    assert site.verify().problems == []
    return site


def test_a_record_that_was_changed_is_seen(sealed):
    path = sealed.folder / SEALED_FOLDER / sealed_name(2)
    data = zlib.decompress(path.read_bytes()).replace(b"10.0.0.1", b"10.0.0.2")
    records = [tuple(getattr(one, name) for name in one.__struct_fields__) for one in decode_segment(data).records]
    for forged in (data, MAGIC + encode_chunk([record(2)]), MAGIC + encode_chunk([*records, record(9)])):
        path.write_bytes(zlib.compress(forged))
        assert sealed.verify().problems == ["segment 2 was changed: its content is not the one that was sealed"]


def test_a_segment_that_is_gone_or_damaged_is_seen(sealed):
    path = sealed.folder / SEALED_FOLDER / sealed_name(3)
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"x", b"", b"nothing of the kind"):
        path.write_bytes(data)
        assert len(sealed.verify().problems) == 1
    path.unlink()
    assert "is gone" in sealed.verify().problems[0]
    assert sealed.list().unreadable
    assert len(sealed.list().records) == 6


def test_a_seal_that_was_changed_or_signed_by_others_is_seen(sealed):
    reseal(sealed, 2, records=7)
    found = sealed.verify()
    assert (found.checked, found.problems) == (1, ["seal 2: site daegu did not sign it"])


def test_a_seal_under_another_key_is_named(sealed):
    reseal(sealed, 4, kid="0" * 16)
    found = sealed.verify()
    assert found.unknown_keys == ["0" * 16]
    assert found.problems == ["seal 4 is signed with key 0000000000000000, which is not known here"]


@pytest.mark.parametrize("drop", [0, 1, 2])
def test_a_seal_that_was_taken_out_is_seen(sealed, drop):
    path = sealed.folder / SEALS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:drop] + lines[drop + 1 :]))
    assert "does not follow" in sealed.verify().problems[0]


@pytest.mark.parametrize("keep", [0, 2, 3])
def test_a_chain_cut_at_its_end_is_missed_by_the_database(sealed, keep):
    path = sealed.folder / SEALS_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:keep]))
    sealed.restart()
    assert "lacks seal 4" in sealed.archive.problem
    assert "access_chain_broken" in sealed.events()
    # Nothing is sealed over what is left as evidence, and no record is lost.
    assert sealed.seal(record(99)) == 0
    assert sealed.numbers(request=f"daegu-{99:032x}") == [99]
    assert len(list((sealed.folder / SEALED_FOLDER).iterdir())) == 4


def test_a_damaged_chain_stops_no_site(sealed):
    path = sealed.folder / SEALS_FILE
    path.write_bytes(b"garbage\n" + path.read_bytes())
    sealed.restart()
    assert "is no seal" in sealed.archive.problem
    assert sealed.seal(record(99)) == 0


def test_any_changed_byte_of_the_chain_is_seen(site):
    site.seal(record(1))
    site.seal(record(2))
    path = site.folder / SEALS_FILE
    whole = path.read_bytes()

    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def change(place, change):
        content = bytearray(whole)
        content[place] ^= change
        path.write_bytes(content)
        assert site.verify().problems

    change()


# --- time and room


def test_records_are_kept_their_time_and_then_removed_in_bounded_steps(site):
    for number in range(EXPIRED_PER_PASS + 2):
        site.seal(record(number, at_s=site.clock.now_s))
    site.clock.now_s += 729 * DAY_S
    assert asyncio.run(site.archive.expire()) == 0
    site.seal(record(9999, at_s=site.clock.now_s))
    site.clock.now_s += 2 * DAY_S
    assert asyncio.run(site.archive.expire()) == EXPIRED_PER_PASS
    assert asyncio.run(site.archive.expire()) == 2
    assert site.numbers() == [9999]
    assert site.verify().problems == []
    site.restart()
    assert asyncio.run(site.archive.expire()) == 0
    assert (site.numbers(), site.verify().problems) == ([9999], [])


def test_a_death_between_the_line_and_the_removal_leaves_nothing_behind(site, monkeypatch):
    site.seal(record(1))
    site.clock.now_s += 800 * DAY_S
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_: (_ for _ in ()).throw(OSError(5, "killed")))
        with pytest.raises(Unavailable):
            asyncio.run(site.archive.expire())
    site.restart()
    assert list((site.folder / SEALED_FOLDER).iterdir()) == []
    assert (site.verify().problems, site.archive.size_bytes) == ([], 0)


def test_no_setting_keeps_records_for_less_than_the_law_asks(tmp_path):
    with pytest.raises(Rejected, match="365 days"):
        Site(tmp_path, retention_days=364)


def test_a_removal_before_its_time_is_seen(site):
    site.seal(record(1))
    seal = site.archive.chain.next_expiry(1, make_kid(site.archive.public_key), int(site.clock.now_s * 1000))
    site.archive.chain.append(seal, site.identity.sign(seal_bytes(seal)), 0)
    (site.folder / SEALED_FOLDER / sealed_name(1)).unlink()
    assert site.verify().problems == ["segment 1 was removed before its time, says seal 2"]


def test_the_limit_is_told_in_advance_and_closes_admission_instead_of_removing(tmp_path):
    site = Site(tmp_path, bytes_max=2000)
    number = 0
    while site.archive.used_share < 0.8:
        assert site.archive.problem == ""
        site.seal(*(record(number + one) for one in range(5)))
        number += 5
    site.archive._warn()
    assert "raise it in time" in site.archive.problem
    assert "access_space_low" in site.events()
    assert site.archive.closed_reason == ""
    while site.archive.used_share < 1:
        site.seal(*(record(number + one) for one in range(5)))
        number += 5
    assert "access_bytes_max is 2000" in site.archive.closed_reason
    assert asyncio.run(site.archive.expire()) == 0
    assert len(site.numbers()) == number
    site.store.close()


def test_the_head_is_written_into_the_audit_log_once_a_day(site):
    asyncio.run(site.archive.anchor())
    site.seal(record(1))
    asyncio.run(site.archive.anchor())
    asyncio.run(site.archive.anchor())
    site.seal(record(2))
    site.clock.now_s += DAY_S
    asyncio.run(site.archive.anchor())
    site.restart()
    asyncio.run(site.archive.anchor())
    with site.store.engine.begin() as connection:
        rows = AUDIT_LOG.read(connection)
    assert [(row.action, row.facts["number"]) for row in rows] == [("access.head", 1), ("access.head", 2)]
    assert rows[1].facts["sha256"] == site.verify().head_sha256


def test_open_segments_count_and_are_made_durable(site, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fdatasync", synced.append)
    site.worker.write(record(1))
    asyncio.run(site.archive.step())
    asyncio.run(site.archive.step())
    assert len(synced) == 1
    assert site.archive.size_bytes == (site.folder / site.segments()[0]).stat().st_size
    site.worker.write(record(2))
    asyncio.run(site.archive.step())
    assert len(synced) == 2


# --- listing


def test_filters_find_what_they_say(site):
    site.seal(record(1), record(2, tenant="t2"), record(3, address="10.0.0.9"))
    site.seal(record(4, at_s=START_S + 5 * DAY_S), record(5, status=403, count=7, last_at_ms=int(START_S * 1000) + 99))
    assert site.numbers(tenant="t2") == [2]
    assert site.numbers(address="10.0.0.9") == [3]
    assert site.numbers(status=403) == [5]
    assert site.numbers(since_ms=int((START_S + DAY_S) * 1000)) == [4]
    assert site.numbers(until_ms=int(START_S * 1000) + 2) == [1]
    assert site.numbers(request=f"daegu-{3:032x}") == [3]
    assert site.numbers(key="k2") == []


def test_pages_go_back_through_all_segments_once(site):
    for number in range(10):
        site.seal(record(2 * number), record(2 * number + 1))
    found, before = [], None
    for _ in range(20):
        page = site.list(limit=3, before=before)
        found += [int(one.request_id[-8:], 16) for one in page.records]
        before = page.before
        if before is None:
            break
    assert sorted(found) == list(range(20))


def test_verification_goes_in_steps(site, monkeypatch):
    for number in range(5):
        site.seal(record(number))
    monkeypatch.setattr("madang.site.access_query.SEALS_PER_CALL_MAX", 2)
    after, seen = 0, []
    while after is not None:
        found = site.verify(after)
        seen.append((found.checked, found.records, found.problems))
        after = found.following
    assert seen == [(2, 2, []), (4, 2, []), (5, 1, [])]


@given(st.binary(max_size=400))
def test_any_bytes_are_read_without_trouble(data):
    for content in (data, MAGIC + data):
        survey, contents = survey_segment(content), decode_segment(content)
        assert contents.torn_bytes <= len(content)
        assert survey.records >= 0


@given(st.lists(st.integers(1, 40), max_size=6), st.integers(0, 60))
def test_a_survey_counts_what_is_there(sizes, cut):
    chunks = [encode_chunk([record(number) for number in range(size)]) for size in sizes]
    data = MAGIC + b"".join(chunks)
    data = data[: max(len(MAGIC), len(data) - cut)]
    survey, contents = survey_segment(data), decode_segment(data)
    assert (survey.records, survey.torn_bytes) == (len(contents.records), contents.torn_bytes)
    if contents.records:
        assert survey.first_at_ms == min(one.at_ms for one in contents.records)
