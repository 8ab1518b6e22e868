"""Commands that speak to a hub: what they send, what they print, and how they fail."""

import json
import socket

import pytest

from madang.model import CatalogEntry, Service

CLINIC = {
    "tenant_id": "daegu-clinic",
    "title": "대구 의원",
    "residency": {"scope": "site", "places": ["daegu"], "is_transit_granted": False},
    "data_class": "sensitive",
}
STATUS = {
    "version": "0.1.0",
    "sites": [
        {
            "name": "daegu",
            "region": "yeongnam",
            "state": "connected",
            "heartbeat_age_s": 1.25,
            "desired_generation": 7,
            "applied_generation": 7,
            "in_sync": True,
            "outbox_depth": 0,
            "oldest_unsent_age_s": None,
            "tenant_url": "http://127.0.0.1:7710",
        }
    ],
    "ledger": {"events": 3, "requests": 2, "refused": 0},
}
LISTINGS = {
    ("site", "list"): ("/api/v1/status", STATUS, ["daegu", "connected", "7 of 7", "1.2s"]),
    ("tenant", "list"): ("/api/v1/tenants", {"tenants": [CLINIC]}, ["대구 의원", "site:daegu", "sensitive"]),
    ("key", "list"): (
        "/api/v1/keys",
        {"keys": [{"key_id": "k1", "tenant_id": "daegu-clinic", "expires_at_s": 0, "is_revoked": True}]},
        ["k1", "1970-01-01 00:00:00Z", "revoked"],
    ),
    ("model", "list"): (
        "/api/v1/models",
        {
            "models": [
                {
                    "name": "m",
                    "task": "chat",
                    "title": "M",
                    "licence": "MIT",
                    "artifacts": [
                        {"engine": "llama_cpp", "chip_kinds": ["cpu"], "files": [{"size_bytes": 3 * 2**20}]},
                    ],
                }
            ]
        },
        ["3 MiB", "llama_cpp", "MIT", "token"],
    ),
    ("service", "list"): (
        "/api/v1/services",
        {"services": [{"name": "madang-chat", "model": "m", "sites": [], "replicas_per_site": 1}]},
        ["madang-chat", "all"],
    ),
    ("node", "list"): (
        "/api/v1/nodes",
        {"nodes": [{"node": "daegu-1", "site": "daegu", "state": "ready", "chips": [1], "observed_age_s": 90}]},
        ["daegu-1", "1m30s"],
    ),
    ("chip", "list"): (
        "/api/v1/chips",
        {"chips": [{"chip_id": "cpu-0", "node": "daegu-1", "site": "daegu", "kind": "cpu", "utilisation": 0.5}]},
        ["cpu-0", "50%"],
    ),
    ("usage",): (
        "/api/v1/usage",
        {
            "rows": [{"tenant": "daegu-clinic", "service": "madang-chat", "requests": 2, "events": 3, "images": 7}],
            "totals": {"requests": 2, "events": 3, "prompt_tokens": 30, "completion_tokens": 40},
        },
        ["daegu-clinic", "madang-chat", "total", "40", "IMAGES", "7"],
    ),
    ("usage", "--group-by", "site"): (
        "/api/v1/usage",
        {"rows": [{"site": "gumi", "requests": 2, "events": 3}], "totals": {"requests": 2, "events": 3}},
        ["SITE", "gumi"],
    ),
    ("usage", "events"): (
        "/api/v1/usage/events",
        {"events": [{"started_at_s": 0, "request_id": "daegu-00", "outcome": "completed"}]},
        ["daegu-00", "completed", "1970-01-01"],
    ),
}


@pytest.mark.parametrize("words", LISTINGS, ids=" ".join)
def test_a_listing_is_a_table_or_the_apis_own_json(hub, ask, words):
    path, answer, expected = LISTINGS[words]
    hub.answers["GET", path] = (200, answer)
    table = ask(*words)
    assert table.exit_code == 0, table.output
    for text in expected:
        assert text in table.stdout
    found = json.loads(ask(*words, "--json").stdout)
    assert found == ({"sites": STATUS["sites"]} if words == ("site", "list") else answer)


