"""The routes about projects, keys and money as a client sees them, and invoices that add up."""

import pytest
from tests.hub.test_hub_api import CLINIC, MODEL, SITE, api, ok, refused, unchanged  # noqa: F401 - fixtures
from tests.hub.usage_events import make_event

from madang.core import Rejected
from madang.hub import facts_admin
from madang.hub.ledger import enter
from madang.hub.money_views import show_invoice
from madang.model import Outcome, PriorityClass, Residency, ResidencyScope, Tenant
from madang.policy.pricing import day_start_s, kst_day, month_span_s
from madang.runtime.admin_http import NotFound
from madang.runtime.clock import SystemClock

WARD = {"project_id": "ward", "tenant_id": "clinic", "title": "병동", "budget": {"day_micro_won": 5_000_000}}
MONEY = {"budget": {"day_micro_won": 10_000_000, "month_micro_won": 100_000_000}, "overdraw_micro_won": 2_000_000}


def test_the_whole_life_of_a_budget(api):  # noqa: F811
    ok(api("POST", "/api/v1/sites", SITE), 201)
    ok(api("POST", "/api/v1/tenants", {**CLINIC, **MONEY, "priority": "clinical"}), 201)
    assert ok(api("POST", "/api/v1/projects", WARD), 201)["budget"] == {
        "day_micro_won": 5_000_000,
        "month_micro_won": None,
    }
    ok(api("POST", "/api/v1/projects", WARD), 200)
    assert [one["project_id"] for one in ok(api("GET", "/api/v1/projects?tenant=clinic"))] == ["ward"]
    assert ok(api("GET", "/api/v1/projects?tenant=other")) == []
    ok(api("PUT", "/api/v1/projects/ward", {**WARD, "title": "Ward"}))
    assert ok(api("GET", "/api/v1/projects/ward"))["title"] == "Ward"
    limits = {"project_id": "ward", "requests_per_minute": 60, "priority": "clinical"}
    made = ok(api("POST", "/api/v1/keys", {"tenant_id": "clinic", "key_id": "k", **limits}), 201)
    assert {name: made[name] for name in limits} == limits
    assert (made["services"], made["sites"], made["streams_max"]) == ([], [], None)
    changed = ok(api("PUT", "/api/v1/keys/k/policy", {"project_id": "ward", "streams_max": 3}))
    assert (changed["streams_max"], changed["requests_per_minute"], changed["priority"]) == (3, None, "interactive")
    assert ok(api("GET", "/api/v1/keys/k")) == changed
    rows = ok(api("GET", "/api/v1/tenants/clinic/budgets"))["budgets"]
    assert [(row["scope"], row["period"], row["is_overdraw"], row["plan"]) for row in rows] == [
        ("tenant", "day", False, "whole"),
        ("tenant", "month", False, "whole"),
        ("project", "day", False, "whole"),
        ("tenant", "day", True, "even"),
        ("tenant", "month", True, "even"),
    ]
    assert [row["overshoot_max_micro_won"] for row in rows] == [2_000_000] * 3 + [0, 0]
    refused(api("DELETE", "/api/v1/projects/ward"), 409, "conflict", "such as k")
    ok(api("POST", "/api/v1/keys/k/revoke"))
    ok(api("DELETE", "/api/v1/projects/ward"))
    ok(api("DELETE", "/api/v1/tenants/clinic"))
    actions = [row["action"] for row in ok(api("GET", "/api/v1/audit"))]
    assert actions[3:] == [
        "project.put",
        "project.put",
        "key.create",
        "key.policy",
        "key.revoke",
        "project.delete",
        "tenant.delete",
    ]
    assert ok(api("GET", "/api/v1/audit/verify"))["is_intact"]


