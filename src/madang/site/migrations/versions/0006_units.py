"""Seconds of sound, images and samples in a site's own totals."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; totals of before did not count these."""
    for name in ("audio_s", "images", "samples"):
        op.add_column("usage_total", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