def test_a_listing_that_the_api_answers_bare_reads_alike(hub, ask):
    hub.answers["GET", "/api/v1/tenants"] = (200, [CLINIC])
    assert json.loads(ask("tenant", "list", "--json").stdout) == {"tenants": [CLINIC]}


def test_an_empty_listing_says_so(hub, ask):
    hub.answers["GET", "/api/v1/tenants"] = (200, {"tenants": []})
    assert ask("tenant", "list").stdout == "tenants: none\n"


def test_a_tenant_is_created_with_its_residency(hub, ask):
    hub.answers["POST", "/api/v1/tenants"] = (201, CLINIC)
    done = ask("tenant", "create", "daegu-clinic", "--residency", "site:daegu", "--title", "대구 의원")
    assert done.exit_code == 0
    assert "madang key create --tenant daegu-clinic" in done.stdout
    residency = {"scope": "site", "places": ["daegu"], "is_transit_granted": False}
    body = {"tenant_id": "daegu-clinic", "title": "대구 의원", "residency": residency}
    assert hub.calls == [("POST", "/api/v1/tenants", "", body)]


def test_an_update_keeps_what_is_not_named(hub, ask):
    hub.answers["GET", "/api/v1/tenants/daegu-clinic"] = (200, CLINIC)
    hub.answers["PUT", "/api/v1/tenants/daegu-clinic"] = (200, CLINIC)
    assert ask("tenant", "update", "daegu-clinic", "--transit").exit_code == 0
    assert hub.calls[-1][3] == {**CLINIC, "residency": {**CLINIC["residency"], "is_transit_granted": True}}
    assert ask("tenant", "update", "daegu-clinic", "--residency", "nation:kr").exit_code == 0
    assert hub.calls[-1][3]["residency"] == {"scope": "nation", "places": ["kr"], "is_transit_granted": False}
    assert ask("tenant", "update", "daegu-clinic", "--redirect", "--data-class", "open").exit_code == 0
    assert hub.calls[-1][3] == {**CLINIC, "is_redirect_wanted": True, "data_class": "open"}


def test_a_site_is_marked(hub, ask):
    hub.answers["PUT", "/api/v1/sites/daegu/data-class"] = (200, {"name": "daegu", "data_class_max": "classified"})
    done = ask("site", "grade", "daegu", "--data-class", "classified")
    assert done.exit_code == 0, done.stderr
    assert "up to class classified" in done.stdout
    assert hub.calls == [("PUT", "/api/v1/sites/daegu/data-class", "", {"data_class_max": "classified"})]


@pytest.mark.parametrize("text", ["moon", "site:", "site:a,b", "region", "any:kr", ""])
def test_a_residency_that_is_none_is_refused_before_anything_is_sent(hub, ask, text):
    done = ask("tenant", "create", "x", "--residency", text)
    assert done.exit_code == 1
    assert "expected site:NAME" in done.stderr
    assert hub.calls == []


def test_a_key_is_printed_once_and_alone(hub, ask):
    made = {"key_id": "k1", "tenant_id": "t", "api_key": "mdg_k1_secret", "expires_at_s": 1.0}
    hub.answers["POST", "/api/v1/keys"] = (201, made)
    done = ask("key", "create", "--tenant", "t", "--expires", "2030-01-01")
    assert done.stdout == "mdg_k1_secret\n"
    assert hub.calls[0][3] == {"tenant_id": "t", "expires_at_s": 1893456000.0}
    assert json.loads(ask("key", "create", "--tenant", "t", "--json").stdout) == made