def test_the_price_book(api):  # noqa: F811
    ok(api("POST", "/api/v1/models", MODEL), 201)
    ok(api("PUT", "/api/v1/services/chat", {"name": "chat", "model": "qwen2.5"}), 201)
    now_s = SystemClock().wall_s()
    later = kst_day(now_s + 3 * 86_400)
    body = {"service": "chat", "priority": "batch", "valid_from": later, "prompt_micro_won_per_million": 7}
    made = ok(api("POST", "/api/v1/tariffs", body), 201)
    assert made["tariff_id"] == f"chat.batch.{later}"
    ok(api("POST", "/api/v1/tariffs", {**body, "prompt_micro_won_per_million": 8}), 200)
    over = {**body, "valid_from": kst_day(now_s - 2 * 86_400)}
    refused(api("POST", "/api/v1/tariffs", over), 400, "invalid_request", "is over")
    assert [one["prompt_micro_won_per_million"] for one in ok(api("GET", "/api/v1/tariffs?service=chat"))] == [8]
    assert ok(api("GET", "/api/v1/tariffs?service=none")) == []
    ok(api("DELETE", f"/api/v1/tariffs/chat.batch.{later}"))
    refused(api("DELETE", f"/api/v1/tariffs/chat.batch.{later}"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/api/v1/tenants", {**CLINIC, "budget": {"day_micro_won": 1.5}}, 400, "budget.day_micro_won"),
        ("POST", "/api/v1/tenants", {**CLINIC, "budget": {"day_micro_won": -1}}, 400, "day_micro_won is -1"),
        ("POST", "/api/v1/tenants", {**CLINIC, "priority": "vip"}, 400, "priority"),
        ("POST", "/api/v1/projects", {**WARD, "tenant_id": "nobody"}, 404, "nobody"),
        ("PUT", "/api/v1/projects/other", WARD, 400, "in the path"),
        ("DELETE", "/api/v1/projects/none", None, 404, "none"),
        ("GET", "/api/v1/projects/none", None, 404, "none"),
        ("POST", "/api/v1/keys", {"tenant_id": "clinic", "request_per_minute": 5}, 400, "request_per_minute"),
        ("PUT", "/api/v1/keys/none/policy", {}, 404, "none"),
        ("PUT", "/api/v1/keys/none/policy", {"streams": 5}, 400, "streams"),
        ("POST", "/api/v1/tariffs", {"service": "chat", "priority": "batch"}, 400, "valid_from"),
        ("DELETE", "/api/v1/tariffs/none", None, 404, "none"),
        ("GET", "/api/v1/tenants/none/budgets", None, 404, "none"),
        ("GET", "/api/v1/tenants/none/invoice?month=2026-11", None, 404, "none"),
        ("GET", "/api/v1/tenants/none/invoice", None, 400, "month"),
    ],
)
def test_bad_requests_are_named(unchanged, method, path, body, status, said):  # noqa: F811
    refused(unchanged(method, path, body), status, "not_found" if status == 404 else "invalid_request", said)


# --- invoices

NOVEMBER_S, DECEMBER_S = month_span_s("2026-11")


@pytest.fixture
def month(store, change):
    """Usage of a clinic and of somebody else, around both ends of a Korean November."""
    residency = Residency(scope=ResidencyScope.SITE, places=("daegu",))
    tenant = Tenant(tenant_id="clinic", title="C", residency=residency)
    change(lambda c: facts_admin.put_tenant(c, tenant, may_replace=False))
    old, new = {"tariff_id": "chat.interactive.2026-10-01"}, {"tariff_id": "chat.interactive.2026-11-15"}
    clinical = {"tariff_id": "chat.clinical.2026-11-01", "priority": PriorityClass.CLINICAL}
    events = (
        make_event(1, started_at_s=NOVEMBER_S - 0.001, charge_micro_won=1_000, **old),
        make_event(2, started_at_s=NOVEMBER_S, charge_micro_won=333_333, **old),
        make_event(3, 1, started_at_s=NOVEMBER_S + 5, charge_micro_won=777, **old),
        make_event(3, 2, started_at_s=NOVEMBER_S + 6, charge_micro_won=250_000, completion_tokens=9, **old),
        make_event(4, started_at_s=DECEMBER_S - 0.001, charge_micro_won=666_667, **new),
        make_event(5, started_at_s=DECEMBER_S, charge_micro_won=1_000, **new),
        make_event(6, started_at_s=NOVEMBER_S + 9, charge_micro_won=40, overdraw_micro_won=15, **clinical),
        make_event(7, started_at_s=NOVEMBER_S + 9, tenant_id="other", charge_micro_won=10**15),
        make_event(8, started_at_s=NOVEMBER_S + 9, outcome=Outcome.UPSTREAM_FAILED, charge_micro_won=2, **old),
        make_event(9, started_at_s=NOVEMBER_S + 9, service="ears", audio_ms=1, charge_micro_won=500, tariff_id="a"),
        make_event(
            10, started_at_s=NOVEMBER_S + 9, service="ears", audio_ms=2_000, charge_micro_won=1000, tariff_id="a"
        ),
        make_event(11, started_at_s=DECEMBER_S + 9, service="x-ray", images=3, tariff_id="a"),
        make_event(12, started_at_s=DECEMBER_S + 9, service="x-ray", images=1, samples=5, tariff_id="a"),
    )
    store.write_now(lambda c: enter(c, events, [], 1.0))
    return lambda name="2026-11", now_s=DECEMBER_S: store.write_now(lambda c: show_invoice(c, "clinic", name, now_s))


