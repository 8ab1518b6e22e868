"""A file on its way into a cache, as people and programs are shown it. Refuses to know sockets and disks."""

from enum import StrEnum

import msgspec


class TransferState(StrEnum):
    """What goes on with a file that is wanted and not here."""

    WAITING = "waiting"
    """Another program on the machine fetches it, or has just."""
    FETCHING = "fetching"
    FAILED = "failed"
    """The last try ended without it; what came stays, and it is tried again."""


class FileTransfer(msgspec.Struct, frozen=True, kw_only=True):
    """One file.

    Attributes:
        name, sha256, size_bytes: of the file, as the catalog has them.
        done_bytes: what is here, verified or not.
        kept_bytes: of it, what an earlier try had finished and was not fetched again.
        rate_bytes_s: of the last seconds; 0 while nothing comes.
        source: who is asked, in words.
        wrong_chunks: chunks that were not what the manifest says, in this try.
        reason: why the last try failed; empty otherwise.
        began_at_s: wall time at which this try began.
    """

    name: str
    sha256: str
    size_bytes: int
    state: TransferState
    done_bytes: int = 0
    kept_bytes: int = 0
    rate_bytes_s: float = 0.0
    source: str = ""
    wrong_chunks: int = 0
    reason: str = ""
    began_at_s: float = 0.0
