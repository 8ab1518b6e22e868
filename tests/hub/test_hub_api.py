"""The hub's admin API as a client sees it, without NATS."""

import asyncio
import contextlib
import hashlib
import io

import httpx
import msgspec
import pytest
from tests.hub.hub_harness import TOKEN

from madang.core import SiteId
from madang.hub.app import make_app
from madang.hub.bootstrap import prepare_hub
from madang.hub.parts import make_parts
from madang.hub.settings import HubSettings
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.telemetry import EventLog
from madang.wire.bus import SiteStatus

CLINIC = {"tenant_id": "clinic", "title": "병원", "residency": {"scope": "site", "places": ["daegu"]}}
SITE = {"name": "daegu", "region": "yeongnam", "identity_ed25519": "a" * 64}
MODEL = {"name": "qwen2.5", "task": "chat", "title": "Qwen", "licence": "Apache-2.0"}


@contextlib.contextmanager
def hub_without_nats(folder, database):
    """Call the API of a hub that has a database and no NATS server."""
    settings = HubSettings(
        state_dir=folder / "hub",
        admin_token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
        artifact_dir=folder / "artifacts",
    )
    prepare_hub(settings)
    (settings.state_dir / "hub.db").write_bytes(database)
    log = EventLog(SystemClock(), io.StringIO())
    parts = make_parts(settings, SystemClock(), SystemEntropy(), log)
    app = make_app(parts)

    def call(method, path, body=None, *, token=TOKEN, headers=None, content=None):
        async def ask():
            transport = httpx.ASGITransport(app=app)
            auth = {"authorization": f"Bearer {token}"} if token else {}
            async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
                return await client.request(
                    method, path, json=body, content=content, headers={**auth, **(headers or {})}
                )

        return asyncio.run(ask())

    call.parts = parts
    yield call
    parts.store.close()


@pytest.fixture
def api(tmp_path, empty_database):
    with hub_without_nats(tmp_path, empty_database) as call:
        yield call


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory, empty_database):
    """A hub for requests that change nothing, shared."""
    with hub_without_nats(tmp_path_factory.mktemp("api"), empty_database) as call:
        yield call


def ok(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(answer, status, code, said=""):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "next_step"}
    assert error["code"] == code
    assert said in error["message"]


def test_the_whole_life_of_a_tenant(api):
    enrolled = ok(api("POST", "/api/v1/sites", SITE), 201)
    assert "BEGIN NATS USER JWT" in enrolled["creds"]
    ok(api("POST", "/api/v1/sites", SITE), 200)
    assert ok(api("POST", "/api/v1/tenants", CLINIC), 201)["title"] == "병원"
    ok(api("POST", "/api/v1/tenants", CLINIC), 200)
    key = ok(api("POST", "/api/v1/keys", {"tenant_id": "clinic"}), 201)
    shown = ok(api("GET", f"/api/v1/keys/{key['key_id']}"))
    assert "api_key" not in shown
    assert "sha256" not in shown
    assert ok(api("PATCH", f"/api/v1/keys/{key['key_id']}", {"expires_at_s": 5.5}))["expires_at_s"] == 5.5
    ok(api("POST", "/api/v1/models", MODEL), 201)
    ok(api("PUT", "/api/v1/services/chat", {"name": "chat", "model": "qwen2.5"}), 201)
    assert ok(api("GET", "/api/v1/services"))[0]["slots"] == 4
    refused(api("DELETE", "/api/v1/models/qwen2.5"), 409, "conflict", "service chat")
    ok(api("DELETE", "/api/v1/services/chat"))
    ok(api("DELETE", "/api/v1/models/qwen2.5"))
    refused(api("DELETE", "/api/v1/tenants/clinic"), 409, "conflict", "not revoked")
    assert ok(api("POST", f"/api/v1/keys/{key['key_id']}/revoke"))["is_revoked"] is True
    ok(api("DELETE", "/api/v1/tenants/clinic"))
    assert ok(api("GET", "/api/v1/keys")) == []
    status = ok(api("GET", "/api/v1/status"))
    assert status["sites"][0]["state"] == "never_seen"
    assert status["ledger"] == {"events": 0, "requests": 0, "refused": 0}
    audit = ok(api("GET", "/api/v1/audit"))
    assert [row["action"] for row in audit] == [
        "site.enrol",
        "site.issue_creds",
        "site.issue_creds",
        "tenant.put",
        "key.create",
        "key.expire",
        "model.put",
        "service.put",
        "service.delete",
        "model.delete",
        "key.revoke",
        "tenant.delete",
    ]
    assert key["api_key"] not in str(audit)
    assert enrolled["creds"].splitlines()[5] not in str(audit)
    assert ok(api("GET", "/api/v1/audit?after=10&limit=1"))[0]["seq"] == 11
    assert ok(api("GET", "/api/v1/audit/verify"))["rows"] == 12


