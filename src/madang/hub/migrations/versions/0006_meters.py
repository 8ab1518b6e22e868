"""Readings of sites' billed registers, and the contracts by which they are priced."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the tables; no site sent readings before."""
    op.create_table(
        "meter_reading",
        sa.Column("site", sa.String(32), primary_key=True),
        sa.Column("point_id", sa.String(128), primary_key=True),
        sa.Column("at_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("value_wh", sa.Float),
        sa.Column("read_at_s", sa.Float),
        sa.Column("quality", sa.String(16), nullable=False),
        sa.Column("is_simulated", sa.Boolean, nullable=False),
        sa.Column("received_at_s", sa.Float, nullable=False),
    )
    op.create_table(
        "meter_terms",
        sa.Column("site", sa.String(32), primary_key=True),
        sa.Column("from_at_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("spec", sa.Text, nullable=False),
    )
