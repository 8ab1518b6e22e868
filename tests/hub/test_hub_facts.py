"""Changes of facts: their rules, and that desired state and audit follow in the same transaction."""

import hashlib

import msgspec
import pytest
import sqlalchemy as sa

from madang.core import Conflict, Rejected
from madang.hub import desired_store, facts_admin, keys_admin
from madang.hub.audit import AUDIT_LOG
from madang.hub.claims import merge_claims, read_claims
from madang.hub.enrolment import USERS_PER_SITE_MAX, Enrolment, enrol_site, revoke_site, set_cordon
from madang.hub.keys_admin import KeyExpiry, KeyRequest
from madang.hub.seeds import compose_account
from madang.hub.tables import API_KEY, DESIRED_ITEM
from madang.model import (
    ApiKey,
    Artifact,
    ArtifactFile,
    CatalogEntry,
    DataClass,
    Residency,
    ResidencyScope,
    Service,
    Task,
    Tenant,
)
from madang.runtime.admin_http import NotFound
from madang.runtime.clock import SystemEntropy
from madang.runtime.nats import decode_claims, user_of_creds
from madang.wire.bus import BATCH_BYTES_MAX, encode, state_hash

ENTROPY = SystemEntropy()
CLINIC = Tenant(tenant_id="clinic", title="병원", residency=Residency(scope=ResidencyScope.SITE, places=("daegu",)))
CITY = Tenant(tenant_id="city", title="City", residency=Residency(scope=ResidencyScope.NATION, places=("kr",)))
MODEL = CatalogEntry(name="qwen2.5", task=Task.CHAT, title="Qwen", licence="Apache-2.0")


@pytest.fixture
def enrol(change, seeds, identity):
    def run(name, region="yeongnam", key=None, **fields):
        request = Enrolment(name=name, region=region, identity_ed25519=identity(key or name), **fields)
        return change(lambda c: enrol_site(c, request, seeds, ENTROPY))

    return run


@pytest.fixture
def three_sites(enrol):
    enrol("daegu")
    enrol("gumi")
    enrol("gwangju", "honam")
    enrol("national", "capital", is_entry_only=True)


def put_tenant(change, tenant, may_replace=False):
    return change(lambda c: facts_admin.put_tenant(c, tenant, may_replace=may_replace))


def held(store, site):
    items = store.write_now(lambda c: desired_store.read_items(c, site, is_live_only=True))
    return {(item.kind, item.item_id): item for item in items}


def generations(store):
    return store.write_now(desired_store.read_live_generations)


def actions(store):
    return [row.action for row in store.write_now(lambda c: AUDIT_LOG.read(c))]


def test_a_tenant_reaches_only_where_it_may(store, change, three_sites):
    before = generations(store)
    put_tenant(change, CLINIC)
    after = generations(store)
    assert {site for site in after if after[site] != before[site]} == {"daegu"}
    assert [site for site in after if ("tenant", "clinic") in held(store, site)] == ["daegu"]


def test_moving_a_tenant_leaves_a_tombstone_where_it_was_and_moves_its_keys(store, change, three_sites):
    put_tenant(change, CLINIC)
    key = change(lambda c: keys_admin.create_key(c, KeyRequest(tenant_id="clinic"), ENTROPY))
    moved = msgspec.structs.replace(CLINIC, residency=Residency(scope=ResidencyScope.REGION, places=("honam",)))
    put_tenant(change, moved, may_replace=True)
    assert ("tenant", "clinic") not in held(store, "daegu")
    assert ("tenant", "clinic") in held(store, "gwangju")
    graves = [i for i in store.write_now(lambda c: desired_store.read_items(c, "daegu")) if i.is_deleted]
    assert {(item.kind, item.item_id) for item in graves} == {("key_policy", key.key_id), ("tenant", "clinic")}
    for site in generations(store):
        spec = msgspec.json.decode(held(store, site)["key", key.key_id].spec, type=ApiKey)
        assert spec.residency.places == ("honam",)