PATHS = [
    ("GET", "/api/v1/status"),
    ("GET", "/api/v1/sites"),
    ("POST", "/api/v1/sites"),
    ("POST", "/api/v1/sites/daegu/revoke"),
    ("GET", "/api/v1/tenants"),
    ("GET", "/api/v1/projects"),
    ("POST", "/api/v1/projects"),
    ("GET", "/api/v1/keys"),
    ("POST", "/api/v1/keys"),
    ("GET", "/api/v1/tariffs"),
    ("POST", "/api/v1/tariffs"),
    ("GET", "/api/v1/models"),
    ("GET", "/api/v1/services"),
    ("GET", "/api/v1/nodes"),
    ("GET", "/api/v1/chips"),
    ("GET", "/api/v1/replicas"),
    ("GET", "/api/v1/usage"),
    ("GET", "/api/v1/usage/events"),
    ("GET", "/api/v1/usage/refused"),
    ("GET", "/api/v1/audit"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_every_route_wants_the_token(unchanged, method, path):
    refused(unchanged(method, path, token=None), 401, "invalid_token")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/api/v1/tenants", {"title": "x"}, 400, "tenant_id"),
        ("POST", "/api/v1/tenants", {**CLINIC, "data_class": "top"}, 400, "data_class"),
        ("POST", "/api/v1/tenants", {**CLINIC, "residency": {"scope": "galaxy"}}, 400, "residency.scope"),
        ("POST", "/api/v1/tenants", {**CLINIC, "tenant_id": "Über"}, 400, "tenant name"),
        ("POST", "/api/v1/tenants", [CLINIC], 400, "Expected `object`"),
        ("PUT", "/api/v1/tenants/other", CLINIC, 400, "in the path"),
        ("POST", "/api/v1/keys", {"tenant_id": "nobody"}, 404, "nobody"),
        ("PATCH", "/api/v1/keys/none", {"expires_at_s": None}, 404, "none"),
        ("PATCH", "/api/v1/keys/none", {}, 400, "expires_at_s"),
        ("POST", "/api/v1/keys/none/revoke", None, 404, "none"),
        ("DELETE", "/api/v1/tenants/none", None, 404, "none"),
        ("GET", "/api/v1/models/none", None, 404, "none"),
        ("GET", "/api/v1/services/none", None, 404, "none"),
        ("GET", "/api/v1/sites/none", None, 404, "none"),
        ("POST", "/api/v1/sites/none/revoke", None, 404, "none"),
        ("POST", "/api/v1/sites/none/cordon", None, 404, "none"),
        ("POST", "/api/v1/sites/none/resync", None, 404, "none"),
        ("POST", "/api/v1/sites", {**SITE, "identity_ed25519": "zz"}, 400, "identity_ed25519"),
        ("POST", "/api/v1/sites", {**SITE, "name": "no way"}, 400, "site name"),
        ("PUT", "/api/v1/services/chat", {"name": "chat", "model": "none"}, 400, "catalog"),
        ("PUT", "/api/v1/services/chat", {"name": "chat", "model": 5}, 400, "$.model"),
        ("GET", "/api/v1/usage?group_by=weather", None, 400, "weather"),
        ("GET", "/api/v1/usage?since_s=yesterday", None, 400, "since_s"),
        ("GET", "/api/v1/usage/events?limit=100000", None, 400, "limit"),
        ("GET", "/api/v1/audit?after=x", None, 400, "after"),
    ],
)
def test_bad_requests_are_named(unchanged, method, path, body, status, said):
    refused(unchanged(method, path, body), status, "not_found" if status == 404 else "invalid_request", said)


def test_a_body_over_the_limit_is_refused(unchanged):
    refused(unchanged("POST", "/api/v1/models", content=b"x" * (20 * 1024 * 1024)), 413, "request_too_large")


def test_a_name_held_by_another_identity_is_a_conflict(api):
    ok(api("POST", "/api/v1/sites", SITE), 201)
    refused(api("POST", "/api/v1/sites", {**SITE, "identity_ed25519": "b" * 64}), 409, "conflict", "another identity")
    ok(api("POST", "/api/v1/sites/daegu/cordon"))
    assert ok(api("GET", "/api/v1/sites/daegu"))["is_cordoned"] is True
    ok(api("POST", "/api/v1/sites/daegu/uncordon"))
    ok(api("POST", "/api/v1/sites/daegu/revoke"))
    assert ok(api("GET", "/api/v1/sites")) == []


