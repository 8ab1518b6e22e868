"""Passes: sealed, opened, and every way to tamper with one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import KeyId, Rejected, RequestId, ServiceName, SiteId, TenantId
from madang.model import Residency, ResidencyScope
from madang.wire.passes import HOPS_MAX, Pass, open_pass, seal_pass

KEY = bytes(range(32))
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=20)
passes = st.builds(
    Pass,
    request_id=names.map(RequestId),
    attempt=st.integers(1, 99),
    tenant_id=names.map(TenantId),
    key_id=names.map(KeyId),
    service=names.map(ServiceName),
    residency=st.builds(Residency, scope=st.sampled_from(ResidencyScope), places=st.lists(names).map(tuple)),
    data_class=st.sampled_from(["open", "sensitive", "classified"]),
    entry_site=names.map(SiteId),
    serving_site=names.map(SiteId),
    hops=st.integers(0, HOPS_MAX),
    issued_at_s=st.just(1000.0),
    deadline_s=st.just(1010.0),
    path=names,
    is_stream=st.booleans(),
    body_sha256=st.binary(min_size=32, max_size=32),
    kid=st.just("k"),
    version=st.just(1),
)


@given(passes, st.floats(970.0, 1040.0))
def test_round_trip(value: Pass, now_s: float) -> None:
    assert open_pass(seal_pass(value, KEY), {"k": KEY, "other": b"o" * 32}, now_s=now_s) == value


@given(passes, st.data())
def test_no_altered_character_is_accepted(value: Pass, data: st.DataObject) -> None:
    header = seal_pass(value, KEY)
    at = data.draw(st.integers(0, len(header) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_. =~").filter(lambda char: char != header[at]))
    altered = header[:at] + other + header[at + 1 :]
    # The last character of unpadded base64 carries spare bits: another character may mean the same bytes.
    try:
        opened = open_pass(altered, {"k": KEY}, now_s=1000.0)
    except Rejected:
        return
    assert opened == value


@given(st.text(max_size=200))
def test_any_text_is_rejected(text: str) -> None:
    with pytest.raises(Rejected):
        open_pass(text, {"k": KEY}, now_s=1000.0)


@given(passes, st.sampled_from([969.9, 1040.1]))
def test_out_of_time(value: Pass, now_s: float) -> None:
    with pytest.raises(Rejected, match="clocks"):
        open_pass(seal_pass(value, KEY), {"k": KEY}, now_s=now_s)


@given(passes)
def test_wrong_keys(value: Pass) -> None:
    with pytest.raises(Rejected, match="does not hold"):
        open_pass(seal_pass(value, KEY), {}, now_s=1000.0)
    with pytest.raises(Rejected, match="does not verify"):
        open_pass(seal_pass(value, b"x" * 32), {"k": KEY}, now_s=1000.0)