def test_a_key_is_shown_once_and_kept_nowhere(store, change, three_sites, tmp_path):
    put_tenant(change, CLINIC)
    made = change(lambda c: keys_admin.create_key(c, KeyRequest(tenant_id="clinic", key_id="front"), ENTROPY))
    assert made.api_key.startswith("mdg_front_")
    assert len(made.api_key) == len("mdg_front_") + 43
    spec = msgspec.json.decode(held(store, "gwangju")["key", "front"].spec, type=ApiKey)
    assert spec.sha256 == hashlib.sha256(made.api_key.encode()).hexdigest()
    secret = made.api_key.rsplit("_", 1)[1][:20].encode()
    for path in tmp_path.rglob("hub.db*"):
        assert secret not in path.read_bytes()


def test_revoking_and_expiring_reach_every_site_and_repeat_without_effect(store, change, three_sites):
    put_tenant(change, CLINIC)
    change(lambda c: keys_admin.create_key(c, KeyRequest(tenant_id="clinic", key_id="k"), ENTROPY))
    for _ in range(2):
        change(lambda c: keys_admin.set_key_expiry(c, "k", KeyExpiry(expires_at_s=500.0)))
        change(lambda c: keys_admin.revoke_key(c, "k"))
    for site in generations(store):
        spec = msgspec.json.decode(held(store, site)["key", "k"].spec, type=ApiKey)
        assert (spec.is_revoked, spec.expires_at_s) == (True, 500.0)
    assert actions(store).count("key.revoke") == actions(store).count("key.expire") == 1


def test_what_changes_nothing_leaves_generation_and_audit_alone(store, change, three_sites, enrol):
    put_tenant(change, CLINIC)
    before, log = generations(store), actions(store)
    put_tenant(change, CLINIC)
    put_tenant(change, CLINIC, may_replace=True)
    assert (generations(store), actions(store)) == (before, log)
    enrol("daegu")
    assert generations(store) == before
    assert actions(store) == [*log, "site.issue_creds"]


def test_what_is_refused_leaves_nothing(store, change, three_sites):
    before, log = generations(store), actions(store)

    def half(c):
        facts_admin.put_tenant(c, CITY, may_replace=False)
        facts_admin.put_tenant(c, msgspec.structs.replace(CLINIC, title=""), may_replace=False)

    with pytest.raises(Rejected, match="title"):
        change(half)
    assert (generations(store), actions(store)) == (before, log)
    with pytest.raises(NotFound):
        store.write_now(lambda c: facts_admin.read_tenant(c, "city"))


@pytest.mark.parametrize(
    ("scope", "places"),
    [
        ("site", ()),
        ("site", ("a", "b")),
        ("site", ("Daegu!",)),
        ("sites", ()),
        ("region", ()),
        ("nation", ("kr", "kr")),
        ("any", ("kr",)),
    ],
)
def test_a_residency_that_does_not_fit_its_scope_is_refused(change, scope, places):
    residency = Residency(scope=ResidencyScope(scope), places=places)
    with pytest.raises(Rejected):
        put_tenant(change, msgspec.structs.replace(CLINIC, residency=residency))


def test_a_tenant_that_differs_needs_a_put(change):
    put_tenant(change, CLINIC)
    with pytest.raises(Conflict, match="exists and differs"):
        put_tenant(change, msgspec.structs.replace(CLINIC, title="Other"))


def test_a_tenant_with_keys_or_services_stays_until_they_are_gone(store, change, three_sites):
    put_tenant(change, CLINIC)
    change(lambda c: facts_admin.put_model(c, MODEL))
    change(lambda c: facts_admin.put_service(c, Service(name="chat", model="qwen2.5", tenants=("clinic",))))
    change(lambda c: keys_admin.create_key(c, KeyRequest(tenant_id="clinic", key_id="k"), ENTROPY))
    for match, step in (
        ("not revoked", lambda c: keys_admin.revoke_key(c, "k")),
        ("service chat", lambda c: facts_admin.delete_service(c, "chat")),
    ):
        with pytest.raises(Conflict, match=match):
            change(lambda c: facts_admin.delete_tenant(c, "clinic"))
        change(step)
    change(lambda c: facts_admin.delete_tenant(c, "clinic"))
    for site in generations(store):
        assert {kind for kind, _ in held(store, site)} == {"site", "model"}
    assert store.write_now(lambda c: c.scalar(sa.select(sa.func.count()).select_from(API_KEY))) == 0


