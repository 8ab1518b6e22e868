"""Applied desired state in a real database: newer wins, snapshots replace, and memory follows the commits."""

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import depth
from tests.site.fresh_database import make_database

from madang.core import Conflict, KeyId, ProjectId, Rejected, ServiceName, SiteId, TenantId
from madang.model import ApiKey, KeyPolicy, PriorityClass, Project, Residency, ResidencyScope, Tariff, Tenant
from madang.model.lease import PotKey
from madang.runtime.store import open_engine, sqlite_url, upgrade_schema
from madang.site.desired import (
    REFUSALS_MAX,
    DesiredView,
    Refusal,
    apply_items,
    apply_snapshot,
    check_item,
    read_desired,
    read_meta,
    read_refusals,
    record_refusals,
    write_meta,
)
from madang.site.feed import make_snapshot
from madang.site.leases.rows import Mark, add_pots, begin_life, read_pots
from madang.site.resync import BYTES_MAX, PARTS_MAX, ResyncBuffer
from madang.site.tables import LEASE_POT
from madang.wire import bus
from madang.wire.feed import decode_snapshot, encode_feed

DAEGU = SiteId("daegu")
ANYWHERE = Residency(scope=ResidencyScope.ANY)


def make_tenant(name, title="t"):
    return Tenant(tenant_id=TenantId(name), title=title, residency=ANYWHERE)


def make_key(name, **changes):
    return ApiKey(key_id=KeyId(name), sha256="0" * 64, tenant_id=TenantId("t"), residency=ANYWHERE, **changes)


def tenant_item(name, generation, title="t"):
    return bus.make_desired_item(DAEGU, "tenant", name, generation, make_tenant(name, title))


def tombstone(name, generation):
    return bus.make_desired_item(DAEGU, "tenant", name, generation, None)


class Held:
    """A database and the view that follows it, as the pull agent keeps them."""

    def __init__(self, path):
        make_database(path)
        self.engine = open_engine(sqlite_url(path))
        self.view = DesiredView()

    def take(self, *items):
        with self.engine.begin() as connection:
            applied = apply_items(connection, [check_item(item, "daegu") for item in items], 1.0)
        self.view.take(applied)
        return applied

    def snapshot(self, generation, *items):
        with self.engine.begin() as connection:
            applied = apply_snapshot(connection, generation, [check_item(item, "daegu") for item in items], 1.0)
        self.view.take(applied)

    def read_again(self):
        view = DesiredView()
        with self.engine.begin() as connection:
            view.take(read_desired(connection))
        return view

    def titles(self):
        return {name: tenant.title for name, tenant in self.view.tenants.items()}


@pytest.fixture
def held(tmp_path):
    found = Held(tmp_path / "site.db")
    yield found
    found.engine.dispose()


def test_a_newer_item_wins_and_an_older_or_equal_one_is_dropped(held):
    held.take(tenant_item("a", 5, "five"))
    assert held.take(tenant_item("a", 4, "four"), tenant_item("a", 5, "again")).items == ()
    assert held.titles() == {"a": "five"}
    held.take(tenant_item("a", 6, "six"))
    assert held.titles() == {"a": "six"}
    assert held.view.generation == 6


def test_a_late_message_does_not_bring_a_deleted_item_back(held):
    held.take(tenant_item("a", 5), tombstone("a", 6), tenant_item("a", 5))
    assert held.titles() == {}
    assert held.view.generation == 6
    assert held.read_again().tenants == {}


def test_a_late_message_does_not_bring_back_what_a_snapshot_lacked(held):
    held.take(tenant_item("a", 5))
    held.snapshot(9, tenant_item("b", 7))
    held.take(tenant_item("a", 8), tenant_item("b", 6, "old"))
    assert held.titles() == {"b": "t"}
    held.take(tenant_item("a", 10))
    assert set(held.titles()) == {"a", "b"}


def test_a_snapshot_replaces_everything_also_at_the_same_generation(held):
    held.take(tenant_item("a", 5, "wrong"), tenant_item("b", 5))
    held.snapshot(5, tenant_item("a", 3, "right"))
    assert held.titles() == {"a": "right"}
    assert held.view.generation == 5


def test_an_older_snapshot_is_refused_and_changes_nothing(held):
    held.take(tenant_item("a", 5))
    with pytest.raises(Conflict, match="older"):
        held.snapshot(4, tenant_item("b", 4))
    assert held.titles() == {"a": "t"}
    assert held.read_again().state_hash == held.view.state_hash


def test_the_hash_is_what_the_hub_computes(held):
    items = [tenant_item("a", 1), bus.make_desired_item(DAEGU, "key", "k1", 2, make_key("k1")), tombstone("b", 3)]
    held.take(*items)
    expected = bus.state_hash({(item.kind, item.item_id): item.sha256 for item in items if not item.is_deleted})
    assert held.view.state_hash == expected
    assert held.view.keys["k1"] == make_key("k1")


