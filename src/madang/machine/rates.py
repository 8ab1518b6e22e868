"""Limits per minute: how much of one is used, when there is room again, when all of it is back.

Owns the arithmetic. Refuses to know keys, tables and clocks. Called by the gateway's rate table.

Use is counted in fixed minutes, of which two are kept. What the former minute used fades evenly while the present one
passes: `used = present + former * (what is left of the minute)`, rounded up. So a count is two numbers, sums over
workers are sums, and in no fixed minute is more admitted than the limit; in a minute that begins at another instant it
can be twice the limit at most, as with every bucket that may be emptied at once.
"""

MINUTE_MS = 60_000


def aged(present: int, former: int, minutes: int) -> tuple[int, int]:
    """Return both counts so many minutes after they were written; a count from the future is none."""
    if minutes == 0:
        return present, former
    return 0, present if minutes == 1 else 0


def used_of(present: int, former: int, elapsed_ms: int) -> int:
    """Return what is used of a limit now.

    Args:
        present: what the present minute used.
        former: what the minute before used.
        elapsed_ms: of the present minute, 0 to MINUTE_MS - 1.
    """
    return present - (-former * (MINUTE_MS - elapsed_ms) // MINUTE_MS)


def has_room(used: int, needed: int, limit: int) -> bool:
    """Return whether a request may use `needed` more.

    One that needs more than the limit itself could never begin; it may while anything is left, and by what it then
    takes keeps the others out. So the limit is exceeded by less than one such request.
    """
    return used + needed <= limit if needed <= limit else used < limit


def wait_ms(present: int, former: int, elapsed_ms: int, needed: int, limit: int) -> int:
    """Return after how long `has_room` holds if nobody uses anything meanwhile; 0 when it does now."""
    target = limit - needed if needed <= limit else limit - 1
    if used_of(present, former, elapsed_ms) <= target:
        return 0
    if target < 0:
        return 2 * MINUTE_MS - elapsed_ms  # a limit of 0 never has room: no sooner than everything has faded
    if present <= target:
        return _fades_at(former, target - present) - elapsed_ms
    return MINUTE_MS - elapsed_ms + _fades_at(present, target)


def _fades_at(count: int, target: int) -> int:
    """Return how far into a minute the former one's count has faded to `target`, rounded up."""
    return max(0, MINUTE_MS - target * MINUTE_MS // count)


def clear_ms(present: int, former: int, elapsed_ms: int) -> int:
    """Return after how long all of the limit is back if nobody uses anything meanwhile."""
    if present:
        return 2 * MINUTE_MS - elapsed_ms
    return MINUTE_MS - elapsed_ms if former else 0


def span_text(ms: int) -> str:
    """Return a span as OpenAI's headers have it, in whole seconds rounded up: `0s`, `17s`, `1m42s`."""
    minutes, seconds = divmod(-(-ms // 1000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
