"""Builds of artifacts, who compiles them, and which artifacts may stand in for each other."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables; nothing was built or compared before."""
    op.create_table(
        "build",
        sa.Column("build_id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_build_model", "build", ["model"])
    op.create_index("ix_build_state", "build", ["state"])
    op.create_table(
        "build_worker",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("token_sha256", sa.String(64), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("heard_at_s", sa.Float, nullable=False),
    )
    op.create_table(
        "equivalence",
        sa.Column("pair_id", sa.String(200), primary_key=True),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_equivalence_model", "equivalence", ["model"])