def test_a_kind_from_the_future_is_kept_for_the_hash_and_shown_as_unreadable(held):
    lease = bus.make_desired_item(DAEGU, "lease", "l1", 1, make_tenant("x"))
    held.take(lease, tenant_item("a", 2))
    assert held.view.state_hash == bus.state_hash(
        {("lease", "l1"): lease.sha256, ("tenant", "a"): tenant_item("a", 2).sha256}
    )
    assert held.read_again().state_hash == held.view.state_hash
    assert ("lease", "l1") in held.view.unreadable


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (bus.make_desired_item(SiteId("gumi"), "tenant", "a", 1, make_tenant("a")), "of site 'gumi'"),
        (bus.make_desired_item(DAEGU, "tenant", "a", 1, make_tenant("b")), "holds the tenant 'b'"),
        (bus.make_desired_item(DAEGU, "tenant", "a", 1, make_key("a")), "is not a tenant"),
        (bus.make_desired_item(DAEGU, "key", "a", 1, {"key_id": 3}), "is not a key"),
    ],
)
def test_a_malformed_item_is_refused_by_name(item, reason):
    with pytest.raises(Rejected, match=reason):
        check_item(item, "daegu")


def test_refusals_are_written_down_and_bounded(held):
    with held.engine.begin() as connection:
        for number in range(REFUSALS_MAX + 20):
            record_refusals(connection, [Refusal(subject=f"s{number}", reason="x" * 5000)], 1.0)
        rows = read_refusals(connection)
    assert len(rows) == REFUSALS_MAX
    assert rows[0]["subject"] == f"s{REFUSALS_MAX + 19}"


operations = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.booleans(), st.sampled_from(["x", "y"])), max_size=20
)


@settings(max_examples=depth(20, 500))
@given(operations, st.integers(1, 7))
def test_memory_is_what_the_database_holds_however_items_are_batched(tmp_path_factory, steps, size):
    held = Held(tmp_path_factory.mktemp("desired") / "site.db")
    items = [
        tombstone(name, generation) if is_deleted else tenant_item(name, generation, title)
        for name, generation, is_deleted, title in steps
    ]
    for start in range(0, len(items), size):
        held.take(*items[start : start + size])
    again = held.read_again()
    assert again.tenants == held.view.tenants
    assert again.state_hash == held.view.state_hash
    assert again.generation == held.view.generation == max([0, *(item.generation for item in items)])
    for name in {step[0] for step in steps}:
        newest = max(generation for n, generation, _, _ in steps if n == name)
        first = next(step for step in steps if step[0] == name and step[1] == newest)
        assert (name in held.view.tenants) == (not first[2])
    held.engine.dispose()


def make_part(number, parts, resync="r1", generation=5, items=(), site="daegu"):
    return bus.ResyncPart(
        site=SiteId(site), resync_id=resync, part=number, parts=parts, generation=generation, items=items
    )


def test_parts_make_a_snapshot_in_any_order_and_may_come_twice():
    buffer = ResyncBuffer("daegu")
    first, second = tenant_item("a", 1), tenant_item("b", 1)
    assert buffer.add(make_part(1, 2, items=(second,)), 10) is None
    assert buffer.add(make_part(1, 2, items=(second,)), 10) is None
    whole = buffer.add(make_part(0, 2, items=(first,)), 10)
    assert [item.item_id for item in whole.items] == ["a", "b"]
    assert buffer.add(make_part(0, 2), 10) is None, "the snapshot that was whole is forgotten"


def test_a_new_snapshot_replaces_the_one_under_way():
    buffer = ResyncBuffer("daegu")
    buffer.add(make_part(0, 2, resync="r1"), 10)
    assert buffer.add(make_part(1, 2, resync="r2"), 10) is None
    assert buffer.add(make_part(0, 2, resync="r2"), 10).resync_id == "r2"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (make_part(0, 0), "parts"),
        (make_part(0, PARTS_MAX + 1), "parts"),
        (make_part(2, 2), "outside"),
        (make_part(-1, 2), "outside"),
        (make_part(1, 3), "disagree"),
        (make_part(1, 2, generation=6), "disagree"),
        (make_part(1, 2, site="gumi"), "gumi"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(part, reason):
    buffer = ResyncBuffer("daegu")
    if part.parts in (2, 3):
        buffer.add(make_part(0, 2), 10)
    with pytest.raises(Rejected, match=reason):
        buffer.add(part, 10)


def test_a_snapshot_over_the_bound_is_refused_and_forgotten():
    buffer = ResyncBuffer("daegu")
    buffer.add(make_part(0, 3), BYTES_MAX)
    with pytest.raises(Rejected, match="bytes"):
        buffer.add(make_part(1, 3), 1)
    assert buffer.add(make_part(1, 2, resync="r2"), BYTES_MAX) is None


def test_a_database_of_a_newer_release_is_refused(tmp_path):
    engine = open_engine(sqlite_url(tmp_path / "site.db"))
    upgrade_schema(engine, "madang.site:migrations")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Rejected, match="newer than this release"):
        upgrade_schema(engine, "madang.site:migrations")
    engine.dispose()


