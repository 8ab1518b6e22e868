"""Messages on NATS between hub and sites, and the subjects they travel on.

Owns subjects, shapes and JSON codecs. Refuses to know NATS itself. Every message carries kind and version; a
decoder ignores fields it does not know and raises Rejected for a kind or version it does not know.
"""

import hashlib
from typing import TypeVar

import msgspec

from madang.core import Rejected, SiteId
from madang.model import PriorityClass, UsageEvent
from madang.model.facility_site import SupplyContract

USAGE_EVENTS_PER_BATCH_MAX = 500
METER_ROWS_PER_BATCH_MAX = 500
"""Five days of one register."""
TABLES_BYTES_MAX = 128 * 1024
"""Of a site's own tariff files together."""
BATCH_BYTES_MAX = 512 * 1024
"""Half of NATS's default max_payload (1 MiB), so that headers and a growing event fit."""


class DesiredItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a site's desired state, as published in the KV bucket `desired`.

    Attributes:
        site: whose desired state it belongs to.
        kind: `site`, `tenant`, `project`, `key`, `key_policy`, `tariff`, `service`, `model` or `assignment`.
        item_id: unique within kind.
        generation: the site's generation at which this item last changed.
        spec: JSON of the fact in `madang.model` that `kind` names; empty object when deleted.
        sha256: hex digest of `spec`.
        is_deleted: a tombstone: the item is no longer wanted.
    """

    site: SiteId
    kind: str
    item_id: str
    generation: int
    spec: msgspec.Raw
    sha256: str
    is_deleted: bool = False


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="heartbeat"):
    """A site's proof of life, every few seconds on `hb.<site>`."""

    site: SiteId
    boot_id: str
    seq: int
    sent_at_s: float
    applied_generation: int
    state_hash: str
    outbox_depth: int
    oldest_unsent_age_s: float
    version: int = 1


class KexOffer(msgspec.Struct, frozen=True, kw_only=True):
    """One side of the key agreement between gateways of two sites.

    Attributes:
        epoch: names this key pair, `<boot id>-<counter>`.
        x25519: public key, 64 hex digits.
        expires_at_s: wall time after which passes under it are refused.
        signature: Ed25519 by the site's identity over `kex_bytes(...)`, 128 hex digits.
        alg, kid: `x25519+ed25519` and the first 16 hex digits of the identity key.
    """

    epoch: str
    x25519: str
    expires_at_s: float
    signature: str
    kid: str
    alg: str = "x25519+ed25519"


class ServiceLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy one service is at one site."""

    service: str
    replicas_ready: int
    slots: int
    in_flight: int


class Digest(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="digest"):
    """A site's load and key offers, several times a second on `digest.<site>`; holds no tenant's name.

    Attributes:
        shed_from: the class from which on its envelope lets it serve nobody; None: it serves all.
        is_spilling: power or cooling are short there; others come first.
    """

    site: SiteId
    boot_id: str
    seq: int
    sent_at_s: float
    services: tuple[ServiceLoad, ...]
    offers: tuple[KexOffer, ...]
    shed_from: PriorityClass | None = None
    is_spilling: bool = False
    version: int = 1


class UsageBatch(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="usage_batch"):
    """Up to 500 usage events on `usage.<site>.batch`; the receiver is idempotent by event id."""

    site: SiteId
    batch_id: str
    events: tuple[UsageEvent, ...]
    version: int = 1


class MeterRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the billed register said at one quarter of an hour, as the site keeps it.

    Attributes:
        at_s: the quarter of an hour, wall time.
        value_wh: None where nothing usable was read; it is never made up.
        read_at_s: when the device was read; None as above.
        quality: of the sample.
    """

    point_id: str
    at_s: int
    value_wh: float | None
    read_at_s: float | None
    quality: str
    is_simulated: bool


class MeterBatch(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="meter_batch"):
    """Closed quarters of an hour on `usage.<site>.meters`, oldest first; idempotent by meter and instant.

    Attributes:
        contract: what was agreed with the utility when these were read.
        tables: the site's own tariff files by name, as they are written.
    """

    site: SiteId
    contract: SupplyContract
    rows: tuple[MeterRow, ...]
    tables: dict[str, str] = {}
    version: int = 1


class ResyncPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="resync_part"):
    """One slice of a whole snapshot of desired state, requested on `cmd.<site>.resync`.

    The site buffers parts of one `resync_id` and applies all of them in one transaction with the last one; items
    it holds that the snapshot lacks are removed. A snapshot older than what the site applied is refused. `part`
    counts from 0; a part may come twice, and a new `resync_id` replaces what was buffered under another.
    """

    site: SiteId
    resync_id: str
    part: int
    parts: int
    generation: int
    items: tuple[DesiredItem, ...]
    version: int = 1


class CordonOrder(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="cordon_order"):
    """A change of cordons at a site, ordered by the hub on `cmd.<site>.cordon`.

    Attributes:
        verb: `cordon`, `uncordon`, or for a node `drain`.
        chip_id: empty for the whole node.
        actor: who wants it, for the site's audit log.
    """

    verb: str
    node: str
    chip_id: str = ""
    reason: str = ""
    actor: str = "admin"
    version: int = 1


class CommandReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="reply"):
    """What a site answers to a command."""

    is_ok: bool
    code: str = ""
    message: str = ""
    version: int = 1


class SiteStatus(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="site_status"):
    """The site's observed state on `status.<site>.observed`: JSON of chips and replicas, without engine keys.

    `nodes` has a row a node: its name, cordon, drain and the reason. `transfers` has a row for each file that is on its
    way into a cache of the site, `unplaced` one for each replica that is wanted and has no place, with the reason.
    """

    site: SiteId
    boot_id: str
    seq: int
    sent_at_s: float
    chips: tuple[msgspec.Raw, ...] = ()
    replicas: tuple[msgspec.Raw, ...] = ()
    nodes: tuple[msgspec.Raw, ...] = ()
    transfers: tuple[msgspec.Raw, ...] = ()
    unplaced: tuple[msgspec.Raw, ...] = ()
    version: int = 1


Message = Heartbeat | Digest | UsageBatch | MeterBatch | ResyncPart | CordonOrder | CommandReply | SiteStatus
T = TypeVar("T", bound=Message)

_encoder = msgspec.json.Encoder()


def encode(message: Message | DesiredItem) -> bytes:
    """Return the JSON bytes of a message."""
    return _encoder.encode(message)


def decode(data: bytes, kind: type[T]) -> T:
    """Return the message of type `kind` in `data`; raises Rejected naming what was wrong."""
    try:
        message = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Rejected(f"bus message is not a {kind.__name__}: {error}") from error
    if message.version != 1:
        raise Rejected(f"{kind.__name__} has version {message.version}; this release knows 1")
    return message


def decode_desired(data: bytes) -> DesiredItem:
    """Return a desired item and check its digest; raises Rejected when malformed or altered."""
    try:
        item = msgspec.json.decode(data, type=DesiredItem)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Rejected(f"desired item is malformed: {error}") from error
    found = hashlib.sha256(bytes(item.spec)).hexdigest()
    if found != item.sha256:
        raise Rejected(
            f"desired item {item.kind}/{item.item_id} is altered: expected sha256 {item.sha256}, found {found}"
        )
    return item


def make_desired_item(site: SiteId, kind: str, item_id: str, generation: int, fact: object | None) -> DesiredItem:
    """Return the item for `fact` (a struct of `madang.model`), or the tombstone when it is None."""
    spec = b"{}" if fact is None else msgspec.json.encode(fact, order="deterministic")
    return DesiredItem(
        site=site,
        kind=kind,
        item_id=item_id,
        generation=generation,
        spec=msgspec.Raw(spec),
        sha256=hashlib.sha256(spec).hexdigest(),
        is_deleted=fact is None,
    )


def state_hash(digests: dict[tuple[str, str], str]) -> str:
    """Return one SHA-256 over a site's live items, `{(kind, item_id): sha256}`; order does not matter."""
    lines = "".join(f"{kind}/{item_id} {digest}\n" for (kind, item_id), digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def kex_bytes(site: str, epoch: str, x25519: str, expires_at_s: float) -> bytes:
    """Return what a site signs to offer a key: domain, site, epoch, key and expiry, newline separated."""
    return f"madang-kex-v1\n{site}\n{epoch}\n{x25519}\n{expires_at_s:.3f}".encode()


def heartbeat_subject(site: str) -> str:
    """Return `hb.<site>`."""
    return f"hb.{site}"


def digest_subject(site: str) -> str:
    """Return `digest.<site>`."""
    return f"digest.{site}"


def usage_subject(site: str) -> str:
    """Return `usage.<site>.batch`."""
    return f"usage.{site}.batch"


def meters_subject(site: str) -> str:
    """Return `usage.<site>.meters`: in the stream of usage, so that readings wait and arrive as usage does."""
    return f"usage.{site}.meters"


def status_subject(site: str) -> str:
    """Return `status.<site>.observed`."""
    return f"status.{site}.observed"


def command_subject(site: str, verb: str) -> str:
    """Return `cmd.<site>.<verb>`."""
    return f"cmd.{site}.{verb}"


def reply_subject(site: str, nonce: str) -> str:
    """Return `reply.<site>.<nonce>`: where a site answers a command, so that the subject says who answered."""
    return f"reply.{site}.{nonce}"


def desired_subject(site: str, kind: str, item_id: str) -> str:
    """Return `$KV.desired.<site>.<kind>.<item_id>`."""
    return f"$KV.desired.{site}.{kind}.{item_id}"


def site_of_subject(subject: str) -> str:
    """Return the second token of `hb.<site>`, `usage.<site>.…`, `status.<site>.…`, `digest.<site>`."""
    tokens = subject.split(".", 2)
    if len(tokens) < 2:
        raise Rejected(f"subject {subject!r} names no site")
    return tokens[1]
