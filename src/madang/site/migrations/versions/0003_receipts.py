"""Signed trees of usage events, from which receipts are made."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "receipt_tree",
        sa.Column("tree_id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("signed_at_us", sa.Integer, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("packing", sa.Integer, nullable=False),
        sa.Column("events", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "receipt_index",
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tree_id", sa.Integer, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
