"""A federation with a root of its own: what the site process itself asks of peers that are dialled with TLS."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from tests.gateway.certificates import Root
from tests.gateway.lab import session_between

from madang.core import KeyId, ProjectId, Rejected, RequestId, SiteId, TenantId, make_request_id
from madang.model import ApiKey, DataClass, Residency, ResidencyScope, Site
from madang.runtime.clock import SystemClock
from madang.runtime.roots import load_roots
from madang.runtime.telemetry import EventLog
from madang.site.internal import InternalCaller
from madang.site.receipt_peers import PeerReceipts
from madang.site.round_trips import UNKNOWN_S, RoundTrips
from madang.wire.feed import Peer

T = TypeVar("T")
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return Root(tmp_path_factory.mktemp("root"))


def with_peer(root: Root, folder: Path, ask: Callable[[str], Awaitable[T]]) -> T:
    """Return what `ask` finds at the URL of a fake peer with a certificate of `root`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = b"" if head.startswith(b"HEAD ") else b"a receipt"
                writer.write(ANSWER % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> T:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*root.issue(folder))
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        async with server:
            return await ask(f"https://localhost:{server.sockets[0].getsockname()[1]}")

    return asyncio.run(main())


@pytest.mark.parametrize("is_trusted", [True, False])
def test_round_trips(root: Root, tmp_path: Path, is_trusted: bool) -> None:
    async def ask(url: str) -> float:
        roots = load_roots("peer_ca_file", root.file) if is_trusted else None
        trips = RoundTrips(lambda: {"gumi": url}, SystemClock(), roots)
        await trips.probe_all()
        return trips.round_trip_s("gumi")

    assert (with_peer(root, tmp_path, ask) != UNKNOWN_S) is is_trusted


@pytest.mark.parametrize("is_trusted", [True, False])
def test_receipts(root: Root, tmp_path: Path, is_trusted: bool) -> None:
    request_id = make_request_id(SiteId("daegu"), 1, bytes(10))
    key = ApiKey(key_id=KeyId("k"), sha256="", tenant_id=TenantId("t"), residency=Residency(scope=ResidencyScope.ANY))

    async def ask(url: str) -> bytes | None:
        peer = Peer(
            site=SiteId("gumi"), url=url, digest_age_s=0.1, services=(), sessions=(session_between("daegu", "gumi"),)
        )
        receipts = PeerReceipts(
            site="daegu",
            list_peers=lambda: (peer,),
            sites={"gumi": Site(name=SiteId("gumi"), region="r")},
            keys={"k": key},
            clock=SystemClock(),
            log=EventLog(SystemClock()),
            roots=load_roots("peer_ca_file", root.file) if is_trusted else None,
        )
        caller = InternalCaller(
            tenant_id=TenantId("t"),
            project_id=ProjectId(""),
            key_id=KeyId("k"),
            request_id=RequestId("daegu-x"),
            data_class=DataClass.SENSITIVE,
        )
        return await receipts.find(f"{request_id}.1", request_id, caller)

    assert with_peer(root, tmp_path, ask) == (b"a receipt" if is_trusted else None)


def test_a_file_that_cannot_be_used_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("empty.pem", "nowhere.pem"):
        with pytest.raises(Rejected, match=rf"peer_ca_file .*{name} cannot be used"):
            load_roots("peer_ca_file", tmp_path / name)
