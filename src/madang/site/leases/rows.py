"""Pots in the site's database. Owns their rows; refuses to change what they say."""

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from madang.machine.lease import SitePot
from madang.model.lease import PotKey
from madang.site.desired import read_meta, write_meta
from madang.site.tables import LEASE_POT

_LIFE = "lease_life"
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
    return [
        PotRow(
            number=row.number,
            key=msgspec.json.decode(row.key, type=PotKey),
            slot=row.slot,
            ends_at_s=row.ends_at_s,
            pot=_decoder.decode(row.state),
        )
        for row in connection.execute(sa.select(LEASE_POT).order_by(LEASE_POT.c.number))
    ]


def add_pots(connection: sa.Connection, keys: Iterable[tuple[PotKey, float]]) -> list[PotRow]:
    """Make pots, each with a number that none had before."""
    made = []
    for key, ends_at_s in keys:
        values = {"key": msgspec.json.encode(key).decode(), "slot": -1, "ends_at_s": ends_at_s, "state": b"{}"}
        number = connection.execute(LEASE_POT.insert().values(**values)).inserted_primary_key
        assert number is not None
        made.append(PotRow(number=number[0], key=key, slot=-1, ends_at_s=ends_at_s, pot=SitePot()))
    return made


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