def test_a_resync_without_a_link_says_so(api):
    ok(api("POST", "/api/v1/sites", SITE), 201)
    refused(api("POST", "/api/v1/sites/daegu/resync"), 503, "unavailable", "not connected")
    assert api("GET", "/readyz").status_code == 503


def test_usage_without_groups_is_the_totals(unchanged):
    answer = ok(unchanged("GET", "/api/v1/usage?group_by="))
    assert answer["rows"] == [answer["totals"]]


def test_artifacts_are_served_by_hash_in_ranges_and_nothing_else_is(api, tmp_path):
    content = bytes(range(256)) * 40
    digest = hashlib.sha256(content).hexdigest()
    folder = tmp_path / "artifacts" / digest[:2]
    folder.mkdir(parents=True)
    (folder / digest).write_bytes(content)
    whole = api("GET", f"/artifacts/{digest}", token=None)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["accept-ranges"] == "bytes"
    part = api("GET", f"/artifacts/{digest}", token=None, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(content)}"
    rest = api("GET", f"/artifacts/{digest}", token=None, headers={"range": "bytes=10000-"})
    assert rest.content == content[10000:]
    assert api("GET", f"/artifacts/{digest}", token=None, headers={"range": "bytes=99999-"}).status_code == 416
    head = api("HEAD", f"/artifacts/{digest}", token=None)
    assert (head.headers["content-length"], head.content) == (str(len(content)), b"")
    refused(api("GET", "/artifacts/" + "0" * 64, token=None), 404, "not_found")
    api.parts.artifacts.room.measure()
    sent = len(content) + 100 + len(content[10000:])
    metrics = api("GET", "/metrics", token=None).text.splitlines()
    for answer, count in (("whole", 1), ("range", 2), ("head", 1), ("not_found", 1), ("invalid_request", 1)):
        line = f'madang_hub_artifact_requests_total{{answer="{answer}",asker="anybody"}} {count:.1f}'
        assert line in metrics
    assert f'madang_hub_artifact_served_bytes_total{{asker="anybody"}} {sent:.1f}' in metrics
    assert "madang_hub_artifact_cache_files 1.0" in metrics
    for bad in ("..%2f..%2fhub.db", digest[:63], digest.upper()):
        assert api("GET", f"/artifacts/{bad}", token=None).status_code in (400, 404)


def test_the_document_names_every_route_and_every_body(unchanged):
    document = ok(unchanged("GET", "/openapi.json", token=None))
    for method, path in PATHS:
        generic = path.replace("/sites/daegu/", "/sites/{name}/")
        assert method.lower() in document["paths"][generic]
    named = "Tenant Residency Budget Project Service CatalogEntry Enrolment KeyRequest KeyLimits TariffRequest"
    for name in named.split():
        assert document["components"]["schemas"][name]["type"] == "object"


def test_metrics_name_this_program_only(unchanged):
    text = unchanged("GET", "/metrics", token=None).text
    assert "madang_hub_bus_connected 0.0" in text
    assert all(line.startswith(("#", "madang_hub_")) for line in text.splitlines())


def test_what_sites_say_of_transfers_and_of_replicas_without_a_place_is_listed(api):
    transfer = {"where": "site cache", "model": "qwen", "name": "q4.gguf", "done_bytes": 5, "size_bytes": 10}
    unplaced = {"replica_id": "chat-1", "service": "chat", "reason": "node n1 is cordoned"}
    status = SiteStatus(
        site=SiteId("daegu"),
        boot_id="b",
        seq=1,
        sent_at_s=0.0,
        transfers=(msgspec.Raw(msgspec.json.encode(transfer)),),
        unplaced=(msgspec.Raw(msgspec.json.encode(unplaced)),),
    )
    api.parts.observed.note_status(status, 0.0)
    for path, fact, query in (("transfers", transfer, "model=qwen"), ("unplaced", unplaced, "service=chat")):
        for rows in (api("GET", f"/api/v1/{path}").json(), api("GET", f"/api/v1/{path}?{query}").json()):
            (row,) = rows
            assert row.items() >= {**fact, "site": "daegu"}.items()
        assert api("GET", f"/api/v1/{path}?{query}x").json() == []