def test_a_key_ends_when_it_is_told_to(hub, ask):
    hub.answers["PATCH", "/api/v1/keys/k1"] = (200, {})
    assert ask("key", "expire", "k1", "--at", "never").stdout == "key k1 expires: never\n"
    assert hub.calls[-1][3] == {"expires_at_s": None}
    assert ask("key", "expire", "k1", "--at", "2030-01-01T09:00:00+09:00").exit_code == 0
    assert hub.calls[-1][3] == {"expires_at_s": 1893456000.0}
    assert ask("key", "expire", "k1", "--at", "soon").exit_code == 1


def test_the_key_of_a_demo_tenant_is_found_in_the_credentials(madang, tmp_path):
    residency = {"scope": "site", "places": ["daegu"]}
    tenants = [{"name": "daegu-clinic", "residency": residency, "api_key": "mdg_x"}]
    known = {"hub_url": "u", "national_url": "n", "admin_token": "t", "tenants": tenants}
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "credentials.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(known))
    assert madang("key", "demo", "daegu-clinic").stdout == "mdg_x\n"
    done = madang("key", "demo", "nobody")
    assert done.exit_code == 1
    assert "choose one of daegu-clinic" in done.stderr


MODEL = {"name": "m", "task": "chat", "title": "M", "licence": "MIT"}


@pytest.fixture
def catalog(hub):
    """A hub with one model and no service."""
    hub.answers["GET", "/api/v1/models"] = (200, [MODEL])
    hub.answers["GET", "/api/v1/services"] = (200, [])
    return hub


def sent(hub):
    return [call for call in hub.calls if call[0] != "GET"]


