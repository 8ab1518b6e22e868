"""`madang facility energy`: what it asks, what it prints, and that nothing simulated looks real."""

import json
import time

import pytest

from madang.policy.pricing import kst_month

MONTH = {
    "site": "daegu",
    "month": "2026-10",
    "is_simulated": True,
    "is_final": False,
    "by": "time",
    "meter": "meter.energy",
    "tariff": "general_a1_low",
    "quarters": 2976,
    "quarters_read": 2970,
    "bands": [
        {
            "tariff": "general_a1_low@2026-06-01",
            "band": "flat",
            "micro_won_per_kwh": 92_000_000,
            "energy_wh": 1_234_567,
            "charge_micro_won": 113_580_164_000,
            "adders_micro_won": 0,
        }
    ],
    "demand_w": 8000,
    "base_micro_won": None,
    "energy_wh": 1_234_567,
    "sum_micro_won": 113_580_164_000,
    "net_won": 113_580,
    "gaps": [
        {
            "begin_id": "meter.energy@1790000100",
            "end_id": "meter.energy@1790005500",
            "energy_wh": 9000,
            "reason": "no reading at the change of price",
            "low_micro_won": 828_000_000,
            "high_micro_won": 999_000_000,
        }
    ],
    "unknown": ["adders are not known for 31 days"],
    "tokens_unpriced": 0,
    "tenants": [
        {
            "tenant_id": "clinic",
            "is_operator": False,
            "energy_wh": 1_000_000,
            "sum_micro_won": 92_000_000_001,
            "net_won": 92_000,
            "tokens": 4_000_000,
            "micro_won_per_million_tokens": 23_000_000_000,
            "wh_per_million_tokens": 250_000,
        },
    ],
    "check": {"charged_micro_won": 113_580_164_000, "borne_micro_won": 113_580_164_000, "difference_micro_won": 0},
}
TRACE = [
    {
        "line_id": "meter.energy@1790000100",
        "begin_id": "meter.energy@1790000100",
        "end_id": "meter.energy@1790001000",
        "begin_wh": 500_000,
        "end_wh": 500_700,
        "tariff": "general_a1_low@2026-06-01",
        "band": "flat",
        "micro_won_per_kwh": 92_000_000,
        "line_wh": 700,
        "line_micro_won": 64_400_000,
        "weight": 3,
        "weight_all": 4,
        "energy_wh": 525,
        "charge_micro_won": 48_300_000,
    }
]
PATH = ("GET", "/api/v1/sites/daegu/energy")
WORDS = ("facility", "energy", "--site", "daegu", "--month", "2026-10")


def test_a_simulated_month_says_so_with_what_is_not_known(ask, hub):
    hub.answers[PATH] = (200, MONTH)
    answer = ask(*WORDS)
    assert answer.exit_code == 0, answer.output
    shown = " ".join(answer.stdout.split())
    for text in (
        "SIMULATED meter, no invoice",
        "모의 계량기",
        "2970 of 2976",
        "1,234.567",
        "113,580.164",
        "92,000.000001",
        "23,000",
        "not known / 알 수 없음: adders are not known",
        "no reading at the change of price",
        "difference 0 micro-won",
    ):
        assert text in shown, text


def test_a_trace_is_of_one_tenant_and_adds_up(ask, hub):
    hub.answers[PATH] = (200, {**MONTH, "trace": TRACE})
    assert ask(*WORDS, "--trace").exit_code == 2
    answer = ask(*WORDS, "--tenant", "clinic", "--trace")
    assert answer.exit_code == 0, answer.output
    shown = " ".join(answer.stdout.split())
    for text in ("meter.energy@1790001000", "500000", "500700", "3/4", "48.3 won"):
        assert text in shown, text
    query = hub.calls[-1][2]
    assert "tenant=clinic" in query
    assert "trace=true" in query


def test_the_present_korean_month_is_meant_unless_another_is_named(ask, hub):
    hub.answers[PATH] = (200, MONTH)
    before = kst_month(time.time())
    assert ask("facility", "energy", "--site", "daegu").exit_code == 0
    assert any(f"month={month}" in hub.calls[-1][2] for month in (before, kst_month(time.time())))


def test_json_is_what_the_hub_said(ask, hub):
    hub.answers[PATH] = (200, MONTH)
    assert json.loads(ask(*WORDS, "--json").stdout) == MONTH


@pytest.mark.parametrize("words", [("facility", "energy"), ("facility", "pue")])
def test_a_site_is_named(madang, words):
    assert madang(*words).exit_code == 2
