"""How many bytes of request bodies a worker may hold at once, over all of its connections and ports.

Owns the count. Refuses to hold the bytes themselves: each connection does, from the first piece of a body until the
answer to it is complete. What is promised by a Content-Length is not counted, only what came: a client that announces
much and sends nothing takes nothing from others.
"""


class BodyPool:
    """The bytes of bodies that are held now, and the most that may be."""

    __slots__ = ("bytes_held", "bytes_max", "refusals")

    def __init__(self, bytes_max: int) -> None:
        """Begin with nothing held.

        Attributes:
            bytes_held: of all bodies together.
            bytes_max: over it nothing more is taken.
            refusals: pieces that were not taken.
        """
        self.bytes_held = 0
        self.bytes_max = bytes_max
        self.refusals = 0

    def take(self, size_bytes: int) -> bool:
        """Count a piece that came; False, with nothing counted, when there is no room for it."""
        if self.bytes_held + size_bytes > self.bytes_max:
            self.refusals += 1
            return False
        self.bytes_held += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Count pieces that are no longer held."""
        self.bytes_held -= size_bytes
        assert self.bytes_held >= 0
