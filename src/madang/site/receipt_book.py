"""The site's receipts: a signed tree over each import of usage events, and the receipts that are read from it.

Owns the tables `receipt_tree` and `receipt_index`, their growth and their end. Refuses to know HTTP, and to decide
what a receipt is (`madang.wire.receipts` does). Trees are added in the importer's own transaction, so an event that
was imported has its receipt, and one that was not has none; the outbox may forget it later.

A tree keeps its leaves, compressed together: beside the random part of a request's id little is new in an event. The
index holds one number for each event, made of the request's time, so that it grows at its end only.
"""

import asyncio
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from madang.core import Clock, Fault, SiteId, Unavailable
from madang.model import UsageEvent
from madang.runtime.telemetry import EventLog
from madang.site.guard import GuardedStore
from madang.site.tables import RECEIPT_INDEX, RECEIPT_TREE
from madang.wire.merkle import make_proof, make_root
from madang.wire.receipts import (
    encode_event,
    encode_receipt,
    leaf_of,
    make_event,
    make_root_statement,
    root_bytes,
)

TREES_PER_PRUNE, LEAVES_PER_PRUNE = 64, 10_000
"""Deleted in one transaction, so that the importer never waits long behind it."""
PRUNE_PERIOD_S = 60.0
TREES_PER_REQUEST_MAX = 100
"""Looked at for one request: it has at most 99 attempts."""
_PACKING = 1
_TREE_BYTES_MAX = 64 * 1024 * 1024
"""Of one tree's leaves; an import holds some 16,000 events of under 1 KB."""
# What most events look like, so that a tree of one leaf is small too. It belongs to packing 1 and never changes.
_SAMPLE = (
    b'{"artifact_sha256":"","attempt":1,"audio_ms":0,"charge_micro_won":0,"chip_kind":"cpu","completion_tokens":10,'
    b'"duration_us":1000000,"endpoint":"/v1/chat/completions","entry_site":"","event_id":"","hops":0,'
    b'"is_estimated":false,"is_streamed":true,"key_id":"","model":"","outcome":"completed","overdraw_micro_won":0,'
    b'"priority":"interactive","project_id":"","prompt_tokens":100,"replica_id":"","request_id":"","service":"",'
    b'"site":"","started_at_us":1760000000000000,"tariff_id":"","tenant_id":"","ttft_us":100000}\n'
)
_PLACE_DIGITS = 15
# Ten times a second: composing the same statements anew would cost more than a signature.
_LAST_TREE = "SELECT seq FROM sqlite_sequence WHERE name = 'receipt_tree'"
_INSERT_TREE = (
    "INSERT INTO receipt_tree (tree_id, signed_at_us, size, root, public_key, signature, packing, events) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_DELETE_PLACES = "DELETE FROM receipt_index WHERE place = ? AND tree_id = ?"
_INSERT_PLACES = "INSERT OR IGNORE INTO receipt_index (place, tree_id) VALUES (?, ?)"


def place_of(request_id: str) -> int:
    """Return where a request stands in the index: 48 bits of its time and 12 of chance; any text has a place."""
    digits = request_id.rpartition("-")[2][:_PLACE_DIGITS]
    try:
        return int(digits, 16)
    except ValueError:
        return zlib.crc32(request_id.encode())


class ReceiptBook:
    """The receipts of one site."""

    def __init__(
        self,
        *,
        site: str,
        identity: Ed25519PrivateKey,
        store: GuardedStore,
        retention_s: float,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """Prepare; `add` is the importer's hook.

        Args:
            site: whose receipts they are.
            identity: its key; the site process alone has it.
            store: the site's database.
            retention_s: how long trees are kept.
            clock: wall time.
            log: told of what could not be deleted.
        """
        self._site = SiteId(site)
        self._identity = identity
        self._public_key = identity.public_key().public_bytes_raw()
        self._store = store
        self._retention_s = retention_s
        self._clock = clock
        self._log = log
        self.trees_total = 0
        self.events_total = 0
        self.pruned_total = 0

    def add(self, connection: sa.Connection, events: Sequence[UsageEvent], now_s: float) -> None:
        """Sign a tree over events and keep it, in the caller's transaction; some 10 us an event, 60 us a tree."""
        leaves = [encode_event(make_event(event)) for event in events]
        last = connection.exec_driver_sql(_LAST_TREE).scalar()
        tree_id = int(last or 0) + 1
        root_hash = make_root([leaf_of(leaf) for leaf in leaves])
        root = make_root_statement(self._site, tree_id, len(leaves), root_hash, round(now_s * 1e6), self._public_key)
        row = (
            tree_id,
            root.signed_at_us,
            root.size,
            root_hash,
            self._public_key,
            self._identity.sign(root_bytes(root)),
            _PACKING,
            _pack(leaves),
        )
        connection.exec_driver_sql(_INSERT_TREE, row)
        places = {place_of(event.request_id) for event in events}
        connection.exec_driver_sql(_INSERT_PLACES, [(place, tree_id) for place in sorted(places)])
        self.trees_total += 1
        self.events_total += len(events)

    async def find(self, request_id: str, attempt: int | None, tenant_id: str) -> bytes | None:
        """Return a receipt, or None when this site has none of that tenant.

        Args:
            request_id: of the request.
            attempt: which attempt at it; None for the last that was served here.
            tenant_id: whose it must be.

        Raises:
            Fault: what is stored of it is damaged.
        """
        return await self._store.read(lambda connection: _find(connection, self._site, request_id, attempt, tenant_id))

    async def run_prune(self) -> None:
        """Forget old trees for ever."""
        while True:
            try:
                removed = await self.prune()
            except (Unavailable, Fault) as error:
                self._log.warning("receipts_prune_failed", reason=error.message)
                removed = 0
            if removed < TREES_PER_PRUNE:
                await asyncio.sleep(PRUNE_PERIOD_S)

    async def prune(self) -> int:
        """Forget the oldest trees, up to TREES_PER_PRUNE, that are past the retention; return how many it were."""
        before_us = round((self._clock.wall_s() - self._retention_s) * 1e6)
        oldest_us = await self._store.read(_read_oldest_us)
        if oldest_us is None or oldest_us >= before_us:
            return 0
        removed = await self._store.write(lambda connection: _prune(connection, before_us))
        self.pruned_total += removed
        return removed


def _pack(leaves: Iterable[bytes]) -> bytes:
    packer = zlib.compressobj(1, zdict=_SAMPLE)
    return packer.compress(b"\n".join(leaves)) + packer.flush()


def _unpack(packing: int, tree_id: int, data: bytes) -> list[bytes]:
    """Return a tree's leaves; raises Fault when they are damaged or of a newer release."""
    if packing != _PACKING:
        raise Fault(f"receipt tree {tree_id} is packed as {packing}; this release knows {_PACKING}")
    unpacker = zlib.decompressobj(zdict=_SAMPLE)
    try:
        # No event holds a line break: JSON writes it as two characters.
        leaves = unpacker.decompress(data, _TREE_BYTES_MAX).split(b"\n")
    except zlib.error as error:
        raise Fault(f"receipt tree {tree_id} is damaged: {error}") from error
    if not unpacker.eof:
        raise Fault(f"receipt tree {tree_id} is damaged: its leaves end early")
    return leaves


class _Head(msgspec.Struct):
    """What is searched for in a leaf."""

    attempt: int
    request_id: str
    tenant_id: str


class _Found(NamedTuple):
    attempt: int
    row: Any
    leaves: list[bytes]
    leaf_index: int


_head_decoder = msgspec.json.Decoder(_Head)


def _attempt_of(leaf: bytes, request_id: str, tenant_id: str) -> int:
    """Return the attempt of a leaf that belongs to the request and the tenant, 0 for any other."""
    if request_id.encode() not in leaf:
        return 0
    head = _head_decoder.decode(leaf)
    return head.attempt if head.request_id == request_id and head.tenant_id == tenant_id else 0


def _find(
    connection: sa.Connection, site: SiteId, request_id: str, attempt: int | None, tenant_id: str
) -> bytes | None:
    query = (
        sa.select(RECEIPT_TREE)
        .join(RECEIPT_INDEX, RECEIPT_INDEX.c.tree_id == RECEIPT_TREE.c.tree_id)
        .where(RECEIPT_INDEX.c.place == place_of(request_id))
        .order_by(RECEIPT_TREE.c.tree_id.desc())
        .limit(TREES_PER_REQUEST_MAX)
    )
    best: _Found | None = None
    for row in connection.execute(query):
        leaves = _unpack(row.packing, row.tree_id, row.events)
        for index, leaf in enumerate(leaves):
            found = _attempt_of(leaf, request_id, tenant_id)
            if found and found == (attempt or found) and (best is None or found > best.attempt):
                best = _Found(found, row, leaves, index)
    if best is None:
        return None
    row, leaves, index = best.row, best.leaves, best.leaf_index
    root = make_root_statement(site, row.tree_id, row.size, row.root, row.signed_at_us, row.public_key)
    hashes = [leaf_of(leaf) for leaf in leaves]
    if make_root(hashes) != row.root:
        raise Fault(f"receipt tree {row.tree_id} is damaged: its leaves do not give its root")
    return encode_receipt(leaves[index], index, make_proof(hashes, index), root, row.public_key, row.signature)


def _read_oldest_us(connection: sa.Connection) -> int | None:
    return connection.scalar(sa.select(RECEIPT_TREE.c.signed_at_us).order_by(RECEIPT_TREE.c.tree_id).limit(1))


def _prune(connection: sa.Connection, before_us: int) -> int:
    query = sa.select(RECEIPT_TREE).order_by(RECEIPT_TREE.c.tree_id).limit(TREES_PER_PRUNE)
    removed = leaves_seen = 0
    for row in connection.execute(query).all():
        if row.signed_at_us >= before_us or leaves_seen > LEAVES_PER_PRUNE:
            break
        try:
            leaves = _unpack(row.packing, row.tree_id, row.events)
            places = {place_of(_head_decoder.decode(leaf).request_id) for leaf in leaves}
        except (Fault, msgspec.MsgspecError):
            places = set()  # its rows in the index lead nowhere from now on, which harms nobody
        if places:
            connection.exec_driver_sql(_DELETE_PLACES, [(place, row.tree_id) for place in places])
        connection.execute(RECEIPT_TREE.delete().where(RECEIPT_TREE.c.tree_id == row.tree_id))
        removed, leaves_seen = removed + 1, leaves_seen + row.size
    return removed