def test_services_come_from_a_file(hub, ask, tmp_path, catalog):
    hub.answers["PUT", "/api/v1/services/a"] = hub.answers["PUT", "/api/v1/services/b"] = (200, {})
    toml = tmp_path / "services.toml"
    toml.write_text('[[service]]\nname = "a"\nmodel = "m"\n[[service]]\nname = "b"\nmodel = "m"\nslots = 2\n')
    assert ask("service", "apply", "-f", str(toml)).stdout == (
        "+ service a: model=m\n+ service b: model=m, slots=2\napplied: 2\n"
    )
    assert [call[3]["slots"] for call in sent(hub)] == [Service(name="a", model="m").slots, 2]
    one = tmp_path / "one.json"
    one.write_text('{"name": "a", "model": "m"}')
    assert ask("service", "apply", "-f", str(one)).exit_code == 0


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.toml", "[[service]]\nname = 3\nmodel = 'm'\n", "Expected `str`, got `int`"),
        ("x.toml", "[[service]\n", "is not TOML"),
        ("x.json", "{", "is not JSON"),
        ("x.json", '{"name": "a"}', "missing required field `model`"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(hub, ask, tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text)
    done = ask("service", "apply", "-f", str(path))
    assert done.exit_code == 1
    assert str(path) in done.stderr
    assert expected in done.stderr
    assert hub.calls == []


def test_applying_shows_what_changes_and_sends_only_that(hub, ask, tmp_path, catalog):
    known = [{"name": "a", "model": "m", "slots": 4}, {"name": "b", "model": "m"}, {"name": "other", "model": "m"}]
    hub.answers["GET", "/api/v1/services"] = (200, known)
    hub.answers["PUT", "/api/v1/services/a"] = (200, {})
    path = tmp_path / "services.toml"
    path.write_text(
        '[[service]]\nname = "a"\nmodel = "m"\nslots = 2\nsites = ["daegu"]\n[[service]]\nname = "b"\nmodel = "m"\n'
    )
    lines = "~ service a: sites - -> daegu, slots 4 -> 2\n= service b: as it is\n"
    assert ask("service", "apply", "-f", str(path), "--dry-run").stdout == (
        f"{lines}nothing was changed: --dry-run; 1 to apply\n"
    )
    assert sent(hub) == []
    assert ask("service", "apply", "-f", str(path)).stdout == f"{lines}applied: 1\n"
    assert [call[1] for call in sent(hub)] == ["/api/v1/services/a"]
    found = json.loads(ask("service", "apply", "-f", str(path), "--dry-run", "--json").stdout)
    assert found["is_applied"] is False
    assert found["changes"][0]["differences"][1] == {"field": "slots", "before": 4, "after": 2}
    hub.answers["GET", "/api/v1/services"] = (
        200,
        [{"name": "a", "model": "m", "slots": 2, "sites": ["daegu"]}, known[1]],
    )
    hub.calls.clear()
    assert ask("service", "apply", "-f", str(path)).stdout.endswith("nothing to apply\n")
    assert sent(hub) == [], "applying a file again changes nothing"


def test_applying_brings_the_models_that_services_need(hub, ask, tmp_path, catalog):
    hub.answers["PUT", "/api/v1/services/a"] = hub.answers["PUT", "/api/v1/services/b"] = (200, {})
    hub.answers["POST", "/api/v1/models"] = (201, {})
    path = tmp_path / "services.toml"
    path.write_text(
        '[[model]]\nname = "own"\ntask = "infer"\nunit = "image"\ntitle = "Own"\nlicence = "MIT"\n'
        '[[service]]\nname = "a"\nmodel = "own"\n[[service]]\nname = "b"\nmodel = "multilingual-e5-small"\n'
    )
    done = ask("service", "apply", "-f", str(path))
    assert done.exit_code == 0, done.stderr
    *changes, told, applied = done.stdout.splitlines()
    assert [line.split(":")[0] for line in changes] == [
        "+ model own (from the file; MIT)",
        "+ model multilingual-e5-small (built-in catalog; MIT)",
        "+ service a",
        "+ service b",
    ]
    assert told.startswith("    384 dimensions."), "what must be known of its model"
    assert applied.startswith("applied")
    made = [call[3]["name"] for call in sent(hub) if call[1] == "/api/v1/models"]
    assert made == ["own", "multilingual-e5-small"]
    assert [call[1] for call in sent(hub)][2:] == ["/api/v1/services/a", "/api/v1/services/b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[service]]\nname = "a"\nmodel = "nowhere"\n', "model 'nowhere' is not in the file, at the hub"),
        ('[[service]]\nname = "a"\nmodel = "m"\nreplica = 2\n', "'replica' is unknown"),
        ('[[service]]\nname = "a"\nmodel = "m"\n[[price]]\nwon = 1\n', "'price' is unknown"),
        ('[[service]]\nname = "a"\nmodel = "m"\n[[service]]\nname = "a"\nmodel = "m"\n', "stands there twice"),
        (
            '[[model]]\nname = "own"\ntask = "chat"\nunit = "image"\ntitle = "O"\nlicence = "MIT"\n',
            "unit of task chat: expected token",
        ),
    ],
)
def test_a_file_with_a_mistake_changes_nothing(hub, ask, tmp_path, catalog, text, expected):
    path = tmp_path / "services.toml"
    path.write_text('[[service]]\nname = "first"\nmodel = "m"\n' + text)
    done = ask("service", "apply", "-f", str(path))
    assert done.exit_code == 1
    assert expected in done.stderr
    assert sent(hub) == []


def test_a_model_is_shown_with_its_unit_its_warning_and_where_its_files_come_from(hub, ask):
    file = {
        "name": "m.onnx",
        "size_bytes": 2**20,
        "sha256": "a" * 64,
        "sources": [
            {"type": "http", "url": "https://example.org/m.onnx"},
            {"type": "recipe", "recipe": "cells", "parts": [{"package": "p", "version": "1"}]},
        ],
    }
    artifact = {"artifact_id": "q4", "engine": "onnx", "chip_kinds": ["cpu"], "files": [file]}
    model = {**MODEL, "task": "infer", "unit": "image", "warning": "never clinical", "artifacts": [artifact]}
    hub.answers["GET", "/api/v1/models/m"] = (200, model)
    hub.answers["GET", "/api/v1/models/m/coverage"] = (200, [])
    shown = ask("model", "show", "m").stdout
    for text in ("counted in: image", "never clinical", "a" * 64, "https://example.org/m.onnx", "cells: p 1"):
        assert text in shown
    assert json.loads(ask("model", "show", "m", "--json").stdout) == {**model, "coverage": [], "transfers": []}


