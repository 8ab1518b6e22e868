"""How a file is encrypted: AES-256-GCM in chunks, under a key of its own that a master key seals.

Owns the bytes. Refuses to know paths, tenants and where keys are stored; chance is an argument.

A blob is `MDGFILE1`, seven random bytes, and chunks of 64 KiB, each with its tag. The nonce of a chunk is those seven
bytes, the chunk's number (four bytes, big endian) and a last byte that is 1 for the last chunk only: the STREAM
construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015), so that chunks can be neither swapped nor left out, nor the end
cut off. Every chunk also covers a context, the file's id, so that no blob passes for another.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from madang.core import Fault

KEY_BYTES = 32
CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
PREFIX_BYTES = 7
NONCE_BYTES = 12
MAGIC = b"MDGFILE1"
HEADER_BYTES = len(MAGIC) + PREFIX_BYTES
_KEY_CONTEXT = b"madang-file-key-v1\n"


class ChunkCipher:
    """Seals or opens the chunks of one blob, in order."""

    def __init__(self, key: bytes, prefix: bytes, context: str) -> None:
        """Begin at the first chunk.

        Args:
            key: KEY_BYTES, of this blob alone.
            prefix: PREFIX_BYTES of chance, stored in the blob's header.
            context: what the blob is, such as its id.
        """
        assert len(key) == KEY_BYTES
        assert len(prefix) == PREFIX_BYTES
        self._cipher = AESGCM(key)
        self._prefix = prefix
        self._context = context.encode()
        self._count = 0

    def seal(self, chunk: bytes, *, is_last: bool) -> bytes:
        """Return the next chunk, encrypted."""
        return self._cipher.encrypt(self._next_nonce(is_last), chunk, self._context)

    def open(self, chunk: bytes, *, is_last: bool) -> bytes:
        """Return the next chunk's content; raises Fault when it is not what was sealed."""
        try:
            return self._cipher.decrypt(self._next_nonce(is_last), chunk, self._context)
        except InvalidTag as error:
            raise Fault(f"chunk {self._count} of {self._context.decode()} is not what was stored") from error

    def _next_nonce(self, is_last: bool) -> bytes:
        nonce = self._prefix + self._count.to_bytes(4, "big") + bytes([is_last])
        self._count += 1
        return nonce


def seal_key(master: bytes, key: bytes, context: str, nonce: bytes) -> bytes:
    """Return a data key sealed by the master key; without both nobody reads the blob again.

    Args:
        master: KEY_BYTES.
        key: the data key.
        context: of the blob.
        nonce: NONCE_BYTES of chance.
    """
    return nonce + AESGCM(master).encrypt(nonce, key, _KEY_CONTEXT + context.encode())


def open_key(master: bytes, sealed: bytes, context: str) -> bytes:
    """Return a data key; raises Fault when the master key is another one or the seal is damaged."""
    nonce = sealed[:NONCE_BYTES]
    try:
        return AESGCM(master).decrypt(nonce, sealed[NONCE_BYTES:], _KEY_CONTEXT + context.encode())
    except (InvalidTag, ValueError) as error:
        raise Fault(
            f"the key of {context} does not open under this site's master key",
            next_step="restore files.key from its backup",
        ) from error
