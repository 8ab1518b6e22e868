"""Leased money in the hub's database: what each holder of each pot was granted. Owns the table `lease`.

A row with an empty holder is the pot itself; what was spent before it began stands there.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.hub.tables import LEASE, LEDGER
from madang.machine.lease import Holding, HubPot
from madang.machine.lease_periods import span_of
from madang.model.lease import PotKey, Scope


def read_pot(connection: sa.Connection, key: PotKey, limit: int) -> HubPot | None:
    """Return a pot under today's limit, None when it never was; locks it where the database has row locks."""
    rows = connection.execute(sa.select(LEASE).where(LEASE.c.pot == key.text).with_for_update()).all()
    if not rows:
        return None
    prior = sum(row.spent for row in rows if not row.holder)
    return HubPot(limit=limit, prior=prior, holdings={row.holder: _holding(row) for row in rows if row.holder})


def _holding(row: Any) -> Holding:
    return Holding(
        site=row.site,
        granted=row.granted,
        returned=row.returned,
        spent=row.spent,
        needed=row.needed,
        heard_at_s=row.heard_at_s,
    )


def make_pot(connection: sa.Connection, key: PotKey, limit: int, now_s: float) -> HubPot:
    """Begin a pot: what the ledger knows of its period was spent before it."""
    prior = 0 if key.is_overdraw else sum_ledger(connection, key)
    values = {"granted": 0, "returned": 0, "spent": prior, "needed": 0, "heard_at_s": now_s}
    connection.execute(LEASE.insert().values(**_names(key), holder="", site="", **values))
    return HubPot(limit=limit, prior=prior)


def _names(key: PotKey) -> dict[str, Any]:
    return {
        "pot": key.text,
        "scope": key.scope.value,
        "account": key.account,
        "period": key.period.value,
        "label": key.label,
        "is_overdraw": key.is_overdraw,
        "ends_at_s": span_of(key.period, key.label)[1],
    }


def write_holding(connection: sa.Connection, key: PotKey, holder: str, holding: Holding) -> None:
    """Store what a holder has."""
    values = msgspec.structs.asdict(holding)
    site = values.pop("site")
    where = (LEASE.c.pot == key.text) & (LEASE.c.holder == holder)
    if connection.execute(LEASE.update().where(where).values(**values)).rowcount == 0:
        connection.execute(LEASE.insert().values(**_names(key), holder=holder, site=site, **values))


def sum_ledger(connection: sa.Connection, key: PotKey) -> int:
    """Return what the ledger holds of an account's period, by when requests began."""
    starts_at_s, ends_at_s = span_of(key.period, key.label)
    column = LEDGER.c.tenant_id if key.scope is Scope.TENANT else LEDGER.c.project_id
    query = sa.select(sa.func.coalesce(sa.func.sum(LEDGER.c.charge_micro_won), 0)).where(
        column == key.account,
        LEDGER.c.started_at_s >= starts_at_s,
        LEDGER.c.started_at_s < ends_at_s,
        LEDGER.c.is_superseded.is_(False),
    )
    return int(connection.scalar(query) or 0)


def read_holders(connection: sa.Connection, pots: Iterable[PotKey]) -> dict[str, dict[str, Holding]]:
    """Return holdings by pot and holder; the pot's own row has an empty name."""
    names = [key.text for key in pots]
    found: dict[str, dict[str, Holding]] = {}
    for row in connection.execute(sa.select(LEASE).where(LEASE.c.pot.in_(names)).order_by(LEASE.c.holder)):
        found.setdefault(row.pot, {})[row.holder] = _holding(row)
    return found


def prune(connection: sa.Connection, before_s: float) -> None:
    """Forget pots whose period ended before a wall time."""
    connection.execute(LEASE.delete().where(LEASE.c.ends_at_s < before_s))
