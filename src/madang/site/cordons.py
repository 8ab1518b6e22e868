"""Cordons that people set on nodes and chips of this site, hub or not.

Owns their stored form (one row of the table `meta`) and what an order changes, with its row in the audit log. Refuses
to decide what a cordon means: placement does. Called by the admin API, by the hub's command `cordon` and at the start.
"""

from typing import Any

import msgspec
import sqlalchemy as sa

from madang.core import ChipId, Clock, NodeId, Rejected
from madang.model import ChipCordon, CordonCause
from madang.runtime.admin_http import NotFound
from madang.runtime.telemetry import EventLog
from madang.site.audit import AUDIT_LOG
from madang.site.desired import read_meta, write_meta
from madang.site.guard import GuardedStore
from madang.site.node_link import NodeClient
from madang.site.nodes import NodeBook, NodeState, write_cordon
from madang.wire.bus import CordonOrder

NODE_VERBS = ("cordon", "uncordon", "drain")
CHIP_VERBS = ("cordon", "uncordon")
REASON_CHARS_MAX = 300
CORDONS_MAX = 1024
"""Chips of one site that may be cordoned by hand; several times what a container holds."""
_META = "cordons"


class StoredCordons(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the database: why a node is cordoned, and the chips of each node."""

    reasons: dict[NodeId, str] = {}
    chips: dict[NodeId, tuple[ChipCordon, ...]] = {}


def load_cordons(connection: sa.Connection, book: NodeBook) -> None:
    """Take what an earlier life stored; nodes that left the settings are ignored."""
    stored = _read(connection)
    for name, node in book.nodes.items():
        node.reason = stored.reasons.get(name, "")
        node.chip_cordons = stored.chips.get(name, ())


def _read(connection: sa.Connection) -> StoredCordons:
    text = read_meta(connection, _META)
    return msgspec.json.decode(text, type=StoredCordons) if text else StoredCordons()


def _write(connection: sa.Connection, stored: StoredCordons) -> None:
    write_meta(connection, _META, msgspec.json.encode(stored, order="deterministic").decode())


class Cordons:
    """Carries out orders.

    Args:
        site: our name.
        book: the nodes.
        clients: to reach them, for what a node's own rules did.
        store: where it is kept.
        clock: time.
        log: gets every change.
    """

    def __init__(
        self,
        *,
        site: str,
        book: NodeBook,
        clients: dict[NodeId, NodeClient],
        store: GuardedStore,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._site = site
        self._book = book
        self._clients = clients
        self._store = store
        self._clock = clock
        self._log = log

    async def carry_out(self, order: CordonOrder) -> NodeState:
        """Change a cordon and return the node; repeating an order is harmless.

        Raises:
            NotFound: this site has no such node or chip.
            Rejected: no such verb, a reason that is missing or too long, or too many cordons.
            Unavailable: the database cannot be written, or the node does not answer and its own rules cordoned the
                chip; then nothing changed.
        """
        node = self._book.nodes.get(NodeId(order.node))
        if node is None:
            known = ", ".join(sorted(self._book.nodes)) or "none"
            raise NotFound(f"site {self._site} has no node {order.node!r}; it has {known}")
        verbs = CHIP_VERBS if order.chip_id else NODE_VERBS
        if order.verb not in verbs:
            raise Rejected(f"{order.verb!r} is not something to do here; expected {', '.join(verbs)}")
        if len(order.reason) > REASON_CHARS_MAX:
            raise Rejected(f"the reason has {len(order.reason)} characters; at most {REASON_CHARS_MAX}")
        if order.chip_id:
            await self._change_chip(node, order)
        else:
            await self._change_node(node, order)
        self._book.changed.rise()
        self._log.info("cordon_changed", node=node.name, chip_id=order.chip_id, verb=order.verb, actor=order.actor)
        return node

    async def _change_node(self, node: NodeState, order: CordonOrder) -> None:
        now_s = self._clock.wall_s()
        is_cordoned, is_draining = order.verb != "uncordon", order.verb == "drain"
        reason = order.reason if is_cordoned else ""

        def write(connection: sa.Connection) -> None:
            write_cordon(connection, node.name, is_cordoned=is_cordoned, is_draining=is_draining, now_s=now_s)
            stored = _read(connection)
            _write(connection, msgspec.structs.replace(stored, reasons={**stored.reasons, node.name: reason}))
            _audit(connection, now_s, order, "node", node.name)

        await self._store.write(write)
        node.is_cordoned, node.is_draining, node.reason = is_cordoned, is_draining, reason

    async def _change_chip(self, node: NodeState, order: CordonOrder) -> None:
        chip_id = ChipId(order.chip_id)
        known = {chip.chip_id for chip in node.observed.chips} if node.observed is not None else {chip_id}
        if chip_id not in known | {cordon.chip_id for cordon in self._book.cordons(node)}:
            raise NotFound(f"node {node.name} has no chip {chip_id!r}; it has {', '.join(sorted(known)) or 'none'}")
        kept = tuple(cordon for cordon in node.chip_cordons if cordon.chip_id != chip_id)
        now_s = self._clock.wall_s()
        if order.verb == "cordon":
            if not order.reason.strip():
                raise Rejected("a chip is cordoned for a reason", next_step="say which: --reason TEXT")
            if sum(len(one.chip_cordons) for one in self._book.nodes.values()) >= CORDONS_MAX:
                raise Rejected(f"{CORDONS_MAX} chips are cordoned by hand already")
            made = ChipCordon(
                chip_id=chip_id, cause=CordonCause.BY_HAND, reason=order.reason, by=order.actor, since_s=now_s
            )
            kept = (*kept, made)
        elif any(cordon.chip_id == chip_id for cordon in self._book.node_cordons(node)):
            await self._clients[node.name].uncordon_chip(chip_id)

        def write(connection: sa.Connection) -> None:
            stored = _read(connection)
            _write(connection, msgspec.structs.replace(stored, chips={**stored.chips, node.name: kept}))
            _audit(connection, now_s, order, "chip", f"{node.name}/{chip_id}")

        await self._store.write(write)
        node.chip_cordons = kept


def _audit(connection: sa.Connection, now_s: float, order: CordonOrder, noun: str, target: str) -> None:
    detail: dict[str, Any] = {"reason": order.reason} if order.reason else {}
    AUDIT_LOG.append(
        connection, at_s=now_s, actor=order.actor, action=f"{noun}.{order.verb}", target=target, detail=detail
    )