def test_models_are_added_from_the_shape_of_the_built_in_catalog(hub, ask, tmp_path):
    hub.answers["POST", "/api/v1/models"] = (201, {})
    path = tmp_path / "models.toml"
    path.write_text('[[model]]\nname = "m"\ntask = "chat"\ntitle = "M"\nlicence = "MIT"\n')
    assert ask("model", "add", "-f", str(path)).stdout == "added: m\n"
    assert hub.calls[0][3]["task"] == CatalogEntry(name="m", task="chat", title="M", licence="MIT").task


def test_creating_a_service_that_exists_is_refused(hub, ask):
    hub.answers["GET", "/api/v1/services/a"] = (200, {"name": "a"})
    done = ask("service", "create", "a", "--model", "m")
    assert done.exit_code == 1
    assert "service a exists" in done.stderr
    assert [call[0] for call in hub.calls] == ["GET"]


def test_usage_passes_its_filters_on_and_refuses_an_unknown_group(hub, ask):
    hub.answers["GET", "/api/v1/usage"] = (200, {"rows": [], "totals": {}})
    assert ask("usage", "--tenant", "t", "--since", "2030-01-01", "--group-by", "day,site").exit_code == 0
    assert hub.calls[0][2] == "tenant=t&since_s=1893456000.0&group_by=day%2Csite"
    done = ask("usage", "--group-by", "moon")
    assert done.exit_code == 2
    assert "'moon' is unknown" in done.stderr


@pytest.mark.parametrize("verb", ["revoke", "resync", "cordon", "uncordon"])
def test_site_verbs_reach_the_hub(hub, ask, verb):
    hub.answers["POST", f"/api/v1/sites/daegu/{verb}"] = (200, {"name": "daegu"})
    assert ask("site", verb, "daegu").exit_code == 0
    assert hub.calls == [("POST", f"/api/v1/sites/daegu/{verb}", "", None)]


NODES = {
    "nodes": [{"node": "daegu-1", "site": "daegu"}, {"node": "twice", "site": "a"}, {"node": "twice", "site": "b"}]
}


@pytest.mark.parametrize("verb", ["cordon", "uncordon", "drain"])
def test_node_verbs_reach_the_hub(hub, ask, verb):
    path = f"/api/v1/sites/daegu/nodes/daegu-1/{verb}"
    hub.answers["GET", "/api/v1/nodes"] = (200, NODES)
    hub.answers["POST", path] = (200, {"node": "daegu-1"})
    done = ask("node", verb, "daegu-1", "--reason", "new fans")
    assert done.exit_code == 0, done.output
    assert "node daegu-1 of daegu" in done.stdout
    assert hub.calls[-1] == ("POST", path, "", {"reason": "new fans"})


def test_chip_verbs_reach_the_hub(hub, ask):
    path = "/api/v1/sites/daegu/nodes/daegu-1/chips/npu0"
    hub.answers["GET", "/api/v1/nodes"] = (200, NODES)
    hub.answers["POST", f"{path}/cordon"] = hub.answers["POST", f"{path}/uncordon"] = (200, {})
    assert ask("chip", "cordon", "daegu-1/npu0", "--reason", "smells").exit_code == 0
    assert hub.calls[-1] == ("POST", f"{path}/cordon", "", {"reason": "smells"})
    assert ask("chip", "uncordon", "daegu-1/npu0").exit_code == 0
    assert hub.calls[-1] == ("POST", f"{path}/uncordon", "", None)
    assert ask("chip", "cordon", "daegu-1/npu0").exit_code == 2, "a chip is cordoned for a reason"
    assert "expected NODE/CHIP" in ask("chip", "uncordon", "npu0").stderr
    assert "a name at several sites" in ask("chip", "uncordon", "twice/npu0").stderr


