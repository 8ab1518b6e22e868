"""The retry budget: bounded over any schedule, and never empty for long."""

from hypothesis import given
from hypothesis import strategies as st

from madang.machine.retry_budget import EARNED_PER_REQUEST, EARNED_PER_S, HELD_MAX, RetryBudget

STEPS = st.lists(
    st.one_of(st.just("request"), st.just("retry"), st.floats(min_value=-1.0, max_value=30.0, allow_nan=False)),
    max_size=400,
)


@given(STEPS)
def test_what_is_allowed_is_bounded_by_what_was_earned(steps: list[str | float]) -> None:
    budget = RetryBudget()
    now_s = first_s = last_s = 100.0
    requests = allowed = 0
    is_asked = False
    for step in steps:
        if step == "request":
            requests += 1
            budget.earn()
        elif step == "retry":
            if not is_asked:
                first_s, is_asked = now_s, True
            last_s = max(last_s, now_s)
            allowed += budget.take(now_s)
        else:
            now_s += float(step)  # also backwards: a clock that does so earns nothing
        spent_s = max(0.0, last_s - first_s)
        assert allowed <= HELD_MAX + EARNED_PER_REQUEST * requests + EARNED_PER_S * spent_s + 1e-6


def test_an_engine_that_dies_is_gone_around() -> None:
    budget = RetryBudget()
    assert all(budget.take(0.0) for _ in range(64)), "all requests of a full engine"


def test_a_storm_of_failures_gets_a_fifth() -> None:
    budget = RetryBudget()
    budget.drain()
    allowed = 0
    for _ in range(1000):
        budget.earn()
        allowed += budget.take(0.0)
    assert 199 <= allowed <= 201


def test_an_empty_budget_fills_again_with_time_alone() -> None:
    budget = RetryBudget()
    while budget.take(5.0):
        pass
    assert not budget.take(5.05)
    assert budget.take(5.15)
