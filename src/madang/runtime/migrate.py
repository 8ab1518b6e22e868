"""Brings a database to this release's schema with Alembic.

Owns how migrations are found and run. Refuses to know tables, and to open or commit anything. Called by
`madang.runtime.store`, and imported only when a database is not up to date: Alembic takes long to import.
"""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from madang.core import Rejected


def migrate(connection: sa.Connection, location: str, newest: str, target: str) -> None:
    """Run what is missing up to revision `newest` on the connection, in the transaction that the caller opened.

    Args:
        connection: of the database.
        location: `package:folder` of the migrations.
        newest: the revision that the names of their files end at.
        target: how messages name the database.

    Raises:
        Rejected: the database was written by a newer release; nothing was changed.
    """
    config = Config()
    config.set_main_option("script_location", location)
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    head = script.get_current_head()
    assert head == newest, f"{location}: the files end at {newest}, the revisions in them at {head}"
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise Rejected(
            f"database {target} has schema {current}, newer than this release, which knows up to {head}",
            next_step="start the release that wrote it, or restore a backup made before the upgrade",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
