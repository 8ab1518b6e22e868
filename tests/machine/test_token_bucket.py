"""The bucket: no span of time lets more through than its rate, its burst and one piece."""

from hypothesis import given
from hypothesis import strategies as st

from madang.machine.token_bucket import fill_bucket, take_bytes

S = 1_000_000_000


def test_without_a_rate_nobody_waits():
    bucket = fill_bucket(0, 0)
    assert take_bytes(bucket, 10**12, 0) == (bucket, 0)


def test_a_full_bucket_lets_its_burst_through_and_then_asks_to_wait():
    bucket = fill_bucket(1000, 0, burst_bytes=500)
    bucket, wait_ns = take_bytes(bucket, 500, 0)
    assert wait_ns == 0
    bucket, wait_ns = take_bytes(bucket, 100, 0)
    assert wait_ns == S // 10
    _, wait_ns = take_bytes(bucket, 0, S // 10)
    assert wait_ns == 0


def test_a_clock_that_goes_back_fills_nothing():
    bucket, _ = take_bytes(fill_bucket(1000, 5 * S, burst_bytes=100), 100, 5 * S)
    after, wait_ns = take_bytes(bucket, 10, 0)
    assert after.level_bytes == -10
    assert after.at_ns == 5 * S
    assert wait_ns == S // 100


@given(
    st.integers(1, 10**10),
    st.integers(1, 10**8),
    st.lists(st.tuples(st.integers(1, 10**8), st.integers(0, S)), min_size=1, max_size=50),
)
def test_whoever_waits_as_told_stays_within_rate_burst_and_one_piece(rate, burst, pieces):
    now_ns = 0
    bucket = fill_bucket(rate, 0, burst_bytes=burst)
    passed = 0
    for count, idle_ns in pieces:
        now_ns += idle_ns
        passed += count
        bucket, wait_ns = take_bytes(bucket, count, now_ns)
        assert passed <= rate * now_ns / S + burst + max(size for size, _ in pieces) + 1
        now_ns += wait_ns
