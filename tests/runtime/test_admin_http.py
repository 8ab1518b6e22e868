"""The admin API's frame: token, error object, limits, health, and a port that is taken."""

import asyncio
import hashlib
import io
import socket

import httpx
import msgspec
import pytest
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter

from madang.core import Conflict, Fault, Rejected, Unavailable
from madang.runtime.admin_http import (
    BODY_BYTES_MAX,
    AdminServer,
    NotFound,
    json_response,
    make_admin_app,
    read_body,
    takes,
)
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog

TOKEN = "secret"
AUTH = {"authorization": f"Bearer {TOKEN}"}


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """A body."""

    count: int


ERRORS = {
    "rejected": (Rejected("bad", next_step="mend it"), 400, "invalid_request"),
    "missing": (NotFound("gone"), 404, "not_found"),
    "conflict": (Conflict("old"), 409, "conflict"),
    "unavailable": (Unavailable("later", retry_after_s=1.2), 503, "unavailable"),
    "fault": (Fault("broken"), 500, "fault"),
}


def make_app(problems=(), log=None, digest=hashlib.sha256(TOKEN.encode()).hexdigest()):  # noqa: B008
    router = APIRouter()

    @router.post("/count", openapi_extra=takes(Body))
    async def count(request: Request) -> Response:
        return json_response(await read_body(request, Body))

    @router.get("/raise/{name}")
    async def fail(name: str, times: int = 1) -> Response:
        if name == "bug":
            raise KeyError("a bug")
        raise ERRORS[name][0]

    registry = CollectorRegistry()
    Counter("madang_test_things_total", "Things.", registry=registry).inc()
    return make_admin_app(
        title="test",
        version="1",
        token_sha256=digest,
        log=log or EventLog(SystemClock(), io.StringIO()),
        registry=registry,
        find_problems=lambda: problems,
        routers=[router],
        structs=[Body],
    )


def ask(app, method, path, **kwargs):
    async def run():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, **kwargs)

    return asyncio.run(run())


def error_of(answer):
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "next_step"}
    return error


@pytest.mark.parametrize("name", ERRORS)
def test_each_class_of_error_has_its_status_and_the_one_shape(name):
    raised, status, code = ERRORS[name]
    answer = ask(make_app(), "GET", f"/raise/{name}", headers=AUTH)
    assert answer.status_code == status
    assert error_of(answer) == {"code": code, "message": raised.message, "next_step": raised.next_step}
    assert answer.headers.get("retry-after") == ("2" if name == "unavailable" else None)


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"authorization": "Bearer"}]
)
def test_without_the_token_nothing_is_said(headers):
    answer = ask(make_app(), "GET", "/raise/rejected", headers=headers)
    assert answer.status_code == 401
    assert error_of(answer)["code"] == "invalid_token"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_an_empty_digest_admits_nobody():
    app = make_app(digest="")
    assert ask(app, "GET", "/raise/rejected", headers={"authorization": "Bearer "}).status_code == 401


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `count`"),
        (b'{"count": "5"}', "Expected `int`, got `str` - at `$.count`"),
        (b"\xff", "not JSON"),
    ],
)
def test_a_bad_body_is_named_to_the_field(content, said):
    answer = ask(make_app(), "POST", "/count", content=content, headers=AUTH)
    assert answer.status_code == 400
    assert said in error_of(answer)["message"]


def test_bad_query_unknown_path_and_wrong_method_have_the_same_shape():
    app = make_app()
    answer = ask(app, "GET", "/raise/rejected?times=many", headers=AUTH)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_request")
    assert "query.times" in error_of(answer)["message"]
    answer = ask(app, "GET", "/nowhere", headers=AUTH)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    answer = ask(app, "GET", "/count", headers=AUTH)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")


def test_a_bug_is_logged_and_shows_nothing_of_itself():
    stream = io.StringIO()
    answer = ask(make_app(log=EventLog(SystemClock(), stream)), "GET", "/raise/bug", headers=AUTH)
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "KeyError" not in answer.text
    assert "KeyError" in stream.getvalue()


def test_a_body_at_the_limit_passes_and_one_byte_more_does_not():
    app = make_app()
    head = b'{"count": 1, "pad": "'
    fits = head + b"x" * (BODY_BYTES_MAX - len(head) - 2) + b'"}'
    assert len(fits) == BODY_BYTES_MAX
    assert ask(app, "POST", "/count", content=fits, headers=AUTH).status_code == 200
    answer = ask(app, "POST", "/count", content=fits + b" ", headers=AUTH)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


def test_a_body_without_a_length_is_cut_off_too():
    async def endless():
        for _ in range(BODY_BYTES_MAX // 65536 + 2):
            yield b"x" * 65536

    answer = ask(make_app(), "POST", "/count", content=endless(), headers=AUTH)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


def test_health_readiness_and_metrics_need_no_token():
    assert ask(make_app(), "GET", "/healthz").status_code == 200
    assert ask(make_app(), "GET", "/readyz").json() == {"is_ready": True, "problems": []}
    answer = ask(make_app(["NATS is away"]), "GET", "/readyz")
    assert (answer.status_code, answer.json()["problems"]) == (503, ["NATS is away"])
    assert "madang_test_things_total 1.0" in ask(make_app(), "GET", "/metrics").text


def test_the_document_describes_bodies():
    document = ask(make_app(), "GET", "/openapi.json").json()
    schema = document["paths"]["/count"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]["required"] == ["count"]


@pytest.mark.peer
def test_the_server_runs_in_the_loop_stops_and_gives_the_port_back():
    async def run():
        server = AdminServer(make_app(), "127.0.0.1", 0)
        port = await server.start()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
        await server.stop()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))

    asyncio.run(run())


@pytest.mark.peer
def test_a_taken_port_names_its_holder():
    async def run():
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(Rejected, match=rf"port {port} on 127.0.0.1 is taken by pid \d+"):
                await AdminServer(make_app(), "127.0.0.1", port).start()

    asyncio.run(run())
