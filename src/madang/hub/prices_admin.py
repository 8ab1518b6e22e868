"""Changes of the price book: tariffs that begin on a Korean day, and stay as they are once they have begun.

Owns the table `tariff` and its rules. Refuses to compute charges (`madang.policy.pricing` does). Every function that
changes anything runs inside a Change.
"""

import msgspec
import sqlalchemy as sa

from madang.core import Conflict, Rejected, ServiceName, check_entity_id
from madang.hub.change import Change
from madang.hub.desired_store import read_services, read_tariffs
from madang.hub.tables import TARIFF
from madang.model import PriorityClass, Tariff
from madang.policy.desired import KIND_TARIFF
from madang.policy.pricing import day_start_s, kst_day
from madang.runtime.admin_http import NotFound

TARIFFS_MAX = 10_000
"""Every gateway holds all of them."""
_BOUNDS = {
    "prompt_micro_won_per_million": 10**12,
    "completion_micro_won_per_million": 10**12,
    "request_micro_won": 10**12,
    "audio_second_micro_won": 10**9,
    "image_micro_won": 10**9,
    "sample_micro_won": 10**9,
}
"""A million won for a million tokens or for a request, and a thousand for a second of sound or for a row of a batch:
above it is a mistake, and one request's charge could grow beyond what the ledger believes."""


class TariffRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tariff to enter: a Tariff without its id. An unknown field is refused: it may be a price misspelt."""

    service: str
    priority: PriorityClass
    valid_from: str
    prompt_micro_won_per_million: int = 0
    completion_micro_won_per_million: int = 0
    request_micro_won: int = 0
    audio_second_micro_won: int = 0
    image_micro_won: int = 0
    sample_micro_won: int = 0


def put_tariff(change: Change, request: TariffRequest) -> tuple[Tariff, bool]:
    """Enter a tariff, or replace one that has not begun; return it and whether it is new.

    Raises:
        Rejected: a field is malformed, names no service, or the day is over.
        Conflict: it has begun and differs, or there are too many.
    """
    tariff = _make(change.connection, request)
    old = next(iter(read_tariffs(change.connection, [tariff.tariff_id])), None)
    if old == tariff:
        return tariff, False
    today = kst_day(change.now_s)
    if old is not None and old.valid_from <= today:
        raise Conflict(
            f"tariff {tariff.tariff_id} has begun: requests were charged by it",
            next_step="enter a tariff that begins on a later day",
        )
    if tariff.valid_from < today:
        raise Rejected(
            f"tariff {tariff.tariff_id}: valid_from is over; today is {today} in Korea",
            next_step="let it begin today or later",
        )
    count = change.connection.scalar(sa.select(sa.func.count()).select_from(TARIFF)) or 0
    if old is None and count >= TARIFFS_MAX:
        raise Conflict(f"the price book has {TARIFFS_MAX} tariffs, the most allowed")
    change.write_fact(TARIFF, TARIFF.c.tariff_id, tariff.tariff_id, tariff, service=tariff.service)
    change.touch(KIND_TARIFF, tariff.tariff_id)
    change.audit("tariff.put", tariff.tariff_id, tariff)
    return tariff, old is None


def _make(connection: sa.Connection, request: TariffRequest) -> Tariff:
    check_entity_id("service", request.service)
    if kst_day(day_start_s(request.valid_from)) != request.valid_from:
        raise Rejected(f"day {request.valid_from[:20]!r} is not valid: expected YYYY-MM-DD, Korean time")
    tariff_id = f"{request.service}.{request.priority}.{request.valid_from}"
    for field, most in _BOUNDS.items():
        value = getattr(request, field)
        if not 0 <= value <= most:
            raise Rejected(f"tariff {tariff_id}: {field} is {value}, expected 0 to {most}")
    if not read_services(connection, [request.service]):
        raise Rejected(
            f"tariff {tariff_id}: service {request.service!r} does not exist",
            next_step="GET /api/v1/services lists those that do",
        )
    fields = msgspec.structs.asdict(request)
    return Tariff(**{**fields, "tariff_id": tariff_id, "service": ServiceName(request.service)})


def delete_tariff(change: Change, tariff_id: str) -> None:
    """Remove a tariff that has not begun; raises NotFound, or Conflict for one that has."""
    found = read_tariffs(change.connection, [tariff_id])
    if not found:
        raise NotFound(f"tariff {tariff_id!r} does not exist", next_step="GET /api/v1/tariffs lists those that do")
    if found[0].valid_from <= kst_day(change.now_s):
        raise Conflict(
            f"tariff {tariff_id} has begun: requests were charged by it",
            next_step="enter one with other prices, or with none, that begins on a later day",
        )
    change.connection.execute(TARIFF.delete().where(TARIFF.c.tariff_id == tariff_id))
    change.touch(KIND_TARIFF, tariff_id)
    change.audit("tariff.delete", tariff_id, found[0])


def list_tariffs(connection: sa.Connection, service: str | None) -> list[Tariff]:
    """Return tariffs by service, class (the most urgent first) and day."""
    found = (tariff for tariff in read_tariffs(connection) if service in (None, tariff.service))
    return sorted(found, key=lambda one: (one.service, one.priority.rank, one.valid_from))
