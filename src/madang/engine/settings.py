"""What a node is told about its engines: where a vendor's programs are, and endpoints that others run.

Owns both shapes and what in them can be wrong by itself. Refuses secrets: only the files that hold them are named.
Part of the node's settings; handed to the drivers that need it.
"""

import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from madang.core import Rejected
from madang.model import DataClass, EngineFeature

CONTAINER_SOCKET = Path("/run/podman/podman.sock")
_FIELD_NAME = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~%-]*)+\Z")


class RuntimeKind(StrEnum):
    """How the programs of one vendor are kept from another's."""

    PROCESS = "process"
    """A child process with the interpreter of a virtual environment of its own."""
    CONTAINER = "container"
    """A container that Podman or Docker runs."""


class EngineRuntime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the programs of one engine are on this node: `[engine_runtimes.NAME]`.

    Attributes:
        kind: `process`, with a virtual environment of its own, or `container`.
        python: interpreter of that virtual environment; in a container, the one of its image.
        version: of the vendor's package; found by itself in a virtual environment, to be stated for an image.
        sdk_version: of the stack that compiled artifacts must match; empty where it is `version`, or found by itself.
        program: executable of an engine that is no Python package.
        env: variables to add, such as the folder of the vendor's libraries.
        memory_bytes_max: cap of one engine's memory; 0 for the node's own `engine_memory_bytes_max`.
        socket: where Podman or Docker listens.
        image: with its digest, `name@sha256:…`; it must be there, for it is never pulled.
        devices: device files or folders that the container gets, as the chip's driver page names them.
        seccomp: `default`, `unconfined`, or the absolute path of a profile; RNGD needs io_uring, which default forbids.
    """

    kind: RuntimeKind = RuntimeKind.PROCESS
    python: Path | None = None
    version: str = ""
    sdk_version: str = ""
    program: Path | None = None
    env: dict[str, str] = {}
    memory_bytes_max: int = 0
    socket: Path = CONTAINER_SOCKET
    image: str = ""
    devices: tuple[Path, ...] = ()
    seccomp: str = "default"


class ExternalEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint that somebody else runs at this site: `[external_endpoints.NAME]`, NAME being the artifact's id.

    Attributes:
        url: `https://host:port`, or with a path before `/v1`; `http` only to this machine, unless `is_plain_allowed`.
        is_at_site: whether it stands at this site. Residency is promised by site, so one elsewhere is refused.
        model: what it calls the model; empty where it takes the service's name.
        health_path: answers 200 while it can serve.
        metrics_path: Prometheus text with its load, passed on to whoever scrapes the engine; empty where there is none.
        features: what it can do beyond the plain endpoints, in the words of EngineFeature.
        has_streaming: whether it streams text.
        data_class_max: the highest class of data that it may see: `open`, or `sensitive` where whoever runs it answers
            for that.
        auth_file: holds the value of the header that lets us in, mode 0600; None where it asks for none.
        auth_header: the header's name.
        ca_file: certificates that its own must chain to; None for the machine's.
        is_plain_allowed: whether requests may cross the site's network unencrypted.
    """

    url: str
    is_at_site: bool
    model: str = ""
    health_path: str = "/health"
    metrics_path: str = ""
    features: tuple[EngineFeature, ...] = ()
    has_streaming: bool = True
    data_class_max: DataClass = DataClass.OPEN
    auth_file: Path | None = None
    auth_header: str = "authorization"
    ca_file: Path | None = None
    is_plain_allowed: bool = False


def identity_of_settings(settings: EngineRuntime | ExternalEndpoint) -> str:
    """Return settings as a text that is the same only for the same."""
    return msgspec.json.encode(settings, enc_hook=str, order="deterministic").decode()


def check_runtime(name: str, runtime: EngineRuntime) -> None:
    """Raise Rejected for a container without a pinned image, or a relative path."""
    where = f"engine_runtimes.{name}"
    for key, path in (("python", runtime.python), ("program", runtime.program), ("socket", runtime.socket)):
        if path is not None and not path.is_absolute():
            raise Rejected(f"{where}.{key}: expected an absolute path, found {path}")
    if runtime.kind is RuntimeKind.CONTAINER and "@sha256:" not in runtime.image:
        raise Rejected(f"{where}.image: expected NAME@sha256:DIGEST, found {runtime.image!r}")
    if runtime.seccomp not in ("default", "unconfined") and not runtime.seccomp.startswith("/"):
        raise Rejected(f"{where}.seccomp: expected default, unconfined or an absolute path, found {runtime.seccomp!r}")


def check_external(name: str, endpoint: ExternalEndpoint) -> None:
    """Raise Rejected for an endpoint that may not be registered, or whose description cannot be right."""
    where = f"external_endpoints.{name}"
    _check_url(where, endpoint)
    if not endpoint.is_at_site:
        raise Rejected(
            f"{where}: it does not stand at this site, so that no residency that names the site could be kept",
            next_step="register it with a node of the site where it stands",
        )
    if endpoint.data_class_max is DataClass.CLASSIFIED:
        raise Rejected(f"{where}.data_class_max: what we do not run ourselves never sees classified data")
    for key, path in (("health_path", endpoint.health_path), ("metrics_path", endpoint.metrics_path or "/")):
        if not _PATH.match(path):
            raise Rejected(f"{where}.{key}: expected a path such as /health, found {path[:80]!r}")
    if not _FIELD_NAME.match(endpoint.auth_header):
        raise Rejected(f"{where}.auth_header: expected a header's name, found {endpoint.auth_header[:80]!r}")
    for key, file in (("auth_file", endpoint.auth_file), ("ca_file", endpoint.ca_file)):
        if file is not None and not file.is_absolute():
            raise Rejected(f"{where}.{key}: expected an absolute path, found {file}")


def _check_url(where: str, endpoint: ExternalEndpoint) -> None:
    expected = f"{where}.url: expected https://host[:port][/path], found {endpoint.url[:120]!r}"
    try:
        parts = urlsplit(endpoint.url)
        has_port = parts.port is None or parts.port > 0
    except ValueError as error:
        raise Rejected(expected) from error
    is_bare = not (parts.username or parts.password or parts.query or parts.fragment) and has_port
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_bare:
        raise Rejected(expected)
    if parts.scheme == "http" and not (endpoint.is_plain_allowed or _is_loopback(parts.hostname)):
        raise Rejected(
            f"{where}.url: http would carry prompts over the network for everybody to read",
            next_step=f"use https, or set {where}.is_plain_allowed where the network is trusted",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
