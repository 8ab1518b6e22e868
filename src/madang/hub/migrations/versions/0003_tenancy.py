"""Projects, policies of keys, tariffs, and the money that is leased to sites."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables; keys of before have no policy, and nothing was leased."""
    _make_facts()
    _make_leases()
    op.create_index("ledger_by_project", "ledger", ["project_id", "started_at_s"])
    # A tariff's id holds a service's name, a class and a day.
    with op.batch_alter_table("desired_item") as batch:
        batch.alter_column(
            "item_id", existing_type=sa.String(63), type_=sa.String(128), existing_nullable=False, nullable=False
        )


def _make_facts() -> None:
    op.create_table(
        "project",
        sa.Column("project_id", sa.String(63), primary_key=True),
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.tenant_id"), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_project_tenant_id", "project", ["tenant_id"])
    op.create_table(
        "key_policy",
        sa.Column("key_id", sa.String(63), sa.ForeignKey("api_key.key_id"), primary_key=True),
        sa.Column("tenant_id", sa.String(63), nullable=False),
        sa.Column("project_id", sa.String(63), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_key_policy_tenant_id", "key_policy", ["tenant_id"])
    op.create_index("ix_key_policy_project_id", "key_policy", ["project_id"])
    op.create_table(
        "tariff",
        sa.Column("tariff_id", sa.String(128), primary_key=True),
        sa.Column("service", sa.String(63), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_tariff_service", "tariff", ["service"])


def _make_leases() -> None:
    op.create_table(
        "lease",
        sa.Column("pot", sa.String(128), primary_key=True),
        sa.Column("holder", sa.String(80), primary_key=True),
        sa.Column("site", sa.String(32), nullable=False),
        sa.Column("granted", sa.BigInteger, nullable=False),
        sa.Column("returned", sa.BigInteger, nullable=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("needed", sa.BigInteger, nullable=False),
        sa.Column("heard_at_s", sa.Float, nullable=False),
        sa.Column("ends_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_lease_ends_at_s", "lease", ["ends_at_s"])
