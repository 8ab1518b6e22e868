"""Certificates for tests: a root of their own, and pairs that it vouches for."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_HOUR = timedelta(hours=1)


class Root:
    """Vouches for pairs; `file` is what clients trust."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name("a root of tests")
        now = datetime.now(UTC)
        builder = _builder(self.name, self.name, self.key, now - _HOUR, now + timedelta(days=30))
        self.certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True).sign(
            self.key, hashes.SHA256()
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        self.file = folder / "root.pem"
        self.file.write_bytes(self.pem)

    def client(self, **options: object) -> ssl.SSLContext:
        """How a client that trusts this root connects."""
        context = ssl.create_default_context(cafile=self.file)
        context.set_alpn_protocols(["h2", "http/1.1"])
        for name, value in options.items():
            setattr(context, name, value)
        return context

    def issue(
        self,
        folder: Path,
        *,
        begins: timedelta = -_HOUR,
        ends: timedelta = timedelta(days=30),
        passphrase: bytes = b"",
    ) -> tuple[Path, Path]:
        """Write a pair for this machine into `folder`, over an older one, and return its two files."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        leaf = (
            _builder(_name("daegu"), self.name, key, now + begins, now + ends)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        hidden: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            hidden = serialization.BestAvailableEncryption(passphrase)
        certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
        key_file.touch(mode=0o600)
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
        certificate_file.write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + self.pem)
        return certificate_file, key_file


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