def test_an_invoice_adds_up_exactly_within_a_korean_month(month):
    invoice = month()
    lines = {(line["service"], line["priority"], line["tariff_id"]): line for line in invoice["lines"]}
    assert {key: line["charge_micro_won"] for key, line in lines.items()} == {
        ("chat", "clinical", "chat.clinical.2026-11-01"): 40,
        ("chat", "interactive", "chat.interactive.2026-10-01"): 333_333 + 250_000 + 2,
        ("chat", "interactive", "chat.interactive.2026-11-15"): 666_667,
        ("ears", "interactive", "a"): 1_500,
    }
    old = lines["chat", "interactive", "chat.interactive.2026-10-01"]
    assert (old["requests"], old["requests_completed"]) == (3, 2)
    assert (old["prompt_tokens"], old["completion_tokens"]) == (30, 5 + 9 + 5)
    assert lines["ears", "interactive", "a"]["audio_s"] == 1 + 2, "begun seconds, as they are charged"
    assert invoice["sum_micro_won"] == sum(line["charge_micro_won"] for line in invoice["lines"]) == 1_251_542
    assert invoice["overdraw_micro_won"] == 15
    assert (invoice["net_won"], invoice["vat_won"], invoice["total_won"]) == (1, 0, 1)
    assert invoice["sum_micro_won"] + invoice["rounding_micro_won"] == invoice["net_won"] * 1_000_000


def test_an_invoice_is_final_once_its_month_is_over(month):
    assert month()["is_final"] is True
    assert month(now_s=DECEMBER_S - 0.001)["is_final"] is False
    december = month("2026-12")
    assert (december["is_final"], december["sum_micro_won"]) == (False, 1_000)
    assert [(one["images"], one["samples"]) for one in december["lines"]] == [(0, 0), (4, 5)]
    empty = month("2025-01")
    assert (empty["lines"], empty["total_won"], empty["is_final"]) == ([], 0, True)


def test_sums_stay_exact_beyond_what_floats_can_tell(store, month):
    big = 10**15
    events = [
        make_event(100 + number, started_at_s=NOVEMBER_S + 1, charge_micro_won=big - number, tariff_id="big")
        for number in range(1000)
    ]
    store.write_now(lambda c: enter(c, events, [], 1.0))
    invoice = month()
    assert invoice["sum_micro_won"] == 1_251_542 + 1000 * big - sum(range(1000))
    assert invoice["total_won"] == invoice["net_won"] + (invoice["net_won"] * 100 + 500) // 1000


@pytest.mark.parametrize("name", ["2026-13", "2026", "November", "2026-11-01", "9999-12", ""])
def test_a_month_that_is_none_is_named(month, name):
    with pytest.raises(Rejected, match="expected YYYY-MM"):
        month(name)


def test_an_invoice_of_nobody_is_not_found(store):
    with pytest.raises(NotFound):
        store.write_now(lambda c: show_invoice(c, "nobody", "2026-11", day_start_s("2026-11-28")))
