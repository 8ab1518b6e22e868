"""A certificate and its key in two PEM files: read, checked, and read again when the files change.

Owns the judgement of a pair and the context made of it. Refuses to open sockets, to look by itself and to log. A pair
is taken whole or not at all: at first a wrong one is an error, later the one before is kept. Called by whoever serves
TLS: gateway workers, and the artifact port of a site. Imported only where TLS is asked for, since reading certificates
costs some megabytes of memory.
"""

import os
import ssl
import threading
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from madang.core import Clock, Rejected

PEM_BYTES_MAX = 256 * 1024
CHAIN_MAX = 10
CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2 only what keeps past traffic secret when the key is lost; those of TLS 1.3 all do."""
PROTOCOLS = ["http/1.1"]

Stamp = tuple[tuple[int, ...], ...]


class Pair(NamedTuple):
    """A certificate that was read and matches its key.

    Attributes:
        context: for new connections.
        not_after_s: its last second, wall clock.
        names: hosts it stands for.
    """

    context: ssl.SSLContext
    not_after_s: float
    names: tuple[str, ...]


def load_pair(certificate_file: Path, key_file: Path, now_s: float) -> Pair:
    """Return the pair in two PEM files: the certificate with its chain, and its key.

    Args:
        certificate_file: the site's certificate first, then those that vouch for it, each for the one before.
        key_file: its private key, without a passphrase, mode 0600.
        now_s: wall clock, in seconds.

    Raises:
        Rejected: a file is missing, open to others, no PEM, the two do not match, or the time is not right.
    """
    chain = _read_chain(certificate_file)
    key = _read(key_file, "key")
    mode = key_file.stat().st_mode
    if mode & 0o077:
        raise Rejected(
            f"TLS key {key_file} is open to others (mode {mode & 0o777:04o})", next_step=f"chmod 600 {key_file}"
        )
    if b"ENCRYPTED" in key:
        raise Rejected(
            f"TLS key {key_file} asks for a passphrase", next_step="keep it without one, readable by the gateway only"
        )
    leaf = chain[0]
    _check_time(certificate_file, leaf, now_s)
    return Pair(_make_context(certificate_file, key_file), leaf.not_valid_after_utc.timestamp(), _names(leaf))


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise Rejected(f"TLS {what} {path} cannot be read: {error.strerror}") from error
    if len(data) > PEM_BYTES_MAX:
        raise Rejected(f"TLS {what} {path} is over {PEM_BYTES_MAX} bytes")
    return data


def _read_chain(path: Path) -> list[x509.Certificate]:
    data = _read(path, "certificate")
    try:
        chain = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise Rejected(
            f"TLS certificate {path} holds no certificate: {error}", next_step="expected PEM, the site's own first"
        ) from error
    if len(chain) > CHAIN_MAX:
        raise Rejected(f"TLS certificate {path} holds {len(chain)} certificates, over {CHAIN_MAX}")
    for number, (one, issuer) in enumerate(pairwise(chain), start=1):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise Rejected(
                f"TLS certificate {path}: certificate {number + 1} does not vouch for certificate {number}",
                next_step="put the site's own first, then each one's issuer",
            ) from error
    return chain


def _check_time(path: Path, leaf: x509.Certificate, now_s: float) -> None:
    now = datetime.fromtimestamp(now_s, UTC)
    if leaf.not_valid_after_utc < now:
        raise Rejected(f"TLS certificate {path} expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if leaf.not_valid_before_utc > now:
        raise Rejected(
            f"TLS certificate {path} is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            next_step="look at this machine's clock",
        )


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = map(str, found.get_values_for_type(x509.IPAddress))
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def _make_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_1_2)
    context.set_alpn_protocols(PROTOCOLS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(certificate_file, key_file, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Rejected(f"TLS key {key_file} does not belong to the certificate in {certificate_file}") from error
        raise Rejected(f"TLS key {key_file} or certificate {certificate_file}: {error.reason or error}") from error
    except OSError as error:
        raise Rejected(f"TLS key {key_file} cannot be read: {error.strerror}") from error
    return context


class PairFiles:
    """The newest whole pair in two files; threads may share it."""

    def __init__(self, certificate_file: Path, key_file: Path, clock: Clock) -> None:
        """Read the pair; raises Rejected when there is none that can be used."""
        self._certificate, self._key = certificate_file, key_file
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = _stamp(certificate_file, key_file)
        self.pair = load_pair(certificate_file, key_file, clock.wall_s())

    def look(self) -> bool:
        """Take the files' pair if it is another one; return whether it is. Two stat calls when it is not.

        Raises:
            Rejected: the files changed and are no whole pair, said once; the one before stays. Between the writing of
                one file and the other this is normal, and the next look mends it.
        """
        with self._lock:
            seen = _stamp(self._certificate, self._key)
            if seen == self._seen:
                return False
            self._seen = seen
            self.pair = load_pair(self._certificate, self._key, self._clock.wall_s())
            return True


def _stamp(*paths: Path) -> Stamp:
    """Return what changes when a file does, its rights included; a missing file has a stamp too."""
    found: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.append(())
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size))
    return tuple(found)
