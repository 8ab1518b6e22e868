"""Pure draws from a 64-bit seed, so that a replayed event draws the same values.

Owns the generator. Refuses to hold state across events: an extra draw in one place shifts nothing elsewhere.
"""

from dataclasses import dataclass

_MASK64 = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64 increment: Steele, Lea, Flood, OOPSLA 2014


def mix64(value: int) -> int:
    """Return the SplitMix64 finaliser of `value` (variant 13 constants), in [0, 2**64)."""
    value = (value + _GOLDEN_GAMMA) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def draw_unit(seed: int, index: int = 0) -> float:
    """Return the `index`-th uniform draw in [0, 1) of `seed`; the same arguments give the same value."""
    return (mix64((seed + index * _GOLDEN_GAMMA) & _MASK64) >> 11) / (1 << 53)


@dataclass
class Draw:
    """A short run of draws inside one brain step; make a new one for each event."""

    seed: int
    index: int = 0

    def unit(self) -> float:
        """Return the next uniform draw in [0, 1)."""
        value = draw_unit(self.seed, self.index)
        self.index += 1
        return value

    def below(self, bound: int) -> int:
        """Return the next draw as an integer in [0, bound); `bound` must be positive."""
        assert bound > 0
        return min(int(self.unit() * bound), bound - 1)
