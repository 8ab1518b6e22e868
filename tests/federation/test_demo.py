"""The first day: what it makes, what it leaves alone, and that an interrupted one is finished."""

import msgspec
import pytest

from madang.core import Unavailable
from madang.federation.catalog import builtin_catalog
from madang.federation.demo import CHAT_SERVICE, apply_demo, demo_services, demo_tariffs, demo_tenants
from madang.federation.state import Credentials
from madang.model import Outcome, PriorityClass
from madang.policy.pricing import charge_micro_won
from madang.runtime.admin_client import NotFound

TODAY = "2026-09-24"


class FakeHub:
    """Plays the hub's admin API in memory: stores what it is given, and fails at the call that a test names."""

    def __init__(self):
        self.facts = {}
        self.tariffs = []
        self.keys = []
        self.fails_at = None
        self.calls = 0

    def get(self, path):
        if path == "/api/v1/tariffs":
            return list(self.tariffs)
        if path not in self.facts:
            raise NotFound(f"no {path}")
        return self.facts[path]

    def call(self, method, path, body):
        self.calls += 1
        if self.calls == self.fails_at:
            raise Unavailable("the hub went away, says the test")
        fact = msgspec.to_builtins(body)
        if path == "/api/v1/keys":
            self.keys.append(fact)
            return {"api_key": f"mdg_{len(self.keys)}"}
        if path == "/api/v1/tariffs":
            assert "tariff_id" not in fact
            self.tariffs.append(fact)
        elif method == "PUT":
            self.facts[path] = fact
        else:
            self.facts[f"{path}/{fact.get('tenant_id') or fact['name']}"] = fact
        return fact


def first_day(hub, known=None):
    """Apply the demo; return the credentials as they were kept."""
    kept = [known or Credentials(hub_url="h", national_url="n", admin_token="t")]
    apply_demo(hub, builtin_catalog(), kept[0], kept.append, lambda: TODAY)
    return kept[-1]


def test_a_fresh_federation_has_prices_budgets_and_a_clinical_clinic():
    hub = FakeHub()
    credentials = first_day(hub)
    assert [tenant.name for tenant in credentials.tenants] == ["daegu-clinic", "gumi-parts", "gwangju-city"]
    assert {tariff["service"] for tariff in hub.tariffs} == {one.name for one in demo_services(builtin_catalog())}
    assert len(hub.tariffs) == 2 * len(PriorityClass)
    assert {tariff["valid_from"] for tariff in hub.tariffs} == {TODAY}
    clinic = hub.get("/api/v1/tenants/daegu-clinic")
    assert clinic["priority"] == "clinical"
    assert clinic["overdraw_micro_won"] > 0
    assert [key["priority"] for key in hub.keys] == ["clinical", "interactive", "interactive"]


def test_budgets_are_far_beyond_what_trying_out_costs():
    chat = next(one for one in demo_tariffs(TODAY) if one.service == CHAT_SERVICE)
    longest = charge_micro_won(chat, Outcome.COMPLETED, 4096, 4096)
    for tenant in demo_tenants():
        assert tenant.budget.day_micro_won > 10_000 * longest > 0
        assert tenant.budget.day_micro_won < tenant.budget.month_micro_won


def test_a_second_time_changes_nothing():
    hub = FakeHub()
    credentials = first_day(hub)
    calls = hub.calls
    assert first_day(hub, credentials) == credentials
    assert hub.calls == calls


@pytest.mark.parametrize("fails_at", range(1, 30))
def test_a_day_that_broke_off_is_finished(fails_at):
    hub, whole = FakeHub(), FakeHub()
    first_day(whole)
    kept = [Credentials(hub_url="h", national_url="n", admin_token="t")]
    hub.fails_at = fails_at
    if fails_at <= whole.calls:
        with pytest.raises(Unavailable):
            apply_demo(hub, builtin_catalog(), kept[0], kept.append, lambda: TODAY)
    hub.fails_at = None
    credentials = first_day(hub, kept[-1])
    assert len(credentials.tenants) == 3
    assert hub.facts == whole.facts
    assert hub.tariffs == whole.tariffs


def test_tenants_of_the_release_before_keep_what_they_have():
    hub = FakeHub()
    old = {"tenant_id": "daegu-clinic", "title": "x", "residency": {"scope": "any"}}
    hub.facts["/api/v1/tenants/daegu-clinic"] = old
    first_day(hub)
    assert hub.get("/api/v1/tenants/daegu-clinic") == old, "without a budget"
    assert hub.keys[0]["priority"] == "interactive"