PARTS = [
    {"holder": "ocr-1", "state": "draining", "cores": [0, 1, 2, 3]},
    {"holder": "ocr-2", "state": "leased", "cores": [6]},
]


def test_cordons_and_holders_are_shown(hub, ask):
    chip = {
        "chip_id": "npu0",
        "site": "daegu",
        "is_cordoned": True,
        "cordon_reason": "failed: link down",
        "leases": [{"holder": "chat-1", "state": "clearing"}, {"holder": "chat-2", "state": "leased"}],
    }
    hub.answers["GET", "/api/v1/chips"] = (200, [chip, {"chip_id": "npu1", "site": "daegu", "leases": PARTS}])
    table = ask("chip", "list").stdout
    assert "failed: link down" in table
    assert "chat-1 (clearing), chat-2" in table
    assert "ocr-1 [0-3] (draining), ocr-2 [6]" in table
    node = {"node": "n1", "site": "daegu", "is_cordoned": True, "is_draining": True, "cordon_reason": "new fans"}
    hub.answers["GET", "/api/v1/nodes"] = (200, [node])
    table = ask("node", "list").stdout
    assert "draining" in table
    assert "new fans" in table


# Failures


@pytest.mark.parametrize(
    ("status", "code"), [(400, "invalid_request"), (404, "not_found"), (409, "conflict"), (503, "unavailable")]
)
def test_a_refusal_is_words_on_standard_error_and_status_1(hub, ask, status, code):
    hub.answers["GET", "/api/v1/tenants"] = (status, hub.error(code, "the reason", "the way out"))
    done = ask("tenant", "list")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == "error: the hub: the reason\n  try: the way out\n"


def test_a_wrong_token_names_the_option(hub, madang):
    done = madang("tenant", "list", "--hub-url", hub.url, "--token", "wrong")
    assert done.exit_code == 1
    assert "does not accept the admin token" in done.stderr
    assert "--token" in done.stderr


def test_a_hub_that_is_down_is_named_with_its_url(madang):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    done = madang("tenant", "list", "--hub-url", url, "--token", "t")
    assert done.exit_code == 1
    assert f"the hub at {url} does not answer" in done.stderr


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://[", "http://h:port"])
def test_a_url_that_is_none_is_refused(madang, url):
    done = madang("tenant", "list", "--hub-url", url, "--token", "t")
    assert done.exit_code == 1
    assert "is not a URL" in done.stderr


def test_something_other_than_a_hub_is_recognised(hub, ask):
    hub.answers["GET", "/api/v1/tenants"] = (200, b"<html>")
    done = ask("tenant", "list")
    assert done.exit_code == 1
    assert "something other than JSON" in done.stderr


def test_without_a_federation_the_next_step_is_named(madang):
    for words in (("tenant", "list"), ("status",), ("wan", "status"), ("node", "list", "--site", "daegu")):
        done = madang(*words)
        assert done.exit_code == 1, words
        assert "there is no federation in" in done.stderr
        assert "madang up" in done.stderr


def test_a_hub_url_without_a_token_names_both_ways(madang):
    done = madang("tenant", "list", "--hub-url", "http://127.0.0.1:1")
    assert done.exit_code == 1
    assert "MADANG_ADMIN_TOKEN" in done.stderr


@pytest.mark.parametrize("words", [("nonsense",), ("tenant", "create"), ("site", "run"), ("up", "--base-port", "x")])
def test_wrong_usage_is_status_2(madang, words):
    done = madang(*words)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_down_without_a_federation_is_no_error(madang):
    done = madang("down")
    assert done.exit_code == 0
    assert "nothing was running" in done.stdout
