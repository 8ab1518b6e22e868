import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import EventId, KeyId, RequestId, ServiceName, SiteId, TenantId
from madang.model import UsageEvent
from madang.wire.usage_log import FRAME_BYTES_MAX, decode_records, encode_record, scan_records


def make_event(number):
    request = f"daegu-{number:032x}"
    return UsageEvent(
        event_id=EventId(f"{request}.1"),
        request_id=RequestId(request),
        attempt=1,
        tenant_id=TenantId("t1"),
        key_id=KeyId("k1"),
        service=ServiceName("chat"),
        model="m",
        endpoint="/v1/chat/completions",
        entry_site=SiteId("daegu"),
        site=SiteId("daegu"),
    )


def join(count):
    return [encode_record(make_event(number)) for number in range(count)]


@given(st.integers(0, 6), st.integers(0, 400), st.booleans())
def test_what_was_cut_short_is_a_tail_and_the_rest_is_whole(count, cut, is_end):
    records = join(count + 1)
    whole = b"".join(records[:-1])
    torn = records[-1][: min(cut, len(records[-1]) - 1)]
    scan = scan_records(whole + torn, is_end=is_end)
    assert [event.event_id for event in scan.events] == [make_event(number).event_id for number in range(count)]
    assert scan.used_bytes == len(whole)
    assert scan.gaps == ()


@given(st.integers(2, 6), st.data(), st.booleans())
def test_one_damaged_byte_costs_at_most_the_record_it_is_in(count, data, is_end):
    records = join(count)
    victim = data.draw(st.integers(0, count - 2))
    position = data.draw(st.integers(0, len(records[victim]) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = bytearray(records[victim])
    damaged[position] ^= flip
    # Enough follows that no claimed length can pass for a record that is still being written.
    filler = [encode_record(make_event(1000 + number)) for number in range(FRAME_BYTES_MAX // len(records[0]) + 2)]
    stream = b"".join([*records[:victim], bytes(damaged), *records[victim + 1 :], *filler])
    scan = scan_records(stream, is_end=is_end)
    expected = [make_event(number).event_id for number in range(count) if number != victim]
    expected += [make_event(1000 + number).event_id for number in range(len(filler))]
    assert [event.event_id for event in scan.events] == expected
    start = sum(map(len, records[:victim]))
    assert [(gap.offset, gap.size_bytes) for gap in scan.gaps] == [(start, len(damaged))]
    assert scan.used_bytes == len(stream)


def test_a_damaged_length_is_waited_out_while_more_may_come_and_skipped_at_the_end():
    first, second, third = join(3)
    damaged = (60_000).to_bytes(4, "little") + second[4:]
    waiting = scan_records(first + damaged + third, is_end=False)
    assert len(waiting.events) == 1
    assert waiting.used_bytes == len(first)
    ended = scan_records(first + damaged + third, is_end=True)
    assert len(ended.events) == 2
    assert len(ended.gaps) == 1


def test_zeros_that_a_power_loss_left_are_a_tail_and_not_records():
    (record,) = join(1)
    scan = scan_records(record + bytes(4096), is_end=True)
    assert len(scan.events) == 1
    assert scan.used_bytes == len(record)
    assert scan.gaps == ()


def test_damage_longer_than_any_record_does_not_hold_the_rest_up_for_ever():
    record = encode_record(make_event(1))
    noise = b"\xff" * (2 * FRAME_BYTES_MAX)
    scan = scan_records(record + noise, is_end=False)
    assert scan.used_bytes > len(record)
    assert sum(gap.size_bytes for gap in scan.gaps) == scan.used_bytes - len(record)
    rest = scan_records((record + noise)[scan.used_bytes :] + record, is_end=False)
    assert len(rest.events) == 1


@given(st.binary(max_size=600), st.booleans())
def test_arbitrary_bytes_never_raise_and_never_make_an_event(data, is_end):
    scan = scan_records(data, is_end=is_end)
    assert scan.events == ()
    assert 0 <= scan.used_bytes <= len(data)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_it_agrees_with_the_strict_reader_on_sound_segments(count):
    stream = b"".join(join(count))
    events, used = decode_records(stream)
    scan = scan_records(stream, is_end=True)
    assert list(scan.events) == events
    assert scan.used_bytes == used
