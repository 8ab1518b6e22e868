"""The audit chain: what was written holds, and whatever is changed in it shows where."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected
from madang.wire.audit import LINE_BYTES_MAX, AuditRow, ChainHead, decode_line, follow, next_row, verdict_of

TEXTS = st.text(max_size=12)
DETAILS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
DEEDS = st.fixed_dictionaries(
    {
        "at_s": st.floats(0, 4e9) | st.integers(0, 4_000_000_000),
        "actor": TEXTS,
        "action": TEXTS,
        "target": TEXTS,
        "detail": DETAILS,
    }
)


def chain(deeds):
    head, rows = ChainHead(), []
    for deed in deeds:
        fields = next_row(head, **deed)
        rows.append(AuditRow(**{**fields, "detail": msgspec.Raw(fields["detail"].encode())}))
        head = ChainHead(fields["seq"], fields["hash"])
    return rows


@given(st.lists(DEEDS, max_size=6), st.integers(0, 6))
def test_a_chain_holds_in_one_piece_in_two_and_as_lines_of_a_file(deeds, cut):
    rows = chain(deeds)
    head, broken_at = follow(ChainHead(), rows)
    assert (head.seq, broken_at) == (len(deeds), None)
    half, _ = follow(ChainHead(), rows[:cut])
    assert follow(half, rows[cut:]) == (head, None)
    lines = [msgspec.json.encode(row) for row in rows]
    read = [decode_line(line, number) for number, line in enumerate(lines, 1)]
    assert follow(ChainHead(), read) == (head, None)
    assert [row.facts for row in read] == [row.facts for row in rows]


CHANGES = {
    "seq": lambda value: value + 1,
    "at_s": lambda value: value + 1.0,
    "actor": lambda value: value + "x",
    "action": lambda value: value + "x",
    "target": lambda value: value + "x",
    "detail": lambda value: msgspec.Raw(bytes(value) + b" "),
    "prev_hash": lambda value: "f" * 64,
    "hash": lambda value: "f" * 64,
}


@given(st.lists(DEEDS, min_size=1, max_size=5), st.data())
def test_any_change_of_any_field_is_found_where_it_is(deeds, data):
    rows = chain(deeds)
    at = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(sorted(CHANGES)))
    rows[at] = msgspec.structs.replace(rows[at], **{name: CHANGES[name](getattr(rows[at], name))})
    head, broken_at = follow(ChainHead(), rows)
    assert broken_at == at + 1
    verdict = verdict_of(head, broken_at)
    assert (verdict.is_intact, verdict.rows, verdict.broken_at_seq) == (False, at, at + 1)


@given(st.lists(DEEDS, min_size=2, max_size=5, unique_by=repr), st.data())
def test_a_row_that_was_removed_moved_or_doubled_is_found(deeds, data):
    rows = chain(deeds)
    at = data.draw(st.integers(0, len(rows) - 2))
    assert follow(ChainHead(), rows[:at] + rows[at + 1 :])[1] == at + 1
    assert follow(ChainHead(), [*rows[:at], rows[at + 1], rows[at], *rows[at + 2 :]])[1] == at + 1
    assert follow(ChainHead(), [*rows[: at + 1], rows[at], *rows[at + 1 :]])[1] == at + 2


def test_the_hash_is_the_one_that_was_always_written():
    """A row as release 0.1.0 wrote it; a chain must hold over every release."""
    row = next_row(ChainHead(), at_s=1.5, actor="admin", action="key.put", target="k", detail={"b": 1, "a": "가"})
    assert row["detail"] == '{"a":"가","b":1}'
    assert row["hash"] == "404020d290ee67d2b9412d4df449949200c0f5a45b85164071a2e901ecf1b727"


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_row_that_is_none(line):
    with pytest.raises(Rejected, match="line 7"):
        decode_line(line, 7)


def test_an_endless_line_is_refused():
    with pytest.raises(Rejected, match="line 1 is over"):
        decode_line(b"x" * (LINE_BYTES_MAX + 1), 1)
