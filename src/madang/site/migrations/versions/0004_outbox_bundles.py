"""The outbox keeps events in bundles: a row for each would cost more than everything else that is done to it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make each row that waits a bundle of one event."""
    op.create_table(
        "outbox_bundle",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("appended_at_s", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.execute(
        "INSERT INTO outbox_bundle (seq, events, payload, appended_at_s) "
        "SELECT seq, 1, payload, appended_at_s FROM outbox ORDER BY seq"
    )
    op.drop_table("outbox")
