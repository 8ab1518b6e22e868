"""How fast bytes may pass: a bucket that fills at a rate and lets a sender go into debt for one piece.

Owns the arithmetic. Refuses to wait and to read time. Called by transfers, one bucket for a site's line and one for
each source. A rate of 0 means no limit.

Debt, not refusal: a piece that is on the wire has come, whatever the bucket says; whoever took it waits until the
bucket is out of debt. So over any span the bytes that pass are at most `rate × span + burst + one piece`.
"""

import msgspec

_NS = 1_000_000_000


class TokenBucket(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket at one instant.

    Attributes:
        rate_bytes_s: how fast it fills; 0 for no limit.
        burst_bytes: how much it holds.
        level_bytes: what is in it; negative is debt.
        at_ns: the instant.
    """

    rate_bytes_s: int
    burst_bytes: int
    level_bytes: float
    at_ns: int


def fill_bucket(rate_bytes_s: int, now_ns: int, *, burst_bytes: int = 1024 * 1024) -> TokenBucket:
    """Return a full bucket."""
    return TokenBucket(rate_bytes_s=rate_bytes_s, burst_bytes=burst_bytes, level_bytes=float(burst_bytes), at_ns=now_ns)


def take_bytes(bucket: TokenBucket, count: int, now_ns: int) -> tuple[TokenBucket, int]:
    """Return the bucket after `count` bytes have passed, and how many nanoseconds to wait before the next piece."""
    if bucket.rate_bytes_s <= 0:
        return bucket, 0
    # A clock that stands still or goes back fills nothing.
    passed_ns = max(0, now_ns - bucket.at_ns)
    level = min(float(bucket.burst_bytes), bucket.level_bytes + passed_ns * bucket.rate_bytes_s / _NS) - count
    after = msgspec.structs.replace(bucket, level_bytes=level, at_ns=max(now_ns, bucket.at_ns))
    return after, 0 if level >= 0 else round(-level * _NS / bucket.rate_bytes_s)
