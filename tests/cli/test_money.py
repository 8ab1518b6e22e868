"""Commands about money and limits: what they send, what they print, and which amounts they take."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.cli.values import parse_count_or_none, parse_won, parse_won_or_none, render_won
from madang.core import Rejected
from madang.machine.lease_periods import DAY_S
from madang.policy.pricing import kst_day, kst_month
from madang.runtime.clock import SystemClock

CLINIC = {
    "tenant_id": "clinic",
    "title": "의원",
    "residency": {"scope": "site", "places": ["daegu"], "is_transit_granted": False},
    "data_class": "sensitive",
    "budget": {"day_micro_won": 50_000_000_000, "month_micro_won": None},
    "priority": "interactive",
    "overdraw_micro_won": 0,
}
WARD = {
    "project_id": "ward",
    "tenant_id": "clinic",
    "title": "병동",
    "budget": {"day_micro_won": None, "month_micro_won": 1_500_000},
}
KEY = {
    "key_id": "k1",
    "tenant_id": "clinic",
    "project_id": "ward",
    "services": ["chat"],
    "sites": [],
    "requests_per_minute": 6000,
    "tokens_per_minute": None,
    "streams_max": 4,
    "priority": "clinical",
    "expires_at_s": None,
    "is_revoked": False,
    "has_policy": True,
}


def tariff(valid_from, priority="clinical", **prices):
    return {
        "tariff_id": f"chat.{priority}.{valid_from}",
        "service": "chat",
        "priority": priority,
        "valid_from": valid_from,
        "prompt_micro_won_per_million": 300_000_000,
        "completion_micro_won_per_million": 1_200_500_000,
        "request_micro_won": 0,
        "audio_second_micro_won": 1,
        **prices,
    }


# Amounts


@given(st.integers(min_value=0, max_value=10**18))
def test_an_amount_that_is_shown_is_read_back_exactly(micro_won):
    assert parse_won(render_won(micro_won)) == micro_won


@pytest.mark.parametrize(
    ("text", "micro_won"),
    [
        ("30000", 30_000_000_000),
        ("30,000", 30_000_000_000),
        ("0.25", 250_000),
        ("0.000001", 1),
        ("1,234,567.89", 1_234_567_890_000),
        ("none", None),
    ],
)
def test_amounts_are_won_with_at_most_six_places(text, micro_won):
    assert parse_won_or_none(text) == micro_won


@pytest.mark.parametrize("text", ["", "-1", "1.0000001", "1e3", "3,00", "1,0000", "₩3", "none", ".5", "٣", "1 000"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(Rejected, match="expected won"):
        parse_won(text)


def test_negative_and_missing_amounts_are_shown_too():
    assert render_won(-1_500_000) == "-1.5"
    assert render_won(None) == "-"
    assert render_won(1_234_567_000_001) == "1,234,567.000001"


@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "9" * 13])
def test_limits_are_whole_numbers(text):
    with pytest.raises(Rejected, match="whole number"):
        parse_count_or_none(text)


# Tenants


def test_a_tenant_is_created_with_budgets_class_and_overdraw(hub, ask):
    hub.answers["POST", "/api/v1/tenants"] = (201, CLINIC)
    words = ["--budget-day", "50,000", "--budget-month", "none", "--priority", "clinical", "--overdraw", "1000.5"]
    done = ask("tenant", "create", "clinic", "--residency", "site:daegu", *words)
    assert done.exit_code == 0, done.output
    body = hub.calls[0][3]
    assert body["budget"] == {"day_micro_won": 50_000_000_000, "month_micro_won": None}
    assert body["priority"] == "clinical"
    assert body["overdraw_micro_won"] == 1_000_500_000


def test_a_budget_is_changed_alone_and_cleared(hub, ask):
    hub.answers["GET", "/api/v1/tenants/clinic"] = (200, CLINIC)
    hub.answers["PUT", "/api/v1/tenants/clinic"] = (200, CLINIC)
    assert ask("tenant", "update", "clinic", "--budget-month", "1000000").exit_code == 0
    assert hub.calls[-1][3] == {
        **CLINIC,
        "budget": {"day_micro_won": 50_000_000_000, "month_micro_won": 1_000_000_000_000},
    }
    assert ask("tenant", "update", "clinic", "--budget-day", "none", "--overdraw", "none").exit_code == 0
    assert hub.calls[-1][3]["budget"] == {"day_micro_won": None, "month_micro_won": None}
    assert ask("tenant", "update", "clinic", "--title", "x").exit_code == 0
    assert hub.calls[-1][3] == {**CLINIC, "title": "x"}
    done = ask("tenant", "update", "clinic", "--budget-day", "much")
    assert done.exit_code == 1
    assert "expected won" in done.stderr


def test_tenants_are_listed_with_their_budgets(hub, ask):
    hub.answers["GET", "/api/v1/tenants"] = (200, [CLINIC])
    table = ask("tenant", "list").stdout
    assert "50,000" in table
    assert "일 예산" in table


BUDGET = {
    "scope": "tenant",
    "account": "clinic",
    "period": "day",
    "label": "2026-09-24",
    "ends_at_s": 0,
    "is_overdraw": False,
    "plan": "whole",
    "budget_micro_won": 50_000_000_000,
    "granted_micro_won": 50_000_000_000,
    "free_micro_won": 0,
    "spent_micro_won": 20_000_000_001,
    "outstanding_micro_won": 29_999_999_999,
    "ledger_micro_won": 20_000_000_001,
    "overdraw_micro_won": 1_000_000,
    "overshoot_max_micro_won": 1_000_000,
    "sites": [{"site": "daegu", "granted_micro_won": 50_000_000_000, "spent_micro_won": 20_000_000_001}],
}


def test_budgets_are_shown_exactly_with_what_may_be_overshot(hub, ask):
    found = {"tenant_id": "clinic", "budgets": [BUDGET, {**BUDGET, "is_overdraw": True, "sites": []}]}
    hub.answers["GET", "/api/v1/tenants/clinic/budgets"] = (200, found)
    table = ask("tenant", "budget", "clinic").stdout
    for text in (
        "20,000.000001",
        "29,999.999999",
        "2026-09-24",
        "예산",
        "최대 초과",
        "daegu 29,999.999999",
        "초과 허용",
    ):
        assert text in table
    assert json.loads(ask("tenant", "budget", "clinic", "--json").stdout) == found


def test_a_sites_own_operator_sees_what_is_held_there(hub, madang, tmp_path):
    rows = [
        {**BUDGET, "held_micro_won": 7_000_000, "reserved_micro_won": 0, "left_micro_won": 0, "state": "cut"},
        {
            **BUDGET,
            "account": "other",
            "held_micro_won": 1,
            "reserved_micro_won": 0,
            "left_micro_won": 0,
            "state": "more",
        },
        {
            **BUDGET,
            "scope": "project",
            "account": "ward",
            "held_micro_won": 3_000_000,
            "reserved_micro_won": 0,
            "left_micro_won": 0,
            "state": "spent",
        },
    ]
    hub.answers["GET", "/api/v1/budgets"] = (
        200,
        {"site": "daegu", "life": "x", "hub_link": "unreachable", "budgets": rows},
    )
    hub.answers["GET", "/api/v1/projects"] = (200, [WARD, {**WARD, "project_id": "other", "tenant_id": "else"}])
    known = {
        "hub_url": "http://127.0.0.1:9",
        "national_url": "n",
        "admin_token": "t",
        "sites": [{"name": "daegu", "url": "u", "admin_url": hub.url, "admin_token": hub.token}],
    }
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "credentials.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(known))
    done = madang("tenant", "budget", "clinic", "--site", "daegu")
    assert done.exit_code == 0, done.output
    for text in ("project ward", "허브 단절", "소진", "보유"):
        assert text in done.stdout
    assert "other" not in done.stdout
    found = json.loads(madang("tenant", "budget", "clinic", "--site", "daegu", "--json").stdout)
    assert [row["account"] for row in found["budgets"]] == ["clinic", "ward"]


INVOICE = {
    "tenant_id": "clinic",
    "month": "2026-09",
    "is_final": False,
    "lines": [
        {
            "service": "chat",
            "priority": "clinical",
            "tariff_id": "chat.clinical.2026-09-01",
            "requests": 3,
            "requests_completed": 3,
            "prompt_tokens": 12_345,
            "completion_tokens": 678,
            "audio_s": 0,
            "charge_micro_won": 4_517_100,
            "overdraw_micro_won": 500_000,
        }
    ],
    "sum_micro_won": 4_517_100,
    "overdraw_micro_won": 500_000,
    "net_won": 5,
    "vat_permille": 100,
    "vat_won": 1,
    "total_won": 6,
}


def test_an_invoice_shows_lines_tax_and_that_it_is_not_final(hub, ask):
    hub.answers["GET", "/api/v1/tenants/clinic/invoice"] = (200, INVOICE)
    done = ask("tenant", "invoice", "clinic", "--month", "2026-09")
    assert hub.calls[0][2] == "month=2026-09"
    for text in (
        "4.5171",
        "12,345",
        "VAT 부가가치세 10 %: 1 won",
        "total 청구금액: 6 won",
        "not over",
        "초과 사용: 0.5 won",
    ):
        assert text in done.stdout
    hub.answers["GET", "/api/v1/tenants/clinic/invoice"] = (200, {**INVOICE, "is_final": True})
    assert "not over" not in ask("tenant", "invoice", "clinic", "--month", "2026-09").stdout
    assert json.loads(ask("tenant", "invoice", "clinic", "--month", "2026-09", "--json").stdout)["total_won"] == 6


def test_an_invoice_is_of_the_present_korean_month_by_default(hub, ask):
    hub.answers["GET", "/api/v1/tenants/clinic/invoice"] = (200, INVOICE)
    months = {kst_month(SystemClock().wall_s())}
    ask("tenant", "invoice", "clinic")
    months.add(kst_month(SystemClock().wall_s()))
    assert hub.calls[0][2].removeprefix("month=") in months


# Projects


def test_projects_are_made_listed_changed_and_deleted(hub, ask):
    hub.answers["POST", "/api/v1/projects"] = (201, WARD)
    assert ask("project", "create", "ward", "--tenant", "clinic", "--budget-month", "1.5").exit_code == 0
    body = {"project_id": "ward", "tenant_id": "clinic", "title": "ward", "budget": {"month_micro_won": 1_500_000}}
    assert hub.calls[-1] == ("POST", "/api/v1/projects", "", body)
    hub.answers["GET", "/api/v1/projects"] = (200, [WARD])
    table = ask("project", "list", "--tenant", "clinic").stdout
    assert hub.calls[-1][2] == "tenant=clinic"
    assert "병동" in table
    assert "1.5" in table
    assert json.loads(ask("project", "list", "--json").stdout) == {"projects": [WARD]}
    hub.answers["GET", "/api/v1/projects/ward"] = hub.answers["PUT", "/api/v1/projects/ward"] = (200, WARD)
    assert ask("project", "update", "ward", "--budget-day", "1").exit_code == 0
    assert hub.calls[-1][3] == {**WARD, "budget": {"day_micro_won": 1_000_000, "month_micro_won": 1_500_000}}
    hub.answers["DELETE", "/api/v1/projects/ward"] = (200, {})
    assert ask("project", "delete", "ward").stdout == "project ward deleted\n"


# Keys


def test_a_key_is_created_with_its_limits(hub, ask):
    hub.answers["POST", "/api/v1/keys"] = (201, {**KEY, "api_key": "mdg_k1_x"})
    words = ["--project", "ward", "--service", "chat", "--service", "embed", "--site", "daegu", "--rpm", "60"]
    done = ask("key", "create", "--tenant", "clinic", *words, "--tpm", "none", "--streams", "4", "--priority", "batch")
    assert done.stdout == "mdg_k1_x\n"
    assert hub.calls[0][3] == {
        "tenant_id": "clinic",
        "project_id": "ward",
        "services": ["chat", "embed"],
        "sites": ["daegu"],
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "streams_max": 4,
        "priority": "batch",
    }


def test_a_keys_limits_are_changed_and_the_rest_stays(hub, ask):
    hub.answers["GET", "/api/v1/keys/k1"] = hub.answers["PUT", "/api/v1/keys/k1/policy"] = (200, KEY)
    kept = {name: KEY[name] for name in ("project_id", "services", "sites", "streams_max", "priority")}
    assert ask("key", "update", "k1", "--rpm", "none", "--tpm", "10000").exit_code == 0
    assert hub.calls[-1][3] == {**kept, "requests_per_minute": None, "tokens_per_minute": 10000}
    assert ask("key", "update", "k1", "--service", "all", "--project", "none").exit_code == 0
    assert hub.calls[-1][3] == {
        **kept,
        "project_id": "",
        "services": [],
        "requests_per_minute": 6000,
        "tokens_per_minute": None,
    }
    done = ask("key", "update", "k1")
    assert done.exit_code == 2
    assert "at least one limit" in done.stderr


def test_keys_are_listed_with_what_they_may_do(hub, ask):
    hub.answers["GET", "/api/v1/keys"] = (200, [KEY])
    table = ask("key", "list").stdout
    for text in ("6,000 rpm, 4 streams, only chat", "ward", "clinical", "한도"):
        assert text in table


# Prices


def test_prices_are_listed_as_they_hold(hub, ask):
    now_s = SystemClock().wall_s()
    days = [kst_day(now_s + shift * DAY_S) for shift in (-400, -20, 20)]
    hub.answers["GET", "/api/v1/tariffs"] = (200, [tariff(day) for day in days])
    table = ask("price", "list", "--service", "chat").stdout
    assert hub.calls[0][2] == "service=chat"
    for text in ("1,200.5", "0.000001", "적용 중", "예정", days[1], days[2]):
        assert text in table
    assert days[0] not in table, "what was replaced is not shown"
    assert days[0] in ask("price", "list", "--all").stdout
    assert len(json.loads(ask("price", "list", "--json").stdout)["tariffs"]) == 3


def test_a_price_without_a_class_holds_for_every_class(hub, ask):
    hub.answers["POST", "/api/v1/tariffs"] = (201, tariff("2030-01-01"))
    done = ask("price", "set", "chat", "--tokens-read", "300", "--tokens-written", "1,200.5", "--from", "2030-01-01")
    assert done.exit_code == 0, done.output
    assert [call[3]["priority"] for call in hub.calls] == ["clinical", "interactive", "batch"]
    assert hub.calls[0][3] == {
        "service": "chat",
        "priority": "clinical",
        "valid_from": "2030-01-01",
        "prompt_micro_won_per_million": 300_000_000,
        "completion_micro_won_per_million": 1_200_500_000,
    }


def test_a_price_of_a_row_of_a_batch(hub, ask):
    hub.answers["POST", "/api/v1/tariffs"] = (201, tariff("2030-01-01", image_micro_won=2_500_000))
    assert ask("price", "set", "x-ray", "--image", "2.5", "--sample", "0", "--from", "2030-01-01").exit_code == 0
    sent = hub.calls[0][3]
    assert (sent["image_micro_won"], sent["sample_micro_won"], "request_micro_won" in sent) == (2_500_000, 0, False)
    hub.answers["GET", "/api/v1/tariffs"] = (200, [tariff("2030-01-01", image_micro_won=2_500_000)])
    assert "2.5" in ask("price", "list").stdout


def test_a_price_begins_today_where_there_is_none_and_else_tomorrow(hub, ask):
    before_s = SystemClock().wall_s()
    hub.answers["GET", "/api/v1/tariffs"] = (200, [tariff(kst_day(before_s - DAY_S), "batch")])
    hub.answers["POST", "/api/v1/tariffs"] = (201, tariff("2030-01-01"))
    assert ask("price", "set", "chat", "--request", "2").exit_code == 0
    sent = {call[3]["priority"]: call[3]["valid_from"] for call in hub.calls if call[0] == "POST"}
    after_s = SystemClock().wall_s()
    todays = [kst_day(before_s), kst_day(after_s)]
    assert sent["clinical"] in todays
    assert sent["batch"] in [kst_day(now_s + DAY_S) for now_s in (before_s, after_s)]


@pytest.mark.parametrize("words", [("chat",), ("chat", "--request", "1", "--priority", "urgent")])
def test_a_price_of_nothing_or_of_no_class_is_wrong_usage(hub, ask, words):
    assert ask("price", "set", *words).exit_code == 2
    assert hub.calls == []


def test_a_price_that_has_begun_stays_and_the_reason_is_said(hub, ask):
    hub.answers["DELETE", "/api/v1/tariffs/chat.batch.2020-01-01"] = (409, hub.error("conflict", "it has begun"))
    done = ask("price", "delete", "chat.batch.2020-01-01")
    assert done.exit_code == 1
    assert "it has begun" in done.stderr
    hub.answers["DELETE", "/api/v1/tariffs/chat.batch.2099-01-01"] = (200, {})
    assert ask("price", "delete", "chat.batch.2099-01-01").exit_code == 0
