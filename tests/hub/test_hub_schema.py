"""The migrations make exactly the tables that the code expects."""

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from madang.hub.tables import METADATA


def test_migrations_and_tables_agree(store):
    differences = store.write_now(lambda c: compare_metadata(MigrationContext.configure(c), METADATA))
    assert differences == []
