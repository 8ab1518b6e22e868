"""The shared lock by which a reader learns that a file's writer is gone. Owns nothing; called on threads."""

import fcntl


def take_shared(descriptor: int) -> bool:
    """Take the shared lock of an open file if nobody holds the exclusive one; return whether that went."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
