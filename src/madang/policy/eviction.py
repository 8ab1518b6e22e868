"""Which artifacts leave a cache to make room: the least recently used that nobody runs or wants.

Owns the choice. Refuses to know files and to remove anything. Called by `madang.runtime.artifacts.room` before a fetch.

What is pinned never leaves, whatever is asked for. When the rest does not make enough room nothing leaves at all: a
fetch that fails anyway is no reason to lose what may be needed next.
"""

from collections.abc import Iterable

import msgspec


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A file in the cache, whole or unfinished.

    Attributes:
        used_at_s: wall time at which it was last used.
        is_pinned: somebody runs it, wants it or is fetching it.
    """

    sha256: str
    size_bytes: int
    used_at_s: float
    is_pinned: bool = False


class Eviction(msgspec.Struct, frozen=True, kw_only=True):
    """What leaves, in order; `short_bytes` is what is lacking although everything that may leave would."""

    leaving: tuple[str, ...] = ()
    short_bytes: int = 0


def choose_evictions(
    held: Iterable[Held], *, needed_bytes: int, quota_bytes: int, free_bytes: int, margin_bytes: int
) -> Eviction:
    """Return what must leave before `needed_bytes` more may come; least recently used first, ties by name.

    Args:
        held: what is in the cache.
        needed_bytes: what is to come.
        quota_bytes: what the cache may hold; 0 for as much as the disk has.
        free_bytes: of the disk.
        margin_bytes: of the disk, that must stay free.
    """
    items = list(held)
    over_bytes = needed_bytes + margin_bytes - free_bytes
    if quota_bytes:
        over_bytes = max(over_bytes, sum(item.size_bytes for item in items) + needed_bytes - quota_bytes)
    leaving = []
    for item in sorted((one for one in items if not one.is_pinned), key=lambda one: (one.used_at_s, one.sha256)):
        if over_bytes <= 0:
            break
        leaving.append(item.sha256)
        over_bytes -= item.size_bytes
    if over_bytes > 0:
        return Eviction(short_bytes=over_bytes)
    return Eviction(leaving=tuple(leaving))
