"""The hub's tables, as this release knows them; `migrations` makes them.

Owns names and types. Refuses to hold queries. Facts of `madang.model` are stored as their JSON in `spec`, with
the columns that queries need beside it; the ledger has a column for every field, since people will query it.
"""

import sqlalchemy as sa

METADATA = sa.MetaData()

SITE = sa.Table(
    "site",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("identity_ed25519", sa.String(64), nullable=False),
    sa.Column("is_revoked", sa.Boolean, nullable=False),
    sa.Column("enrolled_at_s", sa.Float, nullable=False),
)

# Every NATS user ever issued to a site: a revocation must name them all.
SITE_USER = sa.Table(
    "site_user",
    METADATA,
    sa.Column("user_key", sa.String(64), primary_key=True),
    sa.Column("site", sa.String(32), nullable=False, index=True),
    sa.Column("issued_at_s", sa.Integer, nullable=False),
    sa.Column("is_revoked", sa.Boolean, nullable=False),
)

TENANT = sa.Table(
    "tenant",
    METADATA,
    sa.Column("tenant_id", sa.String(63), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

API_KEY = sa.Table(
    "api_key",
    METADATA,
    sa.Column("key_id", sa.String(63), primary_key=True),
    sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.tenant_id"), nullable=False, index=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("expires_at_s", sa.Float),
    sa.Column("is_revoked", sa.Boolean, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

PROJECT = sa.Table(
    "project",
    METADATA,
    sa.Column("project_id", sa.String(63), primary_key=True),
    sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.tenant_id"), nullable=False, index=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

# A key of before there were policies has none, and no limits.
KEY_POLICY = sa.Table(
    "key_policy",
    METADATA,
    sa.Column("key_id", sa.String(63), sa.ForeignKey("api_key.key_id"), primary_key=True),
    sa.Column("tenant_id", sa.String(63), nullable=False, index=True),
    sa.Column("project_id", sa.String(63), nullable=False, index=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

TARIFF = sa.Table(
    "tariff",
    METADATA,
    sa.Column("tariff_id", sa.String(128), primary_key=True),
    sa.Column("service", sa.String(63), nullable=False, index=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

MODEL = sa.Table(
    "model",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

SERVICE = sa.Table(
    "service",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("model", sa.String(63), sa.ForeignKey("model.name"), nullable=False, index=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

DESIRED_ITEM = sa.Table(
    "desired_item",
    METADATA,
    sa.Column("site", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("item_id", sa.String(128), primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("is_deleted", sa.Boolean, nullable=False),
    sa.Column("changed_at_s", sa.Float, nullable=False),
    sa.Index("desired_item_by_generation", "site", "generation"),
    sa.Index("desired_item_by_key", "kind", "item_id"),
)

# Outlives a revoked site, so that a site of the same name goes on counting.
SITE_GENERATION = sa.Table(
    "site_generation",
    METADATA,
    sa.Column("site", sa.String(32), primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
)

LEDGER = sa.Table(
    "ledger",
    METADATA,
    # BigInteger would not be SQLite's rowid alias, and without that there is no automatic value.
    sa.Column("row_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(80), nullable=False, unique=True),
    sa.Column("request_id", sa.String(72), nullable=False, index=True),
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
    sa.Column("started_at_s", sa.Float, nullable=False, index=True),
    sa.Column("ttft_s", sa.Float),
    sa.Column("duration_s", sa.Float, nullable=False),
    sa.Column("project_id", sa.String(63), nullable=False, server_default=""),
    sa.Column("priority", sa.String(16), nullable=False, server_default="interactive"),
    sa.Column("audio_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("tariff_id", sa.String(128), nullable=False, server_default=""),
    sa.Column("charge_micro_won", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("overdraw_micro_won", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("artifact_sha256", sa.String(64), nullable=False, server_default=""),
    sa.Column("images", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("samples", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("is_superseded", sa.Boolean, nullable=False),
    sa.Column("received_at_s", sa.Float, nullable=False),
    sa.Index("ledger_by_tenant", "tenant_id", "started_at_s"),
    sa.Index("ledger_by_project", "project_id", "started_at_s"),
)

LEDGER_REFUSED = sa.Table(
    "ledger_refused",
    METADATA,
    sa.Column("row_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("subject_site", sa.String(64), nullable=False),
    sa.Column("what", sa.String(16), nullable=False),
    sa.Column("event_id", sa.String(80), nullable=False),
    sa.Column("why", sa.String(512), nullable=False),
    sa.Column("raw", sa.Text, nullable=False),
    sa.Column("times", sa.Integer, nullable=False),
    sa.Column("received_at_s", sa.Float, nullable=False),
    # A batch that is delivered again is refused again; it is one refusal, seen twice.
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
)

# Every message of the stream up to `seq` is in the ledger. A hub that starts replays from here, so that a database
# restored from an older copy gets what it lacks.
INGEST_FLOOR = sa.Table(
    "ingest_floor",
    METADATA,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("created", sa.String(64), nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
)

# What sites' billed registers said, as the sites wrote it down: a row for each meter and quarter of an hour, for ever.
METER_READING = sa.Table(
    "meter_reading",
    METADATA,
    sa.Column("site", sa.String(32), primary_key=True),
    sa.Column("point_id", sa.String(128), primary_key=True),
    sa.Column("at_s", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("value_wh", sa.Float),
    sa.Column("read_at_s", sa.Float),
    sa.Column("quality", sa.String(16), nullable=False),
    sa.Column("is_simulated", sa.Boolean, nullable=False),
    sa.Column("received_at_s", sa.Float, nullable=False),
)

# A site's contract with its utility and its own tariff tables, from the first reading on that was sent with them.
METER_TERMS = sa.Table(
    "meter_terms",
    METADATA,
    sa.Column("site", sa.String(32), primary_key=True),
    sa.Column("from_at_s", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("spec", sa.Text, nullable=False),
)

# Micro-won. A row without a holder is the pot itself: what was spent before it began is its `spent`, and whoever
# changes a pot locks it.
LEASE = sa.Table(
    "lease",
    METADATA,
    sa.Column("pot", sa.String(128), primary_key=True),
    sa.Column("holder", sa.String(80), primary_key=True),
    sa.Column("site", sa.String(32), nullable=False),
    sa.Column("granted", sa.BigInteger, nullable=False),
    sa.Column("returned", sa.BigInteger, nullable=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("needed", sa.BigInteger, nullable=False),
    sa.Column("heard_at_s", sa.Float, nullable=False),
    sa.Column("ends_at_s", sa.Float, nullable=False, index=True),
)

SITE_OBSERVED = sa.Table(
    "site_observed",
    METADATA,
    sa.Column("site", sa.String(32), primary_key=True),
    sa.Column("boot_id", sa.String(64), nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("applied_generation", sa.BigInteger, nullable=False),
    sa.Column("state_hash", sa.String(64), nullable=False),
    sa.Column("outbox_depth", sa.BigInteger, nullable=False),
    sa.Column("oldest_unsent_age_s", sa.Float, nullable=False),
    sa.Column("received_at_s", sa.Float, nullable=False),
)

# One row: the account as NATS must know it. With the seeds, this is what to back up.
NATS_CLAIMS = sa.Table(
    "nats_claims",
    METADATA,
    sa.Column("account", sa.String(64), primary_key=True),
    sa.Column("jwt", sa.Text, nullable=False),
    sa.Column("revocations", sa.Text, nullable=False),
    sa.Column("issued_at_s", sa.BigInteger, nullable=False),
)

# One row for each key of an artifact that was ever asked for.
BUILD = sa.Table(
    "build",
    METADATA,
    sa.Column("build_id", sa.String(32), primary_key=True),
    sa.Column("model", sa.String(63), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

BUILD_WORKER = sa.Table(
    "build_worker",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("token_sha256", sa.String(64), nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("heard_at_s", sa.Float, nullable=False),
)

EQUIVALENCE = sa.Table(
    "equivalence",
    METADATA,
    sa.Column("pair_id", sa.String(200), primary_key=True),
    sa.Column("model", sa.String(63), nullable=False, index=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target", sa.String(128), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("prev_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
)
