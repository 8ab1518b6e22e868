"""The certificate of the run, and clients that do nothing but shake hands.

Owns both. One key and certificate for every gateway, ECDSA on P-256, so that a handshake is the same work for all.
Clients trust anything and resume nothing: each handshake is a full one of TLS 1.3.
"""

import asyncio
import datetime
import ipaddress
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.gateway.loads import Load, Seen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFE = datetime.timedelta(days=30)
_OPEN_S_MAX = 20.0


class Certificate(NamedTuple):
    """PEM files of one pair; `joined` has both, as HAProxy wants them."""

    chain: Path
    key: Path
    joined: Path


def make_certificate(folder: Path) -> Certificate:
    """Write a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "madang bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain_pem = certificate.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made = Certificate(folder / "tls.crt", folder / "tls.key", folder / "tls.pem")
    for path, data in zip(made, (chain_pem, key_pem, chain_pem + key_pem), strict=True):
        path.touch(mode=0o600)
        path.write_bytes(data)
    return made


def client_context() -> ssl.SSLContext:
    """Return what clients of the bench use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


async def run_handshakes(load: Load, port: int, on_begin: Callable[[], None], on_end: Callable[[], None]) -> Seen:
    """Shake hands and leave, again and again; `done` counts handshakes."""
    loop = asyncio.get_running_loop()
    seen = Seen()
    context = client_context()
    is_over = False

    async def shake() -> None:
        while not is_over:
            begun_s = time.perf_counter()
            async with asyncio.timeout(_OPEN_S_MAX):
                transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port, ssl=context)
            seen.done += 1
            seen.first_s.append(time.perf_counter() - begun_s)
            transport.abort()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(load.connections):
            tasks.create_task(shake())
        await asyncio.sleep(load.warm_s)
        on_begin()
        seen.done = 0
        del seen.first_s[:]
        begun_s = time.perf_counter()
        await asyncio.sleep(load.measure_s)
        seen.duration_s = time.perf_counter() - begun_s
        result = Seen(seen.done, seen.bad, seen.first_s[:], duration_s=seen.duration_s)
        on_end()
        is_over = True
    return result
