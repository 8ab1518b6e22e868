"""Leased money in the hub's database: what each holder of each pot was granted. Owns the table `lease`.

A row with an empty holder is the pot itself; what was spent before it began stands there. Several hubs may share a
PostgreSQL: whoever changes a pot locks that row first, and reads the holders with a later statement, which sees what
the one before committed. SQLite has one writer, so there the lock is the transaction.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from madang.hub.tables import LEASE, LEDGER
from madang.machine.lease import Holding, HubPot
from madang.machine.lease_periods import label_of, span_of
from madang.model import Budget
from madang.model.lease import Period, PotKey, Scope

_IN_MAX = 500


def lock_pots(connection: sa.Connection, limits: Mapping[PotKey, int], now_s: float) -> dict[PotKey, HubPot]:
    """Return pots under today's limits, made where they never were; no other hub changes them until the commit."""
    keys = {key.text: key for key in limits}
    priors = _lock(connection, sorted(keys))
    missing = sorted(set(keys) - set(priors))
    if missing:
        _make(connection, [keys[name] for name in missing], now_s)
        priors |= _lock(connection, missing)
    held = read_holders(connection, limits)
    return {
        key: HubPot(limit=limit, prior=priors[key.text], holdings=held.get(key, {})) for key, limit in limits.items()
    }


def _lock(connection: sa.Connection, names: Sequence[str]) -> dict[str, int]:
    """Return what was spent before each pot, having locked those that are there, always in the same order."""
    query = sa.select(LEASE.c.pot, LEASE.c.spent).where(LEASE.c.holder == "").order_by(LEASE.c.pot).with_for_update()
    found: dict[str, int] = {}
    for chunk in _chunks(names):
        found |= {row.pot: row.spent for row in connection.execute(query.where(LEASE.c.pot.in_(chunk)))}
    return found


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _IN_MAX] for start in range(0, len(names), _IN_MAX))


def _make(connection: sa.Connection, keys: Sequence[PotKey], now_s: float) -> None:
    """Begin pots: what the ledger knows of their period was spent before them. Another hub may be faster."""
    rows = [
        {
            **_names(key),
            "holder": "",
            "site": "",
            "granted": 0,
            "returned": 0,
            "spent": 0 if key.is_overdraw else sum_ledger(connection, key),
            "needed": 0,
            "heard_at_s": now_s,
        }
        for key in keys
    ]
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(LEASE).on_conflict_do_nothing(index_elements=["pot", "holder"]), rows)


def _names(key: PotKey) -> dict[str, Any]:
    return {"pot": key.text, "ends_at_s": span_of(key.period, key.label)[1]}


_CHANGE_HOLDING = (
    LEASE.update()
    .where(LEASE.c.pot == sa.bindparam("p"), LEASE.c.holder == sa.bindparam("h"))
    .values({name: sa.bindparam(name) for name in ("site", "granted", "returned", "spent", "needed", "heard_at_s")})
)


def write_holdings(
    connection: sa.Connection, old: Mapping[PotKey, HubPot], changed: Mapping[tuple[PotKey, str], Holding]
) -> None:
    """Store what holders have of locked pots, by pot and holder.

    Args:
        connection: the transaction that locked them.
        old: the pots as they were read.
        changed: what differs from that.
    """
    new_rows: list[dict[str, Any]] = []
    old_rows: list[dict[str, Any]] = []
    for (key, holder), holding in changed.items():
        values = msgspec.structs.asdict(holding)
        if holder in old[key].holdings:
            old_rows.append({"p": key.text, "h": holder, **values})
        else:
            new_rows.append({**_names(key), "holder": holder, **values})
    if old_rows:
        connection.execute(_CHANGE_HOLDING, old_rows)
    if new_rows:
        connection.execute(LEASE.insert(), new_rows)


_HOLDERS = sa.select(
    *(LEASE.c[name] for name in ("pot", "holder", "site", "granted", "returned", "spent", "needed", "heard_at_s"))
).where(LEASE.c.holder != "")


def read_holders(connection: sa.Connection, keys: Iterable[PotKey]) -> dict[PotKey, dict[str, Holding]]:
    """Return holdings by pot and holder."""
    names = {key.text: key for key in keys}
    found: dict[PotKey, dict[str, Holding]] = {}
    for chunk in _chunks(sorted(names)):
        # Taken apart by position: a federation's pots have many thousands of these rows.
        for pot, holder, site, granted, returned, spent, needed, heard_at_s in connection.execute(
            _HOLDERS.where(LEASE.c.pot.in_(chunk))
        ):
            found.setdefault(names[pot], {})[holder] = Holding(
                site=site, granted=granted, returned=returned, spent=spent, needed=needed, heard_at_s=heard_at_s
            )
    return found


def read_pot(connection: sa.Connection, key: PotKey, limit: int) -> HubPot:
    """Return a pot as it is, or as it would begin now, without making it."""
    query = sa.select(LEASE.c.spent).where(LEASE.c.pot == key.text, LEASE.c.holder == "")
    prior = connection.scalar(query)
    if prior is None:
        prior = 0 if key.is_overdraw else sum_ledger(connection, key)
    return HubPot(limit=limit, prior=prior, holdings=read_holders(connection, [key]).get(key, {}))


def note_unleased(
    connection: sa.Connection, scope: Scope, account: str, old: Budget | None, new: Budget, now_s: float
) -> None:
    """Count what was spent without a budget in a period that had one before, when it gets one again."""
    before = Budget() if old is None else old
    for period, was, limit in (
        (Period.DAY, before.day_micro_won, new.day_micro_won),
        (Period.MONTH, before.month_micro_won, new.month_micro_won),
    ):
        if was is not None or limit is None:
            continue
        key = PotKey(scope=scope, account=account, period=period, label=label_of(period, now_s))
        priors = _lock(connection, [key.text])
        if priors:
            leased = sum(one.spent for one in read_holders(connection, [key]).get(key, {}).values())
            prior = max(priors[key.text], sum_ledger(connection, key) - leased)
            where = (LEASE.c.pot == key.text) & (LEASE.c.holder == "")
            connection.execute(LEASE.update().where(where).values(spent=prior))


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


def prune(connection: sa.Connection, before_s: float) -> None:
    """Forget pots whose period ended before a wall time."""
    connection.execute(LEASE.delete().where(LEASE.c.ends_at_s < before_s))
