"""Exclusive locks on files that readers probe.

A reader learns whether a writer lives by taking the shared lock for a moment. A writer that starts in that very
moment must not mistake the reader for another writer, so it asks a few times. Blocks; called at start and from the
usage log's thread.
"""

import fcntl
import time

TRIES_MAX = 50
TRY_PERIOD_S = 0.01


def take_lock(descriptor: int) -> None:
    """Take the exclusive flock of an open file; raises BlockingIOError when it stays taken for half a second."""
    for _ in range(TRIES_MAX - 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(TRY_PERIOD_S)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(descriptor: int) -> bool:
    """Return whether some live process holds the exclusive lock of an open file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
