"""Which counter of the in-flight table belongs to which replica.

Owns the assignment: stable while a replica exists, bounded, and slow to use a freed counter again, since requests
of the replica that left may still be counted there. Refuses to know the table's files. Called by the site process,
which stores the assignment, so that a restart moves nothing.
"""

from collections.abc import Iterable

import msgspec

SLOTS_MAX = 256
"""Counters in one worker's in-flight table."""


class SlotTable(msgspec.Struct, frozen=True, kw_only=True):
    """Slots by replica id, and where the search for the next free one begins."""

    slots: dict[str, int] = {}
    cursor: int = 0


def assign_slots(table: SlotTable, replica_ids: Iterable[str]) -> SlotTable:
    """Return a table with exactly these replicas, as far as there are slots; those that had one keep it.

    New ones get slots in alphabetical order, each the next free one after the last given out. A replica that finds
    no slot is not in the table: more than 256 engines at one site are not offered.
    """
    wanted = sorted(set(replica_ids))
    slots = {replica_id: table.slots[replica_id] for replica_id in wanted if replica_id in table.slots}
    taken = set(slots.values())
    cursor = table.cursor
    for replica_id in wanted:
        if replica_id in slots or len(taken) == SLOTS_MAX:
            continue
        while cursor in taken:
            cursor = (cursor + 1) % SLOTS_MAX
        slots[replica_id] = cursor
        taken.add(cursor)
        cursor = (cursor + 1) % SLOTS_MAX
    return SlotTable(slots=slots, cursor=cursor)