def test_the_migrations_make_what_the_tables_say(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from madang.site.tables import METADATA

    engine = open_engine(sqlite_url(tmp_path / "site.db"))
    upgrade_schema(engine, "madang.site:migrations")
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_a_spec_that_a_later_release_wrote_does_not_stop_the_site(held):
    held.take(tenant_item("a", 1))
    with held.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE desired_item SET spec = ?", (msgspec.json.encode({"tenant_id": 1}),))
    view = held.read_again()
    assert view.tenants == {}
    assert ("tenant", "a") in view.unreadable
    assert view.state_hash == held.view.state_hash


def test_projects_limits_and_prices_are_applied_and_removed(held):
    facts = {
        "project": Project(project_id=ProjectId("ward"), tenant_id=TenantId("clinic"), title="w"),
        "key_policy": KeyPolicy(key_id=KeyId("k1"), tenant_id=TenantId("clinic"), project_id=ProjectId("ward")),
        "tariff": Tariff(
            tariff_id="chat.batch.2026-01-01",
            service=ServiceName("chat"),
            priority=PriorityClass.BATCH,
            valid_from="2026-01-01",
            request_micro_won=5,
        ),
    }
    names = {"project": "ward", "key_policy": "k1", "tariff": "chat.batch.2026-01-01"}
    held.take(*(bus.make_desired_item(DAEGU, kind, names[kind], 1, fact) for kind, fact in facts.items()))
    for view in (held.view, held.read_again()):
        assert view.projects == {"ward": facts["project"]}
        assert view.key_policies == {"k1": facts["key_policy"]}
        assert view.tariffs == {"chat.batch.2026-01-01": facts["tariff"]}
        assert view.unreadable == {}
    hash_before = held.view.state_hash
    held.take(*(bus.make_desired_item(DAEGU, kind, name, 2, None) for kind, name in names.items()))
    assert (held.view.projects, held.view.key_policies, held.view.tariffs) == ({}, {}, {})
    assert held.view.state_hash != hash_before
    held.take(bus.make_desired_item(DAEGU, "project", "ward", 3, facts["project"]))
    held.snapshot(4)
    assert held.view.projects == {}


def test_an_item_under_anothers_name_is_refused():
    project = Project(project_id=ProjectId("ward"), tenant_id=TenantId("clinic"), title="w")
    with pytest.raises(Rejected, match="holds the project"):
        check_item(bus.make_desired_item(DAEGU, "project", "other", 1, project), "daegu")


def test_the_gateway_is_told_of_what_its_tenants_may_do_and_of_every_price():
    view = DesiredView()
    view.tenants["clinic"] = make_tenant("clinic")
    for name, tenant in (("ward", "clinic"), ("stray", "gone")):
        view.projects[name] = Project(project_id=ProjectId(name), tenant_id=TenantId(tenant), title="w")
        view.key_policies[name] = KeyPolicy(
            key_id=KeyId(name), tenant_id=TenantId(tenant), project_id=ProjectId("ward")
        )
    for day in ("2026-02-01", "2026-01-01"):
        view.tariffs[f"chat.batch.{day}"] = Tariff(
            tariff_id=f"chat.batch.{day}", service=ServiceName("chat"), priority=PriorityClass.BATCH, valid_from=day
        )
    snapshot = decode_snapshot(encode_feed(make_snapshot("daegu", view)))
    assert [project.project_id for project in snapshot.projects] == ["ward"]
    assert [policy.key_id for policy in snapshot.key_policies] == ["ward"]
    assert [tariff.valid_from for tariff in snapshot.tariffs] == ["2026-01-01", "2026-02-01"]


def test_a_database_of_the_release_before_gets_the_table_of_leases(tmp_path):
    engine = open_engine(sqlite_url(tmp_path / "old.db"))
    upgrade_schema(engine, "madang.site:migrations")
    with engine.begin() as connection:
        for table in ("lease_pot", "alarm_journal", "meter_reading"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        for column in ("audio_s", "images", "samples"):
            connection.exec_driver_sql(f"ALTER TABLE usage_total DROP COLUMN {column}")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0004'")
        write_meta(connection, "kept", "yes")
    upgrade_schema(engine, "madang.site:migrations")
    with engine.begin() as connection:
        life, is_older = begin_life(connection, "ab" * 8, Mark())
        (row,) = add_pots(
            connection, [(PotKey(scope="tenant", account="c", period="day", label="2026-09-24"), 5.0)], life
        )
        assert read_meta(connection, "kept") == "yes"
        assert not is_older
        assert read_pots(connection) == [row]
        assert {column["name"] for column in sa.inspect(connection).get_columns("lease_pot")} == {
            column.name for column in LEASE_POT.columns
        }
    engine.dispose()
