"""What a request was for and what it cost: project, class, sound, tariff, charge and artifact in the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; events of before had none of it, cost nothing and were of the middle class."""
    columns = (
        sa.Column("project_id", sa.String(63), nullable=False, server_default=""),
        sa.Column("priority", sa.String(16), nullable=False, server_default="interactive"),
        sa.Column("audio_ms", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("tariff_id", sa.String(128), nullable=False, server_default=""),
        sa.Column("charge_micro_won", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("overdraw_micro_won", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("artifact_sha256", sa.String(64), nullable=False, server_default=""),
    )
    for column in columns:
        op.add_column("ledger", column)
