"""What the facility keeps: the journal of alarms, and what meters read at each quarter of an hour."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add both tables."""
    op.create_table(
        "alarm_journal",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("alarm", sa.String(256), nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
    )
    op.create_index("alarm_journal_at", "alarm_journal", ["at_s"])
    op.create_table(
        "meter_reading",
        sa.Column("point_id", sa.String(128), primary_key=True),
        sa.Column("at_s", sa.Integer, primary_key=True),
        sa.Column("value_wh", sa.Float, nullable=True),
        sa.Column("read_at_s", sa.Float, nullable=True),
        sa.Column("quality", sa.String(16), nullable=False),
        sa.Column("is_simulated", sa.Boolean, nullable=False),
    )
