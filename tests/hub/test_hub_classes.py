"""Classes of data at the hub: who marks a site, what follows from it, and what cannot be asked for."""

import msgspec
import pytest
from tests.hub.test_hub_api import SITE, api, ok, refused  # noqa: F401 - a fixture
from tests.hub.test_hub_facts import (  # noqa: F401 - fixtures
    CITY,
    CLINIC,
    ENTROPY,
    MODEL,
    actions,
    enrol,
    generations,
    held,
    put_tenant,
    three_sites,
)

from madang.core import Rejected
from madang.hub import desired_store, facts_admin, keys_admin
from madang.hub.enrolment import set_data_class
from madang.hub.keys_admin import KeyRequest
from madang.hub.tables import DESIRED_ITEM
from madang.model import ApiKey, DataClass, Residency, ResidencyScope, Service

SECRET = msgspec.structs.replace(CITY, tenant_id="secret", data_class=DataClass.CLASSIFIED)


def grade(change, site, data_class):
    return change(lambda c: set_data_class(c, site, data_class))


def where(store, kind, item_id):
    return [str(site) for site in generations(store) if (kind, item_id) in held(store, site)]


def test_marking_a_site_brings_tenants_and_their_services_and_unmarking_withdraws_them(
    store,
    change,
    three_sites,  # noqa: F811
):
    put_tenant(change, SECRET)
    change(lambda c: facts_admin.put_model(c, MODEL))
    change(lambda c: facts_admin.put_service(c, Service(name="own", model="qwen2.5", tenants=("secret",))))
    assert where(store, "tenant", "secret") == where(store, "assignment", "own") == []
    grade(change, "daegu", DataClass.CLASSIFIED)
    assert where(store, "tenant", "secret") == where(store, "assignment", "own") == ["daegu"]
    grade(change, "daegu", DataClass.OPEN)
    assert where(store, "tenant", "secret") == where(store, "assignment", "own") == []
    put_tenant(change, CITY)
    assert "daegu" not in where(store, "tenant", "city"), "not even what is only sensitive"
    before = generations(store)
    grade(change, "daegu", DataClass.OPEN)
    assert generations(store) == before, "the same again changes nothing"
    assert actions(store).count("site.data_class") == 2


def test_a_site_cannot_mark_itself_and_enrolling_again_keeps_its_mark(change, enrol, three_sites):  # noqa: F811
    grade(change, "daegu", DataClass.CLASSIFIED)
    assert enrol("daegu", tenant_url="http://127.0.0.1:7710").site.data_class_max is DataClass.CLASSIFIED
    assert enrol("busan").site.data_class_max is DataClass.SENSITIVE


def test_keys_carry_what_their_tenant_says_and_follow_it(store, change, three_sites):  # noqa: F811
    put_tenant(change, CLINIC)
    change(lambda c: keys_admin.create_key(c, KeyRequest(tenant_id="clinic", key_id="k"), ENTROPY))

    def key(site):
        return msgspec.json.decode(held(store, site)["key", "k"].spec, type=ApiKey)

    assert key("gwangju").data_class is DataClass.SENSITIVE
    raised = msgspec.structs.replace(CLINIC, data_class=DataClass.CLASSIFIED, is_redirect_wanted=True)
    put_tenant(change, raised, may_replace=True)
    assert {(key(site).data_class, key(site).is_redirect_wanted) for site in generations(store)} == {
        (DataClass.CLASSIFIED, True)
    }


def test_a_database_of_an_older_release_is_planned_anew(store, change, three_sites):  # noqa: F811
    put_tenant(change, CLINIC)
    change(lambda c: keys_admin.create_key(c, KeyRequest(tenant_id="clinic", key_id="k"), ENTROPY))
    old = msgspec.json.decode(held(store, "gumi")["key", "k"].spec)
    del old["data_class"], old["is_redirect_wanted"]
    spec = msgspec.json.encode(old).decode()
    is_key = DESIRED_ITEM.c.kind == "key"
    store.write_now(lambda c: c.execute(DESIRED_ITEM.update().where(is_key).values(spec=spec, sha256="0" * 64)))
    raised = store.write_now(lambda c: desired_store.replan(c, 1.0))
    assert set(raised) == set(generations(store))
    assert msgspec.json.decode(held(store, "gumi")["key", "k"].spec, type=ApiKey).data_class is DataClass.SENSITIVE
    assert store.write_now(lambda c: desired_store.replan(c, 1.0)) == {}


@pytest.mark.parametrize(
    ("residency", "data_class", "said"),
    [
        (Residency(scope=ResidencyScope.NATION, places=("jp",)), DataClass.SENSITIVE, "stays in kr"),
        (Residency(scope=ResidencyScope.ANY, is_transit_granted=True), DataClass.CLASSIFIED, "never passes through"),
    ],
)
def test_what_can_never_be_is_refused(change, three_sites, residency, data_class, said):  # noqa: F811
    tenant = msgspec.structs.replace(CITY, residency=residency, data_class=data_class)
    with pytest.raises(Rejected, match=said):
        put_tenant(change, tenant)
    put_tenant(change, msgspec.structs.replace(tenant, data_class=DataClass.OPEN))


def test_the_admin_api_marks_sites(api):  # noqa: F811
    ok(api("POST", "/api/v1/sites", SITE), 201)
    assert ok(api("GET", "/api/v1/sites/daegu"))["data_class_max"] == "sensitive"
    path = "/api/v1/sites/daegu/data-class"
    assert ok(api("PUT", path, {"data_class_max": "classified"}))["data_class_max"] == "classified"
    assert ok(api("GET", "/api/v1/status"))["sites"][0]["data_class_max"] == "classified"
    refused(api("PUT", path, {"data_class_max": "secret"}), 400, "invalid_request", "data_class_max")
    refused(api("PUT", path, {}), 400, "invalid_request", "data_class_max")
    refused(api("PUT", "/api/v1/sites/nowhere/data-class", {"data_class_max": "open"}), 404, "not_found")
