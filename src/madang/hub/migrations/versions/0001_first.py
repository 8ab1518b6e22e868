"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    _make_facts()
    _make_desired()
    _make_ledger()
    _make_operations()


def _make_facts() -> None:
    op.create_table(
        "site",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("identity_ed25519", sa.String(64), nullable=False),
        sa.Column("is_revoked", sa.Boolean, nullable=False),
        sa.Column("enrolled_at_s", sa.Float, nullable=False),
    )
    op.create_table(
        "site_user",
        sa.Column("user_key", sa.String(64), primary_key=True),
        sa.Column("site", sa.String(32), nullable=False),
        sa.Column("issued_at_s", sa.Integer, nullable=False),
        sa.Column("is_revoked", sa.Boolean, nullable=False),
    )
    op.create_index("ix_site_user_site", "site_user", ["site"])
    op.create_table(
        "tenant",
        sa.Column("tenant_id", sa.String(63), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_table(
        "api_key",
        sa.Column("key_id", sa.String(63), primary_key=True),
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.tenant_id"), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("expires_at_s", sa.Float),
        sa.Column("is_revoked", sa.Boolean, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_api_key_tenant_id", "api_key", ["tenant_id"])
    op.create_table(
        "model",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_table(
        "service",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("model", sa.String(63), sa.ForeignKey("model.name"), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_service_model", "service", ["model"])


def _make_desired() -> None:
    op.create_table(
        "desired_item",
        sa.Column("site", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("item_id", sa.String(63), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("is_deleted", sa.Boolean, nullable=False),
        sa.Column("changed_at_s", sa.Float, nullable=False),
    )
    op.create_index("desired_item_by_generation", "desired_item", ["site", "generation"])
    op.create_index("desired_item_by_key", "desired_item", ["kind", "item_id"])
    op.create_table(
        "site_generation",
        sa.Column("site", sa.String(32), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
    )


def _make_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("row_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.String(80), nullable=False, unique=True),
        sa.Column("request_id", sa.String(72), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("tenant_id", sa.String(63), nullable=False),
        sa.Column("key_id", sa.String(63), nullable=False),
        sa.Column("service", sa.String(63), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("endpoint", sa.String(128), nullable=False),
        sa.Column("entry_site", sa.String(32), nullable=False),
        sa.Column("site", sa.String(32), nullable=False),
        sa.Column("replica_id", sa.String(128), nullable=False),
        sa.Column("chip_kind", sa.String(63), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("is_estimated", sa.Boolean, nullable=False),
        sa.Column("is_streamed", sa.Boolean, nullable=False),
        sa.Column("hops", sa.Integer, nullable=False),
        sa.Column("started_at_s", sa.Float, nullable=False),
        sa.Column("ttft_s", sa.Float),
        sa.Column("duration_s", sa.Float, nullable=False),
        sa.Column("is_superseded", sa.Boolean, nullable=False),
        sa.Column("received_at_s", sa.Float, nullable=False),
    )
    op.create_index("ix_ledger_request_id", "ledger", ["request_id"])
    op.create_index("ix_ledger_started_at_s", "ledger", ["started_at_s"])
    op.create_index("ledger_by_tenant", "ledger", ["tenant_id", "started_at_s"])
    op.create_table(
        "ledger_refused",
        sa.Column("row_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("subject_site", sa.String(64), nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("event_id", sa.String(80), nullable=False),
        sa.Column("why", sa.String(512), nullable=False),
        sa.Column("raw", sa.Text, nullable=False),
        sa.Column("times", sa.Integer, nullable=False),
        sa.Column("received_at_s", sa.Float, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
    )
    op.create_table(
        "ingest_floor",
        sa.Column("stream", sa.String(64), primary_key=True),
        sa.Column("created", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )


def _make_operations() -> None:
    op.create_table(
        "site_observed",
        sa.Column("site", sa.String(32), primary_key=True),
        sa.Column("boot_id", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("applied_generation", sa.BigInteger, nullable=False),
        sa.Column("state_hash", sa.String(64), nullable=False),
        sa.Column("outbox_depth", sa.BigInteger, nullable=False),
        sa.Column("oldest_unsent_age_s", sa.Float, nullable=False),
        sa.Column("received_at_s", sa.Float, nullable=False),
    )
    op.create_table(
        "nats_claims",
        sa.Column("account", sa.String(64), primary_key=True),
        sa.Column("jwt", sa.Text, nullable=False),
        sa.Column("revocations", sa.Text, nullable=False),
        sa.Column("issued_at_s", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(128), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("prev_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END"
            )
