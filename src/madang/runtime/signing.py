"""Ed25519 as a function, for code that may not know a library. Owns nothing; called where signatures are verified."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def is_signed_by(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether the holder of a public key (32 bytes) made a signature (64 bytes) over a message."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
