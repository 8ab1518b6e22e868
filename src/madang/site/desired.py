"""Applied desired state: in the site's database, and decoded in memory for whoever reads it.

Owns which item is newer, what a snapshot replaces, and the state hash. Refuses to know how items travel. Called by
the pull agent and the command listener, which hand items over one after the other; read by the feed, the planner,
the peers and the API.

An item is taken when its generation is newer than what is held under its name, tombstones included, and newer than
the last snapshot if nothing is held. A snapshot replaces everything and is taken unless it is older than what was
applied. An item of a kind that this release does not know is kept as it came: the hash covers it, and the next
release will read it.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from madang.core import Conflict, Rejected
from madang.model import ApiKey, Assignment, CatalogEntry, KeyPolicy, Project, Service, Site, Tariff, Tenant
from madang.site.tables import DESIRED_ITEM, DESIRED_REFUSED, META
from madang.wire.bus import DesiredItem, state_hash

REFUSALS_MAX = 200
"""Rows kept of what was refused: enough to see what is wrong, not a place to fill a disk from outside."""
_APPLIED = "applied_generation"
_SNAPSHOT = "snapshot_generation"

_decoders: Mapping[str, tuple[msgspec.json.Decoder[msgspec.Struct], str]] = {
    "site": (msgspec.json.Decoder(Site), "name"),
    "tenant": (msgspec.json.Decoder(Tenant), "tenant_id"),
    "key": (msgspec.json.Decoder(ApiKey), "key_id"),
    "service": (msgspec.json.Decoder(Service), "name"),
    "model": (msgspec.json.Decoder(CatalogEntry), "name"),
    "assignment": (msgspec.json.Decoder(Assignment), "service"),
    "project": (msgspec.json.Decoder(Project), "project_id"),
    "key_policy": (msgspec.json.Decoder(KeyPolicy), "key_id"),
    "tariff": (msgspec.json.Decoder(Tariff), "tariff_id"),
}


class StoredItem(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `desired_item`."""

    kind: str
    item_id: str
    generation: int
    spec: bytes
    sha256: str
    is_deleted: bool


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What a transaction changed.

    Attributes:
        items: that were taken; with `is_snapshot` all there are.
        generation: applied generation after it.
        snapshot_generation: of the last whole snapshot that was applied; 0 when none ever was.
        is_snapshot: the items replace everything.
    """

    items: tuple[StoredItem, ...]
    generation: int
    snapshot_generation: int
    is_snapshot: bool = False


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """An item that was not taken, and why."""

    subject: str
    reason: str


def check_item(item: DesiredItem, site: str) -> StoredItem:
    """Return an item as it will be stored; raises Rejected unless it is ours and its fact can be read."""
    if item.site != site:
        raise Rejected(f"item {item.kind}/{item.item_id} is of site {item.site!r}, not of {site!r}")
    spec = bytes(item.spec)
    if not item.is_deleted:
        decode_fact(item.kind, item.item_id, spec)
    return StoredItem(
        kind=item.kind,
        item_id=item.item_id,
        generation=item.generation,
        spec=spec,
        sha256=item.sha256,
        is_deleted=item.is_deleted,
    )


def decode_fact(kind: str, item_id: str, spec: bytes) -> msgspec.Struct | None:
    """Return the fact of an item, None for a kind that is not known; raises Rejected when it is malformed."""
    known = _decoders.get(kind)
    if known is None:
        return None
    decoder, id_field = known
    try:
        fact = decoder.decode(spec)
    except msgspec.MsgspecError as error:
        raise Rejected(f"item {kind}/{item_id} is not a {kind}: {error}") from error
    named = getattr(fact, id_field)
    if named != item_id:
        raise Rejected(f"item {kind}/{item_id} holds the {kind} {named!r}")
    return fact


def apply_items(connection: sa.Connection, items: Sequence[StoredItem], now_s: float) -> Applied:
    """Store every item that is newer than what is held, and return those."""
    applied = _read_number(connection, _APPLIED)
    floor = _read_number(connection, _SNAPSHOT)
    key = sa.tuple_(DESIRED_ITEM.c.kind, DESIRED_ITEM.c.item_id)
    query = sa.select(DESIRED_ITEM.c.kind, DESIRED_ITEM.c.item_id, DESIRED_ITEM.c.generation)
    names = {(item.kind, item.item_id) for item in items}
    held = {(row.kind, row.item_id): row.generation for row in connection.execute(query.where(key.in_(names)))}
    taken: dict[tuple[str, str], StoredItem] = {}
    for item in items:
        name = (item.kind, item.item_id)
        if item.generation > held.get(name, floor):
            held[name] = item.generation
            taken[name] = item
            applied = max(applied, item.generation)
    if taken:
        rows = [{**msgspec.structs.asdict(item), "applied_at_s": now_s} for item in taken.values()]
        statement = insert(DESIRED_ITEM)
        changed = {column.name: statement.excluded[column.name] for column in DESIRED_ITEM.c if not column.primary_key}
        connection.execute(statement.on_conflict_do_update(index_elements=["kind", "item_id"], set_=changed), rows)
    _write_number(connection, _APPLIED, applied)
    return Applied(items=tuple(taken.values()), generation=applied, snapshot_generation=floor)


def apply_snapshot(connection: sa.Connection, generation: int, items: Sequence[StoredItem], now_s: float) -> Applied:
    """Replace everything by a snapshot.

    Raises:
        Conflict: the snapshot is older than what was applied; the hub must raise its generation first.
    """
    applied = _read_number(connection, _APPLIED)
    if generation < applied:
        raise Conflict(
            f"snapshot of generation {generation} is older than the applied generation {applied}",
            next_step="raise the site's generation at the hub above it, then resync",
        )
    connection.execute(DESIRED_ITEM.delete())
    rows = [{**msgspec.structs.asdict(item), "applied_at_s": now_s} for item in items if not item.is_deleted]
    if rows:
        connection.execute(DESIRED_ITEM.insert(), rows)
    _write_number(connection, _APPLIED, generation)
    _write_number(connection, _SNAPSHOT, generation)
    live = tuple(item for item in items if not item.is_deleted)
    return Applied(items=live, generation=generation, snapshot_generation=generation, is_snapshot=True)


def read_desired(connection: sa.Connection) -> Applied:
    """Return everything that is held, as a snapshot."""
    query = sa.select(*(column for column in DESIRED_ITEM.c if column.name != "applied_at_s"))
    items = tuple(StoredItem(**row._mapping) for row in connection.execute(query))
    return Applied(
        items=items,
        generation=_read_number(connection, _APPLIED),
        snapshot_generation=_read_number(connection, _SNAPSHOT),
        is_snapshot=True,
    )


def record_refusals(connection: sa.Connection, refusals: Iterable[Refusal], now_s: float) -> None:
    """Write refusals down, keeping the newest REFUSALS_MAX."""
    rows = [{"at_s": now_s, "subject": refusal.subject[:256], "reason": refusal.reason[:512]} for refusal in refusals]
    connection.execute(DESIRED_REFUSED.insert(), rows)
    newest = sa.select(sa.func.max(DESIRED_REFUSED.c.seq)).scalar_subquery()
    connection.execute(DESIRED_REFUSED.delete().where(DESIRED_REFUSED.c.seq <= newest - REFUSALS_MAX))


def read_refusals(connection: sa.Connection) -> list[dict[str, object]]:
    """Return what was refused, newest first."""
    query = sa.select(DESIRED_REFUSED).order_by(DESIRED_REFUSED.c.seq.desc()).limit(REFUSALS_MAX)
    return [dict(row._mapping) for row in connection.execute(query)]


def read_meta(connection: sa.Connection, name: str) -> str:
    """Return a value of `meta`, or an empty string."""
    return connection.scalar(sa.select(META.c.value).where(META.c.name == name)) or ""


def write_meta(connection: sa.Connection, name: str, value: str) -> None:
    """Set a value of `meta`."""
    statement = insert(META).values(name=name, value=value)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))


def _read_number(connection: sa.Connection, name: str) -> int:
    return int(read_meta(connection, name) or 0)


def _write_number(connection: sa.Connection, name: str, value: int) -> None:
    write_meta(connection, name, str(value))


class DesiredView:
    """The applied state in memory. Written by the one task that applies; everybody else only reads."""

    def __init__(self) -> None:
        self.generation = 0
        self.snapshot_generation = 0
        self.sites: dict[str, Site] = {}
        self.tenants: dict[str, Tenant] = {}
        self.keys: dict[str, ApiKey] = {}
        self.services: dict[str, Service] = {}
        self.models: dict[str, CatalogEntry] = {}
        self.assignments: dict[str, Assignment] = {}
        self.projects: dict[str, Project] = {}
        self.key_policies: dict[str, KeyPolicy] = {}
        self.tariffs: dict[str, Tariff] = {}
        self.unreadable: dict[tuple[str, str], str] = {}
        """Items that are held and that this release cannot read, with the reason."""
        self._digests: dict[tuple[str, str], str] = {}
        self._hash: str | None = None

    def take(self, applied: Applied) -> None:
        """Follow a committed transaction; transactions must be given in the order of their commits."""
        if applied.is_snapshot:
            self._clear()
        for item in applied.items:
            self._take_item(item)
        self.generation = applied.generation
        self.snapshot_generation = applied.snapshot_generation
        self._hash = None

    def _clear(self) -> None:
        for kind in _decoders:
            self._facts_of(kind).clear()
        self.unreadable.clear()
        self._digests.clear()

    def _take_item(self, item: StoredItem) -> None:
        key = (item.kind, item.item_id)
        facts = self._facts_of(item.kind)
        self.unreadable.pop(key, None)
        if item.is_deleted:
            self._digests.pop(key, None)
            facts.pop(item.item_id, None)
            return
        self._digests[key] = item.sha256
        try:
            fact = decode_fact(item.kind, item.item_id, item.spec)
        except Rejected as error:
            # Only after a downgrade: what came in was checked, by a release that knew more.
            fact = None
            self.unreadable[key] = error.message
        if fact is None:
            facts.pop(item.item_id, None)
            self.unreadable.setdefault(key, f"kind {item.kind!r} is not known to this release")
        else:
            facts[item.item_id] = fact

    def _facts_of(self, kind: str) -> dict[str, msgspec.Struct]:
        named: dict[str, object] = {
            "site": self.sites,
            "tenant": self.tenants,
            "key": self.keys,
            "service": self.services,
            "model": self.models,
            "assignment": self.assignments,
            "project": self.projects,
            "key_policy": self.key_policies,
            "tariff": self.tariffs,
        }
        found = named.get(kind, {})
        assert isinstance(found, dict)
        return found

    @property
    def state_hash(self) -> str:
        """Return the hash over all live items, computed once per change."""
        if self._hash is None:
            self._hash = state_hash(self._digests)
        return self._hash
