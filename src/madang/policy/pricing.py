"""What a request costs, and at most can cost: integers of micro-won, from dated tariffs.

Owns the arithmetic, its one rounding and the days by which tariffs begin. Refuses to know clocks, budgets and taxes.
Called by the gateway at admission and when an attempt ends, by the hub for invoices, and by the simulator.

Days and months are Korean ones (UTC+9, without daylight saving since 1988): a tariff, a budget and an invoice begin
at Korean midnight, whatever zone the machine is set to.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime

from madang.core import Rejected, ServiceName
from madang.model import Outcome, PriorityClass, Tariff
from madang.model.price import VAT_PERMILLE

KST_OFFSET_S = 9 * 3600
_DAY_S = 86_400
_PER_MILLION = 1_000_000
_CHARGED = frozenset((Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.UPSTREAM_FAILED))
"""What was produced is paid for, also by a client that left; an abandoned attempt produced nothing that anybody got."""
TEMPLATE_TOKENS_MAX = 256
"""What a chat template may add to a prompt, for the bound: a token of the models here is at least one byte of text."""


AUDIO_BYTES_PER_S_MIN = 500
"""The least that a codec of speech makes of a second: Opus goes down to 6 kbit/s (RFC 6716 section 2.1.1), 750."""


def audio_ms_max(size_bytes: int) -> int:
    """Return the longest that a sound of so many bytes is counted as, milliseconds.

    Silence can be packed closer. What of it is longer is not charged, so that what is reserved is never exceeded.
    """
    return size_bytes * 1000 // AUDIO_BYTES_PER_S_MIN


def kst_day_number(wall_s: float) -> int:
    """Return the Korean day of a wall time as days since 1970-01-01."""
    return int((wall_s + KST_OFFSET_S) // _DAY_S)


def kst_day(wall_s: float) -> str:
    """Return the Korean day of a wall time, `YYYY-MM-DD`."""
    return datetime.fromtimestamp(wall_s + KST_OFFSET_S, UTC).strftime("%Y-%m-%d")


def kst_minute(wall_s: float) -> str:
    """Return the Korean time of a wall time for people to read, `YYYY-MM-DD HH:MM KST`."""
    return datetime.fromtimestamp(wall_s + KST_OFFSET_S, UTC).strftime("%Y-%m-%d %H:%M KST")


def kst_month(wall_s: float) -> str:
    """Return the Korean month of a wall time, `YYYY-MM`."""
    return kst_day(wall_s)[:7]


def day_start_s(day: str) -> float:
    """Return the wall time at which a Korean day begins; raises Rejected when it is none."""
    try:
        return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() - KST_OFFSET_S
    except ValueError as error:
        raise Rejected(f"day {day!r} is not valid: expected YYYY-MM-DD, Korean time") from error


def month_span_s(month: str) -> tuple[float, float]:
    """Return the wall times at which a Korean month begins and ends; raises Rejected when it is none."""
    try:
        first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
        is_last = first.month == 12
        after = first.replace(year=first.year + is_last, month=1 if is_last else first.month + 1)
    except ValueError as error:
        raise Rejected(f"month {month!r} is not valid: expected YYYY-MM, Korean time") from error
    return first.timestamp() - KST_OFFSET_S, after.timestamp() - KST_OFFSET_S


class PriceBook:
    """Every tariff, by service and class. Immutable once made."""

    def __init__(self, tariffs: Iterable[Tariff]) -> None:
        """Index tariffs; one whose day is malformed never begins."""
        self._by_pair: dict[tuple[str, str], list[tuple[int, Tariff]]] = {}
        for tariff in sorted(tariffs, key=lambda one: (one.valid_from, one.tariff_id)):
            begins = _day_number(tariff.valid_from)
            if begins is not None:
                self._by_pair.setdefault((tariff.service, tariff.priority), []).append((begins, tariff))

    def find(self, service: ServiceName | str, priority: PriorityClass, day_number: int) -> Tariff | None:
        """Return the tariff in force on a Korean day, None where there is none: then nothing is charged."""
        found = None
        for begins, tariff in self._by_pair.get((service, priority), ()):
            if begins > day_number:
                break
            found = tariff
        return found


def _day_number(day: str) -> int | None:
    try:
        return date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None


def charge_micro_won(
    tariff: Tariff | None,
    outcome: Outcome,
    prompt_tokens: int,
    completion_tokens: int,
    audio_ms: int = 0,
    images: int = 0,
    samples: int = 0,
) -> int:
    """Return what an attempt costs, micro-won net of VAT.

    The tokens' part is (prompt * price + completion * price) / 10^6, summed first and rounded once, half up. Sound is
    charged by the begun second, images and samples by the piece, a request once it is completed.
    """
    if tariff is None or outcome not in _CHARGED:
        return 0
    tokens = (
        prompt_tokens * tariff.prompt_micro_won_per_million
        + completion_tokens * tariff.completion_micro_won_per_million
    )
    charge = (tokens + _PER_MILLION // 2) // _PER_MILLION - (-audio_ms // 1000) * tariff.audio_second_micro_won
    charge += images * tariff.image_micro_won + samples * tariff.sample_micro_won
    return charge + tariff.request_micro_won if outcome is Outcome.COMPLETED else charge


def worst_charge_micro_won(
    tariff: Tariff | None, prompt_bytes: int, completion_tokens_max: int, audio_ms_max: int = 0
) -> int:
    """Return the most that a request can cost, from what is known before work.

    Args:
        tariff: the one in force.
        prompt_bytes: UTF-8 bytes that it may read; each token is at least one, beside TEMPLATE_TOKENS_MAX.
        completion_tokens_max: what it may write, over all of its answers.
        audio_ms_max: how long its sound can be.
    """
    return charge_micro_won(
        tariff, Outcome.COMPLETED, prompt_bytes + TEMPLATE_TOKENS_MAX, completion_tokens_max, audio_ms_max
    )


def add_vat_won(sum_micro_won: int) -> tuple[int, int]:
    """Return what is due for a sum net of VAT: whole won net, and the tax on them; each rounded once, half up.

    Korean value-added tax is 10 % (Value-Added Tax Act, article 30); it is added on an invoice, once, on its sum.
    """
    net_won = (sum_micro_won + _PER_MILLION // 2) // _PER_MILLION
    return net_won, (net_won * VAT_PERMILLE + 500) // 1000
