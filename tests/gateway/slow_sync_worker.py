"""A gateway worker whose disk is slow and tells when it has synced; started by tests in place of `madang.gateway`.

Only `os.fdatasync` is wrapped: the real one is called, then SLOW_S pass, then one line with the descriptor's file and
the time on the monotonic clock, in nanoseconds, is added to the file that MADANG_TEST_SYNCS names.
"""

import os
import sys
import time
from pathlib import Path

from madang.gateway.app import main

SLOW_S = 0.25


def run() -> int:
    """Run the worker as its command line says."""
    real = os.fdatasync
    with open(os.environ["MADANG_TEST_SYNCS"], "a", buffering=1, encoding="utf-8") as told:

        def fdatasync(descriptor: int) -> None:
            real(descriptor)
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            time.sleep(SLOW_S)  # the disk that this plays; nothing here waits for a condition
            told.write(f"{name} {time.monotonic_ns()}\n")

        os.fdatasync = fdatasync
        words = sys.argv
        return main(Path(words[words.index("--config") + 1]), int(words[words.index("--worker") + 1]))


if __name__ == "__main__":
    sys.exit(run())
