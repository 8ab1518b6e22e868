"""The migrations make exactly the tables that the code expects, also of a database that an older release wrote."""

import msgspec
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from madang.hub.desired_store import read_items, read_keys, read_tenants, replan
from madang.hub.keys_admin import list_keys
from madang.hub.ledger import read_events
from madang.hub.money_views import show_budgets
from madang.hub.tables import METADATA
from madang.model import Budget, PriorityClass, Residency, ResidencyScope, Site, Tenant
from madang.runtime.store import Store, sqlite_url, upgrade_schema

MIGRATIONS = "madang.hub:migrations"


def differences(store):
    return store.write_now(lambda c: compare_metadata(MigrationContext.configure(c), METADATA))


def test_migrations_and_tables_agree(store):
    assert differences(store) == []


@pytest.fixture
def older(tmp_path):
    """A database of the schema of before there were projects, with a site, a tenant, its key and its usage."""
    made = Store(sqlite_url(tmp_path / "older.db"))
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    config.set_main_option("path_separator", "os")
    with made.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        fill(connection)
    yield made
    made.close()


def fill(connection):
    site = Site(name="daegu", region="yeongnam", identity_ed25519="a" * 64)
    rows = {
        "site": {
            "name": "daegu",
            "spec": msgspec.json.encode(site).decode(),
            "identity_ed25519": "a" * 64,
            "is_revoked": False,
            "enrolled_at_s": 1.0,
        },
        "tenant": {
            "tenant_id": "clinic",
            "spec": '{"tenant_id":"clinic","title":"C","residency":{"scope":"site","places":["daegu"]}}',
            "created_at_s": 1.0,
        },
        "api_key": {
            "key_id": "k",
            "tenant_id": "clinic",
            "sha256": "0" * 64,
            "is_revoked": False,
            "created_at_s": 1.0,
        },
        "desired_item": {
            "site": "daegu",
            "kind": "key",
            "item_id": "k",
            "generation": 7,
            "spec": "{}",
            "sha256": "0" * 64,
            "is_deleted": False,
            "changed_at_s": 1.0,
        },
        "site_generation": {"site": "daegu", "generation": 7},
        "ledger": {
            **dict.fromkeys(("tenant_id", "key_id", "service", "model", "endpoint", "entry_site", "site"), "x"),
            **dict.fromkeys(("replica_id", "chip_kind", "outcome", "event_id", "request_id"), "x"),
            **dict.fromkeys(("attempt", "prompt_tokens", "completion_tokens", "hops"), 1),
            **dict.fromkeys(("started_at_s", "duration_s", "received_at_s"), 1.0),
            **dict.fromkeys(("is_estimated", "is_streamed", "is_superseded"), False),
        },
    }
    for name, row in rows.items():
        table = sa.Table(name, sa.MetaData(), autoload_with=connection)
        connection.execute(table.insert().values(**row))


def test_an_older_database_keeps_what_it_has_and_its_keys_have_no_limits(older):
    upgrade_schema(older.engine, MIGRATIONS)
    assert differences(older) == []
    (tenant,) = older.write_now(read_tenants)
    residency = Residency(scope=ResidencyScope.SITE, places=("daegu",))
    assert tenant == Tenant(tenant_id="clinic", title="C", residency=residency)
    assert (tenant.budget, tenant.priority, tenant.overdraw_micro_won) == (Budget(), PriorityClass.INTERACTIVE, 0)
    (key,) = older.write_now(read_keys)
    (view,) = older.write_now(lambda c: list_keys(c, None))
    assert (key.has_policy, view.has_policy, view.priority) == (False, False, None)
    (event,) = older.write_now(lambda c: read_events(c, after=None, limit=10))
    assert (event["event_id"], event["project_id"], event["charge_micro_won"]) == ("x", "", 0)
    assert older.write_now(lambda c: show_budgets(c, "clinic", 1.0)) == {"tenant_id": "clinic", "budgets": []}
    assert older.write_now(lambda c: replan(c, 2.0)) == {"daegu": 8}
    items = older.write_now(lambda c: read_items(c, "daegu", is_live_only=True))
    assert {item.kind for item in items} == {"site", "tenant", "key"}
