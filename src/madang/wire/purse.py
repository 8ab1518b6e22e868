"""The tables between a site process and its gateway workers that carry money: shapes and words, no files.

Owns the layout of both tables and the directory that says which slot is which pot. Refuses to open anything.

Three kinds of file in the feed folder, each with one writer:

* `purses.msgpack`, by the site process, replaced by rename: the pots that exist, each with its slot and number;
* `purse-grants-<worker>.bin`, by the site process: what one worker was granted, and what it shall give back;
* `purse-<worker>.bin`, by the worker: what it spent, reserved and gave back, and what a request lacks.

Every word is an aligned little-endian u64, so a reader sees an old or a new one, never a mixture. A number names a pot
for ever, and a slot is used again only long after its pot's period. Whoever takes a slot clears its number, then its
amounts, then writes the new number; a reader that finds the right number before and after has that pot's amounts.

A worker's table outlives its process but not the boot of its machine: a page that never reached the disk may be older
than what was spent. So a table belongs to one life, named in its head together with the boot; another life begins with
nothing, and what the former one held counts as spent.
"""

import re

import msgspec

from madang.core import Rejected
from madang.model.lease import PotKey

DIRECTORY_FILE = "purses.msgpack"
SLOTS_MAX = 16_384
"""Pots at one site at once; the two tables of a worker then span a megabyte of file that stays empty where unused."""
HEAD_WORDS = 8
MAGIC = 0x3130_4553_5255_504D
"""`MPURSE01`, little-endian."""

# Words of the heads.
MAGIC_WORD, LIFE_WORD, BOOT_WORD, RECALLS_WORD, USED_WORD = 0, 1, 2, 3, 4
"""RECALLS rises with every recall; USED is the number of slots from the first that a worker ever used."""

# Words of a slot in `purse-grants-<worker>.bin`.
GRANT_WORDS = 4
NUMBER, GRANTED, RECALL, HINT = 0, 1, 2, 3

# Words of a slot in `purse-<worker>.bin`; the first is NUMBER too.
WORKER_WORDS = 6
SPENT, RESERVED, RETURNED, NEEDED = 1, 2, 3, 4

GRANTS_BYTES = 8 * (HEAD_WORDS + SLOTS_MAX * GRANT_WORDS)
WORKER_BYTES = 8 * (HEAD_WORDS + SLOTS_MAX * WORKER_WORDS)
WORKER_NAME = re.compile(r"purse-([0-9]{1,3})\.bin\Z")

HINT_MORE = 0
"""More may come within moments."""
HINT_SPENT = 1
"""The budget is spent everywhere: the next period brings more."""
HINT_CUT = 2
"""The site cannot ask the hub, and what it holds is spent."""


class PotEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One pot of the site.

    Attributes:
        number: its own for ever.
        slot: where it is in the tables.
        starts_at_s, ends_at_s: its period, wall time.
    """

    key: PotKey
    number: int
    slot: int
    starts_at_s: float
    ends_at_s: float


class PurseDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """Every pot of the site, present, past that may still settle, and to come."""

    pots: tuple[PotEntry, ...] = ()
    version: int = 1


def grants_name(worker: int) -> str:
    """Return the name of a worker's table of grants."""
    return f"purse-grants-{worker}.bin"


def worker_name(worker: int) -> str:
    """Return the name of a worker's own table."""
    return f"purse-{worker}.bin"


def encode_directory(directory: PurseDirectory) -> bytes:
    """Return the bytes of the directory."""
    return msgspec.msgpack.encode(directory)


def decode_directory(data: bytes) -> PurseDirectory:
    """Return the directory in `data`; raises Rejected when it is none."""
    try:
        return msgspec.msgpack.decode(data, type=PurseDirectory)
    except msgspec.MsgspecError as error:
        raise Rejected(f"purse directory is malformed: {error}") from error
