"""Money that the hub leases to this site."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table of pots."""
    op.create_table(
        "lease_pot",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(256), nullable=False, unique=True),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("ends_at_s", sa.Float, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )
