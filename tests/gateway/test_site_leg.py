"""What the gateway hands to its own site process: a real worker, a real internal application behind it."""

import asyncio
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from tests.gateway.lab import CITY, CLINIC, Lab, LabSite, LabTenant, residency, wait_until

from madang.core import Rejected
from madang.runtime.admin_http import AdminServer
from madang.runtime.clock import SystemClock
from madang.runtime.files import write_secret
from madang.runtime.telemetry import EventLog
from madang.site.internal import Doors, caller_of, make_internal_app, object_response
from madang.wire.openai_errors import ApiError, ErrorCode

TOKEN = b"gateway-token-of-the-test"
TRANSIT = LabTenant("transit", residency("site", "gumi", transit=True))
MIB = 1024 * 1024


@dataclass
class SiteProcess:
    """The real internal application with routes that show what reached them."""

    may_read: asyncio.Event = field(default_factory=asyncio.Event)
    seen_bytes: int = 0
    sent_bytes: int = 0
    gone: int = 0
    url: str = ""

    async def upload(self, request: Request) -> Response:
        caller = caller_of(request)
        if request.headers["content-type"] == "text/refuse":
            raise ApiError(ErrorCode.QUOTA_EXCEEDED, "too many files")
        await self.may_read.wait()
        digest = hashlib.sha256()
        try:
            async for piece in request.stream():
                self.seen_bytes += len(piece)
                digest.update(piece)
        except ClientDisconnect:
            self.gone += 1
            raise
        return object_response({"caller": caller, "sha256": digest.hexdigest(), "query": request.url.query})

    async def download(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(int(request.path_params["mib"])):
                self.sent_bytes += MIB
                yield b"x" * MIB

        return StreamingResponse(pieces(), media_type="application/octet-stream")

    async def other(self, request: Request) -> Response:
        return object_response({"query": request.url.query, "body": (await request.body()).decode()})

    async def serve(self) -> AdminServer:
        routes = [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files", self.other, methods=["GET"]),
            Route("/v1/files/{mib}/content", self.download, methods=["GET"]),
            Route("/v1/batches", self.other, methods=["POST"]),
        ]
        app = make_internal_app(routes, TOKEN, EventLog(SystemClock()))
        server = AdminServer(Doors(app, app), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{await server.start()}"
        return server


@pytest.fixture
def process(lab: Lab) -> Iterator[SiteProcess]:
    async def make() -> tuple[SiteProcess, AdminServer]:
        process = SiteProcess()
        process.may_read.set()
        return process, await process.serve()

    process, server = lab.run(make())
    yield process
    lab.loop.call_soon_threadsafe(process.may_read.set)
    lab.run(server.stop())


@pytest.fixture
def site(lab: Lab, process: SiteProcess, tmp_path: Path) -> LabSite:
    site = lab.site()
    write_secret(tmp_path / "token", TOKEN)
    lab.start(site, site_api_url=process.url, site_api_token_file=tmp_path / "token", upload_bytes_max=100 * MIB)
    return site


def test_an_upload_flows_through_with_its_owner(site: LabSite) -> None:
    body = bytes(range(256)) * 4096 * 20  # 20 MiB: over what a body that is kept may have
    answer = site.request("POST", "/v1/files?a=1", body, key=CLINIC.key)
    assert answer.status == 200
    assert answer.json["sha256"] == hashlib.sha256(body).hexdigest()
    assert answer.json["query"] == "a=1"
    caller = answer.json["caller"]
    assert (caller["tenant_id"], caller["key_id"], caller["data_class"]) == ("clinic", "clinic", "sensitive")
    assert answer.headers["x-request-id"] == caller["request_id"]
    assert answer.headers["x-madang-site"] == "daegu"


def test_a_chunked_upload_flows_through_and_its_size_is_limited(
    lab: Lab, site: LabSite, process: SiteProcess, tmp_path: Path
) -> None:
    small = lab.site("gumi")
    lab.start(small, site_api_url=process.url, site_api_token_file=tmp_path / "token", upload_bytes_max=2 * MIB)

    def send(where: LabSite, mib: int) -> bytes:
        with where.connect() as client:
            head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\n"
            client.sendall(head.encode() + b"content-type: x/y\r\ntransfer-encoding: chunked\r\n\r\n")
            try:
                for _ in range(mib):
                    client.sendall(b"%x\r\n%b\r\n" % (MIB, b"y" * MIB))
                client.sendall(b"0\r\n\r\n")
            except OSError:
                pass  # refused in the middle
            return client.recv(65536)

    assert hashlib.sha256(b"y" * 12 * MIB).hexdigest().encode() in send(site, 12)
    assert b" 413 " in send(small, 3)[:20]
    refused = small.request("POST", "/v1/files", headers={"content-length": str(3 * MIB)}, key=CITY.key)
    assert (refused.status, refused.error["code"]) == (413, "request_too_large")


def test_a_site_process_that_does_not_read_lets_the_client_wait(lab: Lab, site: LabSite, process: SiteProcess) -> None:
    lab.loop.call_soon_threadsafe(process.may_read.clear)
    wait_until(lambda: not process.may_read.is_set(), "the door is shut")
    # Else the kernel's own buffer grows to tens of megabytes and hides who waits.
    site.sockets["tenant"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    size = 96 * MIB
    with site.connect(timeout_s=0.5) as client:
        head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\n"
        client.sendall(head.encode() + b"content-type: x/y\r\ncontent-length: %d\r\n\r\n" % size)
        sent = 0
        try:
            while sent < size:
                sent += client.send(b"z" * min(65536, size - sent))
        except TimeoutError:
            pass
        assert 0 < sent < 64 * MIB, f"{sent} bytes were taken by somebody"  # the kernel holds up to 40 MiB on the way
        lab.loop.call_soon_threadsafe(process.may_read.set)
        client.settimeout(10)
        while sent < size:
            sent += client.send(b"z" * min(65536, size - sent))
        assert hashlib.sha256(b"z" * size).hexdigest().encode() in client.recv(65536)


def test_uploads_sent_ahead_of_answers_are_taken_in_order(site: LabSite) -> None:
    body = b"p" * (3 * MIB)
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\ncontent-type: x/y\r\n"
    upload = head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
    kept = upload.replace(b"POST /v1/files", b"POST /v1/batches")
    last = upload.replace(b"host: x", b"host: x\r\nconnection: close")
    with site.connect() as client:
        sender = threading.Thread(target=client.sendall, args=(upload + kept + last,))
        sender.start()
        answers = b"".join(iter(lambda: client.recv(1 << 20), b""))
        sender.join(10)
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(hashlib.sha256(body).hexdigest().encode()) == 2


def test_a_client_that_leaves_cuts_its_upload(site: LabSite, process: SiteProcess) -> None:
    with site.connect() as client:
        head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\n"
        client.sendall(head.encode() + b"content-type: x/y\r\ncontent-length: 1000000\r\n\r\n" + b"a" * 1000)
        wait_until(lambda: process.seen_bytes == 1000, "the first piece is there")
    wait_until(lambda: process.gone == 1, "the site process is told")


def test_an_upload_that_stalls_or_never_ends_is_closed_in_time(lab: Lab, process: SiteProcess, tmp_path: Path) -> None:
    site = lab.site()
    write_secret(tmp_path / "token", TOKEN)
    lab.start(
        site,
        site_api_url=process.url,
        site_api_token_file=tmp_path / "token",
        body_timeout_s=0.2,
        upload_timeout_s=0.5,
    )
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\ncontent-type: x/y\r\n"
    with site.connect() as client:
        client.sendall(head.encode() + b"content-length: 100\r\n\r\nstalls")
        assert b" 408 " in client.recv(65536)[:20]
    with site.connect(timeout_s=0.05) as client:
        client.sendall(head.encode() + b"content-length: 1000000\r\n\r\n")
        answer = b""

        def drip() -> bytes:
            nonlocal answer
            client.sendall(b"d")
            with contextlib.suppress(TimeoutError):
                answer = client.recv(65536)
            return answer

        wait_until(drip, "the endless upload is refused")
        assert b" 408 " in answer[:20]
    wait_until(lambda: process.gone == 2, "the site process is told of both")


def test_a_download_waits_for_a_client_that_does_not_read(site: LabSite, process: SiteProcess) -> None:
    with site.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(
            f"GET /v1/files/64/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CITY.key}\r\n\r\n".encode()
        )
        last = -1

        def is_still() -> bool:
            nonlocal last
            before, last = last, process.sent_bytes
            return 0 < last == before

        wait_until(is_still, "nothing more is sent")
        assert process.sent_bytes < 32 * MIB
        received = 0
        while received < 64 * MIB:
            received += client.recv(1 << 20).count(b"x")


def test_small_requests_pass_with_their_query(site: LabSite) -> None:
    assert site.request("GET", "/v1/files?limit=2&after=f", key=CITY.key).json == {
        "query": "limit=2&after=f",
        "body": "",
    }
    answer = site.request("POST", "/v1/batches", {"input_file_id": "가"}, key=CITY.key)
    assert json.loads(answer.json["body"]) == {"input_file_id": "가"}
    assert answer.headers["content-length"] == str(len(answer.body))
    refused = site.request("POST", "/v1/files", b"x", key=CITY.key, headers={"Content-Type": "text/refuse"})
    assert (refused.status, refused.error["code"]) == (429, "quota_exceeded")
    missing = site.request("GET", "/v1/batches/batch_x", key=CITY.key)
    assert missing.status == 404
    method = site.request("DELETE", "/v1/batches/batch_x", key=CITY.key)
    assert (method.status, method.headers["allow"]) == (405, "GET, POST")
    assert site.request("GET", "/v1/files/../../api/v1/status", key=CITY.key).status == 404


def test_nothing_goes_where_the_tenant_may_not(lab: Lab, site: LabSite, process: SiteProcess) -> None:
    gumi = lab.site("gumi")
    lab.tenants.append(TRANSIT)
    lab.start(gumi)
    site.refresh()
    refused = site.request("POST", "/v1/files", b"x" * 1000, key=TRANSIT.key)
    assert (refused.status, refused.error["code"]) == (403, "residency_violation")
    assert refused.error["madang"]["sites"] == [{"name": "gumi", "url": gumi.url}]
    assert site.request("GET", "/v1/files").status == 401
    assert process.seen_bytes == 0
    alone = gumi.request("POST", "/v1/batches", {}, key=TRANSIT.key)
    assert (alone.status, alone.error["code"]) == (503, "no_replica")
    assert "site_api_url" in alone.error["message"]


def test_a_mere_entry_names_sites_that_keep_batches(lab: Lab, site: LabSite) -> None:
    entry = lab.site("national", "national", is_entry_only=True)
    lab.start(entry)
    answer = entry.request("POST", "/v1/files", b"x", key=CITY.key)
    assert (answer.status, answer.error["code"]) == (400, "unsupported")
    assert answer.error["madang"]["sites"] == [{"name": "daegu", "url": site.url}]


def test_a_wrong_token_or_a_dead_process_is_503(lab: Lab, site: LabSite, process: SiteProcess, tmp_path: Path) -> None:
    write_secret(tmp_path / "token", b"another")
    answer = site.request("GET", "/v1/files", key=CITY.key)
    assert (answer.status, answer.error["code"]) == (503, "no_replica")
    write_secret(tmp_path / "token", TOKEN)
    assert site.request("GET", "/v1/files", key=CITY.key).status == 200
    assert [one["event"] for one in site.log.events if "site_process" in one["event"]] == [
        "gateway_site_process_silent",
        "gateway_site_process_answers",
    ]
    (tmp_path / "token").unlink()
    assert site.request("GET", "/v1/files", key=CITY.key).status == 503


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [(TOKEN, 0o644, "open to others"), (b"", 0o600, "no token"), (b"\xff", 0o600, "no text")],
)
def test_a_token_that_cannot_be_used_is_an_error_at_the_start(
    lab: Lab, tmp_path: Path, content: bytes, mode: int, said: str
) -> None:
    token = tmp_path / "token"
    token.write_bytes(content)
    token.chmod(mode)
    with pytest.raises(Rejected, match=said) as refused:
        lab.start(lab.site(), site_api_url="http://127.0.0.1:1", site_api_token_file=token)
    assert "site_api_token_file" in str(refused.value)


def test_a_token_that_is_not_there_yet_is_waited_for_and_told(lab: Lab, process: SiteProcess, tmp_path: Path) -> None:
    """The site process makes it at its first start, which may come after the gateway's."""
    site = lab.site()
    token = tmp_path / "later" / "token"
    lab.start(site, site_api_url=process.url, site_api_token_file=token)
    ready = site.request("GET", "/readyz", port="admin")
    assert (ready.status, len(ready.json["warnings"])) == (200, 1)
    assert str(token) in ready.json["warnings"][0]
    assert site.request("GET", "/v1/files", key=CITY.key).status == 503
    token.parent.mkdir()
    write_secret(token, TOKEN)
    assert site.request("GET", "/readyz", port="admin").json["warnings"] == []
    assert site.request("GET", "/v1/files", key=CITY.key).status == 200


def test_half_a_way_to_the_site_process_is_told(lab: Lab) -> None:
    site = lab.site()
    lab.start(site, site_api_url="http://127.0.0.1:1")
    assert "one is set without the other" in site.request("GET", "/readyz", port="admin").json["warnings"][0]
