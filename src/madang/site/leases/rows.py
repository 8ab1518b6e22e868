"""Pots in the site's database. Owns their rows; refuses to change what they say."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.machine.lease import SitePot
from madang.model.lease import PotKey
from madang.site.desired import read_meta, write_meta
from madang.site.tables import LEASE_POT

_LIFE = "lease_life"
_NUMBER = "lease_number"
_WRITES = "lease_writes"
_NUMBERS_PER_LIFE_BITS = 22
_decoder = msgspec.json.Decoder(SitePot)


class PotRow(msgspec.Struct, frozen=True, kw_only=True):
    """One stored pot; `slot` is -1 until it is near enough to be in the tables."""

    number: int
    key: PotKey
    slot: int
    ends_at_s: float
    pot: SitePot


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """How far a database is: kept beside it, so that an older copy of it is known for what it is.

    Attributes:
        life: of the database.
        writes: of pots, so far.
    """

    life: str = ""
    writes: int = 0


def begin_life(connection: sa.Connection, fresh: str, mark: Mark) -> tuple[str, bool]:
    """Return the name of this database, and whether it was found to be older than its mark.

    It is `fresh` if it never had one: no other ever bears it. A copy that was restored does not know what it gave away
    since, so it forgets its pots and begins as if it were lost.
    """
    life = read_meta(connection, _LIFE)
    is_older = bool(life) and life == mark.life and int(read_meta(connection, _WRITES) or 0) < mark.writes
    if life and not is_older:
        return life, False
    connection.execute(LEASE_POT.delete())
    write_meta(connection, _LIFE, fresh)
    write_meta(connection, _NUMBER, "")
    write_meta(connection, _WRITES, "")
    return fresh, is_older


def read_pots(connection: sa.Connection) -> list[PotRow]:
    """Return every pot, oldest first."""
    return [_pot_row(row) for row in connection.execute(sa.select(LEASE_POT).order_by(LEASE_POT.c.number))]


def _pot_row(row: Any) -> PotRow:
    return PotRow(
        number=row.number,
        key=msgspec.json.decode(row.key, type=PotKey),
        slot=row.slot,
        ends_at_s=row.ends_at_s,
        pot=_decoder.decode(row.state),
    )


def add_pots(connection: sa.Connection, keys: Iterable[tuple[PotKey, float]], life: str) -> list[PotRow]:
    """Make pots, each with a number that none had before, neither here nor in a database that was lost.

    Workers' tables outlive a database. A pot with the number of another would inherit what they know of that one.
    """
    made = []
    number = int(read_meta(connection, _NUMBER) or _first_number(life))
    for key, ends_at_s in keys:
        text = msgspec.json.encode(key).decode()
        # It is there already when an earlier try was committed and its success was not heard of.
        known = connection.execute(sa.select(LEASE_POT).where(LEASE_POT.c.key == text)).one_or_none()
        if known is not None:
            made.append(_pot_row(known))
            continue
        number += 1
        values = {"key": text, "slot": -1, "ends_at_s": ends_at_s, "state": b"{}"}
        connection.execute(LEASE_POT.insert().values(number=number, **values))
        made.append(PotRow(number=number, key=key, slot=-1, ends_at_s=ends_at_s, pot=SitePot()))
    write_meta(connection, _NUMBER, str(number))
    return made


def _first_number(life: str) -> int:
    """Return where a database begins to count: its own by chance, and never beyond what SQLite's integers hold."""
    return int(life[:10], 16) << _NUMBERS_PER_LIFE_BITS


def save_pots(connection: sa.Connection, changes: Iterable[tuple[int, int, SitePot]]) -> int:
    """Store slot and state of some pots, by number; return how many such writes there were."""
    statement = (
        LEASE_POT.update()
        .where(LEASE_POT.c.number == sa.bindparam("which"))
        .values(slot=sa.bindparam("new_slot"), state=sa.bindparam("new_state"))
    )
    rows = [{"which": number, "new_slot": slot, "new_state": msgspec.json.encode(pot)} for number, slot, pot in changes]
    if rows:
        connection.execute(statement, rows)
    writes = int(read_meta(connection, _WRITES) or 0) + 1
    write_meta(connection, _WRITES, str(writes))
    return writes


def read_mark(path: Path) -> Mark:
    """Return the mark in a file, an empty one where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mark)
    except (OSError, msgspec.MsgspecError):
        return Mark()


def remove_pots(connection: sa.Connection, numbers: Iterable[int]) -> None:
    """Forget pots whose period is long over."""
    for number in numbers:
        connection.execute(LEASE_POT.delete().where(LEASE_POT.c.number == number))