def test_a_service_is_assigned_where_a_tenant_of_it_may_be_served(store, change, three_sites):
    put_tenant(change, CLINIC)
    change(lambda c: facts_admin.put_model(c, MODEL))
    change(lambda c: facts_admin.put_service(c, Service(name="chat", model="qwen2.5")))
    change(lambda c: facts_admin.put_service(c, Service(name="ward", model="qwen2.5", tenants=("clinic",))))

    def assigned(name):
        return [site for site in generations(store) if ("assignment", name) in held(store, site)]

    assert assigned("chat") == ["daegu", "gumi", "gwangju"]
    assert assigned("ward") == ["daegu"]
    moved = msgspec.structs.replace(CLINIC, residency=Residency(scope=ResidencyScope.REGION, places=("yeongnam",)))
    put_tenant(change, moved, may_replace=True)
    assert assigned("ward") == ["daegu", "gumi"]
    change(lambda c: set_cordon(c, "gumi", is_cordoned=True))
    change(lambda c: facts_admin.put_service(c, Service(name="late", model="qwen2.5")))
    assert assigned("ward") == ["daegu", "gumi"]
    assert assigned("late") == ["daegu", "gwangju"]
    change(lambda c: set_cordon(c, "gumi", is_cordoned=False))
    assert assigned("late") == ["daegu", "gumi", "gwangju"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "none"}, "not in the catalog"),
        ({"tenants": ("nobody",)}, "nobody"),
        ({"sites": ("nowhere",)}, "nowhere"),
        ({"sites": ("national",)}, "without chips"),
        ({"slots": 0}, "slots"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"replicas_per_site": -1}, "replicas_per_site"),
        ({"name": "Bad Name"}, "service name"),
        ({"has_prefix_cache": True}, "class open"),
    ],
)
def test_a_service_that_cannot_be_is_refused(change, three_sites, fields, said):
    put_tenant(change, CLINIC)
    change(lambda c: facts_admin.put_model(c, MODEL))
    service = msgspec.structs.replace(Service(name="chat", model="qwen2.5"), **fields)
    with pytest.raises(Rejected, match=said):
        change(lambda c: facts_admin.put_service(c, service))


def test_a_prefix_cache_and_a_sensitive_tenant_do_not_meet(change, three_sites):
    put_tenant(change, msgspec.structs.replace(CITY, data_class=DataClass.OPEN))
    change(lambda c: facts_admin.put_model(c, MODEL))
    change(lambda c: facts_admin.put_service(c, Service(name="chat", model="qwen2.5", has_prefix_cache=True)))
    with pytest.raises(Conflict, match="prefix cache"):
        put_tenant(change, CITY, may_replace=True)
    with pytest.raises(Conflict, match="prefix cache"):
        put_tenant(change, CLINIC)


def test_only_what_others_run_has_no_files(change, three_sites):
    for engine in ("external", "llama_cpp"):
        artifact = Artifact(artifact_id="a", engine=engine, chip_kinds=("cpu",), files=(), memory_bytes=1)
        model = msgspec.structs.replace(MODEL, artifacts=(artifact,))
        if engine == "external":
            change(lambda c, model=model: facts_admin.put_model(c, model))
        else:
            with pytest.raises(Rejected, match="has no files"):
                change(lambda c, model=model: facts_admin.put_model(c, model))


def test_a_model_in_use_stays_and_bad_ones_are_refused(change, three_sites):
    change(lambda c: facts_admin.put_model(c, MODEL))
    change(lambda c: facts_admin.put_service(c, Service(name="chat", model="qwen2.5")))
    with pytest.raises(Conflict, match="service chat"):
        change(lambda c: facts_admin.delete_model(c, "qwen2.5"))
    bad = Artifact(
        artifact_id="q4",
        engine="llama_cpp",
        chip_kinds=("cpu",),
        memory_bytes=1,
        files=(ArtifactFile(name="f", size_bytes=1, sha256="ABC"),),
    )
    with pytest.raises(Rejected, match="sha256"):
        change(lambda c: facts_admin.put_model(c, msgspec.structs.replace(MODEL, artifacts=(bad,))))
    huge = msgspec.structs.replace(MODEL, note="x" * desired_store.ITEM_BYTES_MAX)
    with pytest.raises(Rejected, match="can be sent"):
        change(lambda c: facts_admin.put_model(c, huge))


