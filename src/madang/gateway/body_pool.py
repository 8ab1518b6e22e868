"""How many bytes of bodies a worker may hold at once, over all of its connections and ports.

Owns the count: of requests' bodies, and of answers that are kept until they are whole. Refuses to hold the bytes
themselves. A request's is held from the first piece of a body until the answer to it is complete, an answer's until the
client has taken it; what is streamed is not held. What is promised by a Content-Length is not counted, only what came:
a client that announces much and sends nothing takes nothing from others.

Answers may take a part more than bodies, so that many bodies do not make all work on them futile.
"""

ANSWERS_PART = 4
"""Answers may take a quarter of the bodies' room beyond it."""


class BodyPool:
    """The bytes of bodies that are held now, and the most that may be."""

    __slots__ = ("answers_bytes_max", "bytes_held", "bytes_max", "refusals")

    def __init__(self, bytes_max: int) -> None:
        """Begin with nothing held.

        Attributes:
            bytes_held: of all bodies together.
            bytes_max: over it nothing more of a request is taken.
            answers_bytes_max: over it nothing more of an answer is taken.
            refusals: pieces that were not taken.
        """
        self.bytes_held = 0
        self.bytes_max = bytes_max
        self.answers_bytes_max = bytes_max + bytes_max // ANSWERS_PART
        self.refusals = 0

    def take(self, size_bytes: int) -> bool:
        """Count a piece of a request that came; False, with nothing counted, when there is no room for it."""
        if self.bytes_held + size_bytes > self.bytes_max:
            self.refusals += 1
            return False
        self.bytes_held += size_bytes
        return True

    def take_answer(self, size_bytes: int) -> bool:
        """Count a piece of an answer that came; False, with nothing counted, when there is no room for it."""
        if self.bytes_held + size_bytes > self.answers_bytes_max:
            self.refusals += 1
            return False
        self.bytes_held += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Count pieces that are no longer held."""
        self.bytes_held -= size_bytes
        assert self.bytes_held >= 0
