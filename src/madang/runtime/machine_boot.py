"""Which boot of the machine this is. Owns nothing; called by whoever must not believe pages of before a power loss."""

import hashlib
from pathlib import Path

from madang.core import Unavailable

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


def read_boot(path: Path = BOOT_ID_FILE) -> int:
    """Return a 64-bit word that is another one after each boot; raises Unavailable where Linux does not tell."""
    try:
        text = path.read_bytes().strip()
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
