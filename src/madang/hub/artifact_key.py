"""The hub's key that signs manifests of artifacts.

Owns the seed's file and what is signed with it. Refuses to know manifests. Made by the hub's bootstrap, and by a hub
that is older than manifests when it starts.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from madang.core import Entropy, Rejected
from madang.runtime.files import read_secret, write_secret


@dataclass(frozen=True)
class ArtifactSigner:
    """A private key; its `repr` shows none of it."""

    _key: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"ArtifactSigner({self.public_hex!r})"

    @property
    def public_key(self) -> bytes:
        """Return the public key, 32 bytes."""
        return self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    @property
    def public_hex(self) -> str:
        """Return the public key as settings hold it."""
        return self.public_key.hex()

    def sign(self, message: bytes) -> bytes:
        """Return the signature over a message."""
        return self._key.sign(message)


def load_artifact_key(path: Path, entropy: Entropy) -> ArtifactSigner:
    """Return the key in `path`, making it when it is absent.

    Raises:
        Unavailable: the file cannot be read or written, or is open to others.
        Rejected: it is damaged.
    """
    if not path.exists():
        write_secret(path, entropy.token_bytes(32).hex().encode())
    try:
        return ArtifactSigner(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(read_secret(path).decode("ascii"))))
    except ValueError as error:
        raise Rejected(
            f"{path} is not an Ed25519 seed: expected 64 hex digits",
            next_step="restore it from a backup; with a new one, nodes must be given the new public key",
        ) from error
