"""Images and samples in the ledger, for models that are counted in neither tokens nor sound."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns; events of before counted neither."""
    for name in ("images", "samples"):
        op.add_column("ledger", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
