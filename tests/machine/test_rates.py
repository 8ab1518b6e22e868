"""Limits per minute: never over the limit in a minute, and room exactly when it was promised."""

from hypothesis import given
from hypothesis import strategies as st

from madang.machine.rates import MINUTE_MS, aged, clear_ms, has_room, span_text, used_of, wait_ms

COUNTS = st.integers(0, 5000)
ELAPSED = st.integers(0, MINUTE_MS - 1)


def later(present: int, former: int, elapsed_ms: int, wait: int) -> tuple[int, int, int]:
    """Both counts and the time in the minute after waiting."""
    minutes, at = divmod(elapsed_ms + wait, MINUTE_MS)
    return (*aged(present, former, minutes), at)


@given(COUNTS, COUNTS, ELAPSED, st.integers(1, 3000), st.integers(1, 3000))
def test_there_is_room_when_it_was_promised_and_not_before(
    present: int, former: int, elapsed_ms: int, needed: int, limit: int
) -> None:
    wait = wait_ms(present, former, elapsed_ms, needed, limit)
    assert 0 <= wait <= 2 * MINUTE_MS
    one, before, at = later(present, former, elapsed_ms, wait)
    assert has_room(used_of(one, before, at), needed, limit)
    if wait:
        one, before, at = later(present, former, elapsed_ms, wait - 1)
        assert not has_room(used_of(one, before, at), needed, limit)


@given(COUNTS, COUNTS, ELAPSED)
def test_all_is_back_when_it_was_promised(present: int, former: int, elapsed_ms: int) -> None:
    wait = clear_ms(present, former, elapsed_ms)
    assert used_of(*later(present, former, elapsed_ms, wait)) == 0
    if wait:
        assert used_of(*later(present, former, elapsed_ms, wait - 1)) > 0


@given(COUNTS, COUNTS, ELAPSED, st.integers(0, 3 * MINUTE_MS))
def test_what_is_used_only_fades(present: int, former: int, elapsed_ms: int, wait: int) -> None:
    assert used_of(*later(present, former, elapsed_ms, wait)) <= used_of(present, former, elapsed_ms)


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 40)), max_size=200),
    st.integers(1, 60),
)
def test_no_minute_admits_more_than_the_limit(steps: list[tuple[int, int]], limit: int) -> None:
    minute = present = former = now_ms = 0
    admitted: dict[int, int] = {}
    largest: dict[int, int] = {}
    for pause_ms, needed in steps:
        now_ms += pause_ms
        present, former = aged(present, former, now_ms // MINUTE_MS - minute)
        minute, elapsed_ms = divmod(now_ms, MINUTE_MS)
        if has_room(used_of(present, former, elapsed_ms), needed, limit):
            present += needed
            admitted[minute] = admitted.get(minute, 0) + needed
            largest[minute] = max(largest.get(minute, 0), needed)
    for minute, count in admitted.items():
        assert count <= limit or (largest[minute] > limit and count < limit + largest[minute])
        assert count + admitted.get(minute + 1, 0) <= 2 * (limit + max(0, max(largest.values()) - 1))


def test_a_limit_of_nothing_admits_nothing() -> None:
    assert not has_room(0, 1, 0)
    assert wait_ms(0, 0, 30_000, 1, 0) == 90_000


def test_a_count_from_the_future_is_none() -> None:
    assert aged(5, 6, -1) == (0, 0)
    assert aged(5, 6, 0) == (5, 6)
    assert aged(5, 6, 1) == (0, 5)
    assert aged(5, 6, 2) == (0, 0)


def test_spans_read_as_openais() -> None:
    assert [span_text(ms) for ms in (0, 1, 1000, 59_001, 60_000, 102_000)] == [
        "0s",
        "1s",
        "1s",
        "1m0s",
        "1m0s",
        "1m42s",
    ]
