"""Pots in the site's database. Owns their rows; refuses to change what they say."""

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.machine.lease import SitePot
from madang.model.lease import PotKey
from madang.site.desired import read_meta, write_meta
from madang.site.tables import LEASE_POT

_LIFE = "lease_life"
_NUMBER = "lease_number"
_NUMBERS_PER_LIFE_BITS = 22
_decoder = msgspec.json.Decoder(SitePot)


class PotRow(msgspec.Struct, frozen=True, kw_only=True):
    """One stored pot; `slot` is -1 until it is near enough to be in the tables."""

    number: int
    key: PotKey
    slot: int
    ends_at_s: float
    pot: SitePot


def read_life(connection: sa.Connection, fresh: str) -> str:
    """Return the name of this database, which is `fresh` if it never had one: no other ever bears it."""
    life = read_meta(connection, _LIFE)
    if not life:
        write_meta(connection, _LIFE, fresh)
    return life or fresh


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


def save_pots(connection: sa.Connection, changes: Iterable[tuple[int, int, SitePot]]) -> None:
    """Store number, slot and state of some pots."""
    statement = (
        LEASE_POT.update()
        .where(LEASE_POT.c.number == sa.bindparam("which"))
        .values(slot=sa.bindparam("new_slot"), state=sa.bindparam("new_state"))
    )
    rows = [{"which": number, "new_slot": slot, "new_state": msgspec.json.encode(pot)} for number, slot, pot in changes]
    if rows:
        connection.execute(statement, rows)


def remove_pots(connection: sa.Connection, numbers: Iterable[int]) -> None:
    """Forget pots whose period is long over."""
    for number in numbers:
        connection.execute(LEASE_POT.delete().where(LEASE_POT.c.number == number))