def test_keys_of_nobody_expired_keys_and_taken_ids_are_refused(change):
    put_tenant(change, CLINIC)
    change(lambda c: keys_admin.create_key(c, KeyRequest(tenant_id="clinic", key_id="k"), ENTROPY))
    for request, error in (
        (KeyRequest(tenant_id="nobody"), NotFound),
        (KeyRequest(tenant_id="clinic", expires_at_s=999.0), Rejected),
        (KeyRequest(tenant_id="clinic", key_id="UP"), Rejected),
        (KeyRequest(tenant_id="clinic", key_id="k"), Conflict),
    ):
        with pytest.raises(error):
            change(lambda c, request=request: keys_admin.create_key(c, request, ENTROPY))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "Daegu"}, "site name"),
        ({"identity_ed25519": "xyz"}, "identity_ed25519"),
        ({"region": ""}, "region"),
        ({"nation": "KOR"}, "nation"),
        ({"tenant_url": "daegu:80"}, "tenant_url"),
        ({"peer_url": "http://daegu/path"}, "peer_url"),
        ({"peer_url": "http://a..b:80"}, "peer_url"),
        ({"peer_url": f"http://{'a' * 64}.kr"}, "peer_url"),
        ({"artifact_url": "https://daegu.example:7718/artifacts"}, "artifact_url"),
        ({"tenant_url": "https://key@daegu.example"}, "tenant_url"),
        ({"tenant_url": "https://daegu.example:99999"}, "tenant_url"),
    ],
)
def test_a_malformed_enrolment_is_named(change, seeds, identity, fields, said):
    request = Enrolment(name="daegu", region="yeongnam", identity_ed25519=identity("daegu"))
    with pytest.raises(Rejected, match=said):
        change(lambda c: enrol_site(c, msgspec.structs.replace(request, **fields), seeds, ENTROPY))


def test_enrolment_is_idempotent_updates_and_guards_the_name(store, change, seeds, enrol):
    first = enrol("daegu")
    again = enrol("daegu", tenant_url="http://127.0.0.1:7710")
    assert (first.is_new, again.is_new) == (True, False)
    assert user_of_creds(first.creds) != user_of_creds(again.creds)
    assert again.site.tenant_url == "http://127.0.0.1:7710"
    with pytest.raises(Conflict, match="another identity"):
        enrol("daegu", key="other")
    change(lambda c: revoke_site(c, "daegu", seeds))
    with pytest.raises(Conflict, match="was revoked"):
        enrol("daegu")
    assert enrol("daegu", key="other").is_new


def test_revoking_a_site_names_all_its_users_and_everybody_forgets_it(store, change, seeds, enrol, three_sites):
    users = {user_of_creds(enrol("gumi").creds) for _ in range(3)}
    change(lambda c: revoke_site(c, "gumi", seeds))
    token, revocations = store.write_now(lambda c: read_claims(c, seeds))
    assert users < set(revocations)
    assert decode_claims(token)["nats"]["revocations"] == revocations
    assert ("site", "gumi") not in held(store, "daegu")
    assert held(store, "gumi") == {}
    assert "gumi" not in generations(store)
    with pytest.raises(NotFound):
        change(lambda c: revoke_site(c, "gumi", seeds))


def test_a_site_enrolled_again_under_an_old_name_goes_on_counting(store, change, seeds, enrol, three_sites):
    before = generations(store)["gumi"]
    change(lambda c: revoke_site(c, "gumi", seeds))
    enrol("gumi", key="new hardware")
    assert generations(store)["gumi"] > before


def test_credentials_of_one_site_are_bounded(store, seeds, enrol):
    users = [user_of_creds(enrol("daegu").creds) for _ in range(USERS_PER_SITE_MAX + 2)]
    _, revocations = store.write_now(lambda c: read_claims(c, seeds))
    assert len(revocations) == 2
    assert users[-1] not in revocations


