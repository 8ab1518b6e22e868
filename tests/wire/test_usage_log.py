"""The usage log's framing: whole records, torn tails, damage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import EventId, KeyId, Rejected, RequestId, ServiceName, SiteId, TenantId
from madang.model import Outcome, UsageEvent
from madang.wire.usage_log import RECORD_BYTES_MAX, decode_records, encode_record

counts = st.integers(0, 2**40)
events = st.builds(
    UsageEvent,
    event_id=st.text(max_size=50).map(EventId),
    request_id=st.text(max_size=50).map(RequestId),
    attempt=st.integers(1, 99),
    tenant_id=st.text(max_size=20).map(TenantId),
    key_id=st.text(max_size=20).map(KeyId),
    service=st.text(max_size=20).map(ServiceName),
    model=st.text(max_size=20),
    endpoint=st.text(max_size=20),
    entry_site=st.just(SiteId("daegu")),
    site=st.just(SiteId("gumi")),
    outcome=st.sampled_from(Outcome),
    prompt_tokens=counts,
    completion_tokens=counts,
    images=counts,
    samples=counts,
    ttft_s=st.none() | st.floats(0, 1e6),
)


# A record of the release before there were images and samples: a site that is updated still has such ones to import.
BEFORE_UNITS = (
    b"\xf1\x01\x00\x00A\xf1\xed\x86\xde\x00\x1c\xa8event_id\xd9(daegu-01a0c4506c0100000000000000000001.1\xaarequest_id"
    b"\xd9&daegu-01a0c4506c0100000000000000000001\xa7attempt\x01\xa9tenant_id\xa6clinic\xa6key_id\xa2k1\xa7service"
    b"\xa4chat\xa5model\xa1m\xa8endpoint\xb4/v1/chat/completions\xaaentry_site\xa5daegu\xa4site\xa5daegu\xaareplica_id"
    b"\xa0\xa9chip_kind\xa0\xa7outcome\xa9completed\xadprompt_tokens\n\xb1completion_tokens\x05\xacis_estimated\xc2"
    b"\xabis_streamed\xc2\xa4hops\x00\xacstarted_at_s\xcbA\xda\xacN\xe0\x10\x00\x00\xa6ttft_s\xcb?\xb9\x99\x99\x99\x99"
    b"\x99\x9a\xaaduration_s\xcb?\xe0\x00\x00\x00\x00\x00\x00\xaaproject_id\xa0\xa8priority\xabinteractive\xa8audio_ms"
    b"\xcd\x05\xdc\xa9tariff_id\xa0\xb0charge_micro_won\x07\xb2overdraw_micro_won\x00\xafartifact_sha256\xa0"
)


def test_a_record_of_before_there_were_units_is_read() -> None:
    (event,), used = decode_records(BEFORE_UNITS)
    assert used == len(BEFORE_UNITS)
    assert (event.audio_ms, event.charge_micro_won, event.images, event.samples) == (1500, 7, 0, 0)


@given(st.lists(events, max_size=6))
def test_records_come_back(sent: list[UsageEvent]) -> None:
    data = b"".join(map(encode_record, sent))
    assert decode_records(data) == (sent, len(data))


@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_every_cut_gives_the_whole_records_before_it(sent: list[UsageEvent], data: st.DataObject) -> None:
    records = [encode_record(event) for event in sent]
    whole = b"".join(records)
    cut = data.draw(st.integers(0, len(whole)))
    found, used = decode_records(whole[:cut])
    ends = [sum(map(len, records[: count + 1])) for count in range(len(records))]
    count = sum(end <= cut for end in ends)
    assert found == sent[:count]
    assert used == (ends[count - 1] if count else 0)


@given(events, events, st.data())
def test_damage_before_a_whole_record_is_said(first: UsageEvent, second: UsageEvent, data: st.DataObject) -> None:
    record = bytearray(encode_record(first))
    at = data.draw(st.integers(8, len(record) - 1))
    record[at] ^= 1 + data.draw(st.integers(0, 254))
    with pytest.raises(Rejected, match="checksum"):
        decode_records(bytes(record) + encode_record(second))


def test_an_impossible_length_is_said() -> None:
    with pytest.raises(Rejected, match="over"):
        decode_records((RECORD_BYTES_MAX + 1).to_bytes(4, "little") + bytes(100))
