"""Prices: one rounding, dated tariffs by Korean days, and a bound that no request exceeds."""

from datetime import datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected, ServiceName
from madang.model import Outcome, PriorityClass, Tariff
from madang.policy.pricing import (
    PriceBook,
    add_vat_won,
    audio_ms_max,
    charge_micro_won,
    day_start_s,
    kst_day,
    kst_day_number,
    kst_month,
    month_span_s,
    worst_charge_micro_won,
)

KST = timezone(timedelta(hours=9))
prices = st.integers(0, 10**12)
tokens = st.integers(0, 2**31)
tariffs = st.builds(
    Tariff,
    tariff_id=st.just("t"),
    service=st.just(ServiceName("qwen")),
    priority=st.sampled_from(PriorityClass),
    valid_from=st.dates().map(lambda day: day.isoformat()),
    prompt_micro_won_per_million=prices,
    completion_micro_won_per_million=prices,
    request_micro_won=prices,
    audio_second_micro_won=prices,
    image_micro_won=prices,
    sample_micro_won=prices,
)


@given(tariffs, st.sampled_from(Outcome), tokens, tokens, st.integers(0, 10**9), tokens, tokens)
def test_a_charge_is_the_exact_price_rounded_once(
    tariff: Tariff, outcome: Outcome, prompt: int, completion: int, audio_ms: int, images: int, samples: int
) -> None:
    exact = Fraction(prompt * tariff.prompt_micro_won_per_million, 10**6)
    exact += Fraction(completion * tariff.completion_micro_won_per_million, 10**6)
    rounded = int((Decimal(exact.numerator) / Decimal(exact.denominator)).quantize(Decimal(1), ROUND_HALF_UP))
    seconds = audio_ms // 1000 + (audio_ms % 1000 > 0)
    expected = rounded + seconds * tariff.audio_second_micro_won
    expected += images * tariff.image_micro_won + samples * tariff.sample_micro_won
    expected += tariff.request_micro_won if outcome is Outcome.COMPLETED else 0
    if outcome is Outcome.ABANDONED:
        expected = 0
    assert charge_micro_won(tariff, outcome, prompt, completion, audio_ms, images, samples) == expected


@given(tariffs, st.sampled_from(Outcome), st.text(max_size=50), tokens, st.integers(0, 10**6), st.data())
def test_no_charge_exceeds_the_bound(
    tariff: Tariff, outcome: Outcome, text: str, completion_max: int, audio_ms: int, data: st.DataObject
) -> None:
    size = len(text.encode())
    prompt = data.draw(st.integers(0, size + 256))
    completion = data.draw(st.integers(0, completion_max))
    bound = worst_charge_micro_won(tariff, size, completion_max, audio_ms)
    assert charge_micro_won(tariff, outcome, prompt, completion, audio_ms) <= bound


@given(tariffs, st.integers(0, 10**8), st.integers(0, 10**9))
def test_a_sound_is_charged_as_no_longer_than_was_reserved(tariff: Tariff, size: int, heard_ms: int) -> None:
    bound = charge_micro_won(tariff, Outcome.COMPLETED, 0, 0, audio_ms_max(size))
    assert charge_micro_won(tariff, Outcome.COMPLETED, 0, 0, min(heard_ms, audio_ms_max(size))) <= bound
    speech_ms = size * 1000 // 750  # the lowest rate of Opus, RFC 6716
    assert speech_ms <= audio_ms_max(size), "speech is charged in full"


def test_without_a_tariff_nothing_is_charged() -> None:
    assert charge_micro_won(None, Outcome.COMPLETED, 10, 10) == 0
    assert worst_charge_micro_won(None, 10, 10) == 0


@given(st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1), timezones=st.just(KST)))  # noqa: DTZ001
def test_days_are_korean(moment: datetime) -> None:
    wall_s = moment.timestamp()
    assert kst_day(wall_s) == moment.strftime("%Y-%m-%d")
    assert kst_month(wall_s) == moment.strftime("%Y-%m")
    assert kst_day_number(wall_s) == moment.date().toordinal() - 719163
    assert day_start_s(kst_day(wall_s)) <= wall_s < day_start_s(kst_day(wall_s)) + 86_400
    first_s, after_s = month_span_s(kst_month(wall_s))
    assert first_s <= wall_s < after_s
    assert kst_day(after_s)[8:] == "01"
    assert kst_month(after_s) != kst_month(wall_s)


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "2026-02-30", "tomorrow"])
def test_what_is_no_day(text: str) -> None:
    with pytest.raises(Rejected):
        day_start_s(text) if text.count("-") == 2 else month_span_s(text)


@given(st.lists(tariffs, max_size=8), st.sampled_from(PriorityClass), st.dates())
def test_the_newest_tariff_that_has_begun_is_in_force(found: list[Tariff], priority: PriorityClass, day) -> None:
    book = [msgspec.structs.replace(one, tariff_id=str(number)) for number, one in enumerate(found)]
    began = [one for one in book if one.priority is priority and one.valid_from <= day.isoformat()]
    expected = max(began, key=lambda one: (one.valid_from, one.tariff_id), default=None)
    assert PriceBook(book).find("qwen", priority, day.toordinal() - 719163) == expected
    assert PriceBook(book).find("other", priority, day.toordinal() - 719163) is None


def test_a_malformed_day_never_begins() -> None:
    tariff = Tariff(
        tariff_id="t", service=ServiceName("qwen"), priority=PriorityClass.BATCH, valid_from="soon", request_micro_won=1
    )
    assert PriceBook([tariff]).find("qwen", PriorityClass.BATCH, 10**6) is None


def test_vat_is_added_once_on_the_sum() -> None:
    assert add_vat_won(0) == (0, 0)
    assert add_vat_won(1_499_999) == (1, 0)
    assert add_vat_won(4_500_000) == (5, 1), "half up, both times"
    assert add_vat_won(123_456_789_000_000) == (123_456_789, 12_345_679)
