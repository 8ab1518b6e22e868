"""Key agreement between gateways: X25519 per epoch, offered under the site's identity, derived on both sides alike.

Owns epochs, offers, their verification and the session keys. Refuses to know how offers travel, where secrets are
stored and what time it is. Called by the site process; gateway workers get the finished sessions in their feed and
never see the identity.

An epoch lives two hours and a new one is made every hour, so a peer always holds one that both sides know. A new
epoch is offered at once and signs first only when it has settled: by then every linked peer has heard of it.
"""

import re
from collections.abc import Iterable, Sequence

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from madang.core import Rejected
from madang.wire.bus import KexOffer, kex_bytes
from madang.wire.feed import OWN_KID_PREFIX, PeerSession

EPOCH_ROTATE_S = 3600.0
EPOCH_LIFE_S = 2 * EPOCH_ROTATE_S
EPOCH_SETTLE_S = 10.0
"""Twenty digest periods: how long a new epoch is offered before it is preferred."""
EPOCHS_MAX = 3
"""Live at once: the newest, the one before, and one more while clocks are being set."""
OFFERS_MAX = 4
"""Of one peer that are looked at; more than it can have live."""
_CLOCK_SLACK_S = 60.0
_EPOCH_NAME = re.compile(r"[a-z0-9_-]{1,64}\Z")
_ALG = "x25519+ed25519"


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One key pair of ours; `secret_hex` never leaves this machine. Its `repr` hides it."""

    name: str
    secret_hex: str
    created_at_s: float
    expires_at_s: float

    def __repr__(self) -> str:
        return f"Epoch(name={self.name!r}, expires_at_s={self.expires_at_s})"


class KeyRing(msgspec.Struct, frozen=True, kw_only=True):
    """Our live epochs, newest first, as stored in `kex.json`."""

    epochs: tuple[Epoch, ...] = ()
    version: int = 1


def decode_ring(data: bytes) -> KeyRing:
    """Return the stored ring; raises Rejected when it is damaged or of a newer release."""
    try:
        ring = msgspec.json.decode(data, type=KeyRing)
    except msgspec.MsgspecError as error:
        raise Rejected("the stored key ring is damaged") from error
    if ring.version != 1:
        raise Rejected(f"the stored key ring has version {ring.version}; this release knows 1")
    return ring


def rotate(ring: KeyRing, *, boot_id: str, secret: bytes, now_s: float) -> KeyRing:
    """Return the ring as it should be now: expired epochs gone, a new one in front when the newest is an hour old.

    Args:
        ring: as it is.
        boot_id: names a new epoch, with a counter.
        secret: 32 unpredictable bytes, used only for a new epoch.
        now_s: wall time. Epochs from its future are dropped: the clock was wrong when they were made.
    """
    live = [
        epoch for epoch in ring.epochs if epoch.expires_at_s > now_s and epoch.created_at_s <= now_s + _CLOCK_SLACK_S
    ]
    if not live or now_s - live[0].created_at_s >= EPOCH_ROTATE_S:
        live.insert(0, _make_epoch(boot_id, live, secret, now_s))
    kept = tuple(live[:EPOCHS_MAX])
    return ring if kept == ring.epochs else KeyRing(epochs=kept)


def _make_epoch(boot_id: str, live: Sequence[Epoch], secret: bytes, now_s: float) -> Epoch:
    assert len(secret) == 32
    taken = {epoch.name for epoch in live}
    counter = next(number for number in range(len(taken) + 1) if f"{boot_id}-{number}" not in taken)
    # Not only the counter: an epoch that expired must not lend its name to another key.
    name = f"{boot_id}-{counter}-{int(now_s):x}"
    return Epoch(name=name, secret_hex=secret.hex(), created_at_s=now_s, expires_at_s=now_s + EPOCH_LIFE_S)


def load_identity(seed_hex: bytes) -> Ed25519PrivateKey:
    """Return the identity key from the text of `identity.key`; raises Rejected when it is not 64 hex digits."""
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed_hex.decode("ascii")))
    except ValueError as error:
        raise Rejected(
            "identity.key is not an Ed25519 seed: expected 64 hex digits",
            next_step="restore it from a backup, or remove it and enrol the site under a new name",
        ) from error


def identity_hex(identity: Ed25519PrivateKey) -> str:
    """Return the public identity key as the hub and other sites hold it."""
    raw = identity.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return raw.hex()


def make_offers(ring: KeyRing, identity: Ed25519PrivateKey, site: str) -> tuple[KexOffer, ...]:
    """Return the signed offers of every live epoch, newest first."""
    kid = identity_hex(identity)[:16]
    offers = []
    for epoch in ring.epochs:
        public = _secret_key(epoch).public_key()
        x25519 = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
        signature = identity.sign(kex_bytes(site, epoch.name, x25519, epoch.expires_at_s)).hex()
        offers.append(
            KexOffer(
                epoch=epoch.name, x25519=x25519, expires_at_s=epoch.expires_at_s, signature=signature, kid=kid, alg=_ALG
            )
        )
    return tuple(offers)


def check_offer(offer: KexOffer, site: str, identity_ed25519: str, *, now_s: float) -> None:
    """Raise Rejected unless `offer` is live and was signed by the identity that the hub knows of `site`."""
    if not identity_ed25519:
        raise Rejected(f"site {site} has no identity key yet")
    if offer.alg != _ALG:
        raise Rejected(f"offer of {site} is for {offer.alg[:40]!r}; this release knows {_ALG}")
    if not _EPOCH_NAME.match(offer.epoch):
        raise Rejected(f"offer of {site} has a malformed epoch name")
    if offer.expires_at_s <= now_s:
        raise Rejected(f"offer {offer.epoch} of {site} has expired: check the clocks of both sites")
    signed = kex_bytes(site, offer.epoch, offer.x25519, offer.expires_at_s)
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity_ed25519))
        public.verify(bytes.fromhex(offer.signature), signed)
    except (ValueError, InvalidSignature) as error:
        raise Rejected(f"offer {offer.epoch} of {site} is not signed by its identity key") from error


def derive_session(site: str, epoch: Epoch, peer: str, offer: KexOffer) -> PeerSession:
    """Return the session of our epoch with a peer's; the peer derives the same kid and key.

    Raises:
        Rejected: the offered key is malformed or a point of small order, which would make the secret public.
    """
    try:
        shared = _secret_key(epoch).exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(offer.x25519)))
    except ValueError as error:
        raise Rejected(f"offer {offer.epoch} of {peer} holds no usable X25519 key") from error
    (first, first_epoch), (second, second_epoch) = sorted([(site, epoch.name), (peer, offer.epoch)])
    info = f"madang-kex-v1\n{first}\n{first_epoch}\n{second}\n{second_epoch}".encode()
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(shared)
    return PeerSession(
        kid=f"{first_epoch}/{second_epoch}", key=key, expires_at_s=min(epoch.expires_at_s, offer.expires_at_s)
    )


def derive_own_session(site: str, epoch: Epoch) -> PeerSession:
    """Return the session of the site with itself in one epoch: for what the site process asks of its own gateway."""
    info = f"madang-own-v1\n{site}\n{epoch.name}".encode()
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(bytes.fromhex(epoch.secret_hex))
    return PeerSession(kid=f"{OWN_KID_PREFIX}{epoch.name}", key=key, expires_at_s=epoch.expires_at_s)


def choose_order(sessions: Iterable[tuple[Epoch, int, PeerSession]], *, now_s: float) -> tuple[PeerSession, ...]:
    """Return live sessions, the one to sign with first.

    Args:
        sessions: our epoch, the rank of the peer's offer (0 is its newest), and the session of both.
        now_s: wall time.
    """

    def rank(item: tuple[Epoch, int, PeerSession]) -> tuple[bool, float, int]:
        epoch, offer_rank, _ = item
        return (now_s - epoch.created_at_s < EPOCH_SETTLE_S, -epoch.created_at_s, offer_rank)

    live = [item for item in sessions if item[2].expires_at_s > now_s]
    return tuple(session for _, _, session in sorted(live, key=rank))


def _secret_key(epoch: Epoch) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(epoch.secret_hex))