def test_claims_keep_revocations_of_file_and_database(store, seeds):
    from_file = compose_account(seeds, {"UA": 5}, 100)
    token = store.write_now(lambda c: merge_claims(c, seeds, from_file, 50.0))
    assert token == from_file
    assert store.write_now(lambda c: merge_claims(c, seeds, from_file, 60.0)) == token
    newer = compose_account(seeds, {"UB": 7}, 200)
    merged = store.write_now(lambda c: merge_claims(c, seeds, newer, 50.0))
    claims = decode_claims(merged)
    assert claims["nats"]["revocations"] == {"UA": 5, "UB": 7}
    assert claims["iat"] > 100
    assert store.write_now(lambda c: merge_claims(c, seeds, "", 300.0)) == merged


def test_a_generation_jumps_above_the_site_and_stamps_everything(store, change, three_sites):
    put_tenant(change, CLINIC)
    assert store.write_now(lambda c: desired_store.jump_generation(c, "daegu", 100)) == 101
    assert {item.generation for item in held(store, "daegu").values()} == {101}
    assert generations(store)["daegu"] == 101
    assert store.write_now(lambda c: desired_store.jump_generation(c, "daegu", 50)) == 101


def test_the_wanted_hash_is_that_of_the_live_items(store, change, three_sites):
    put_tenant(change, CLINIC)
    put_tenant(change, msgspec.structs.replace(CLINIC, residency=Residency(scope=ResidencyScope.ANY)), may_replace=True)
    generation, digest = store.write_now(lambda c: desired_store.read_wanted_hash(c, "daegu"))
    assert digest == state_hash({key: item.sha256 for key, item in held(store, "daegu").items()})
    assert generation == generations(store)["daegu"]


def test_old_tombstones_are_forgotten_and_young_ones_kept(store, change, three_sites):
    put_tenant(change, CLINIC)
    change(lambda c: facts_admin.delete_tenant(c, "clinic"))
    count = sa.select(sa.func.count()).select_from(DESIRED_ITEM).where(DESIRED_ITEM.c.is_deleted.is_(True))
    kept_s = desired_store.TOMBSTONE_KEPT_S
    assert store.write_now(lambda c: desired_store.drop_old_tombstones(c, 1000.0 + kept_s)) == 0
    assert store.write_now(lambda c: c.scalar(count)) == 1
    assert store.write_now(lambda c: desired_store.drop_old_tombstones(c, 1001.0 + kept_s)) == 1


def test_a_partial_plan_equals_the_whole(store, change, three_sites):
    put_tenant(change, CLINIC)
    put_tenant(change, CITY)
    change(lambda c: facts_admin.put_model(c, MODEL))
    change(lambda c: facts_admin.put_service(c, Service(name="ward", model="qwen2.5", tenants=("clinic",))))
    for number in range(20):
        change(lambda c, n=number: keys_admin.create_key(c, KeyRequest(tenant_id="city", key_id=f"k{n}"), ENTROPY))
    change(lambda c: facts_admin.delete_service(c, "ward"))
    assert store.write_now(lambda c: desired_store.replan(c, 2000.0)) == {}


def test_resync_parts_hold_everything_once_under_the_bound(store, change, three_sites):
    put_tenant(change, CITY)
    for number in range(8):
        model = msgspec.structs.replace(MODEL, name=f"m{number}", note="가" * 60_000)
        change(lambda c, model=model: facts_admin.put_model(c, model))
    items = store.write_now(lambda c: desired_store.read_items(c, "daegu", is_live_only=True))
    parts = desired_store.make_resync_parts("daegu", "r", 9, items)
    assert [part.part for part in parts] == list(range(len(parts)))
    assert {part.parts for part in parts} == {len(parts)}
    assert len(parts) > 1
    assert all(len(encode(part)) <= BATCH_BYTES_MAX for part in parts)
    assert [item for part in parts for item in part.items] == items
    assert len(desired_store.make_resync_parts("daegu", "r", 9, [])) == 1
