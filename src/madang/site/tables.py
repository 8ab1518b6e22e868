"""The site's tables, as this release knows them; `migrations` makes them. SQLite only.

Owns names and types. Refuses to hold queries. What was applied of desired state is stored as the bytes that the hub
hashed, so that a newer hub's fields survive a site that does not know them.
"""

import sqlalchemy as sa

METADATA = sa.MetaData()

# Tombstones stay until the next snapshot: an older message must not bring an item back.
DESIRED_ITEM = sa.Table(
    "desired_item",
    METADATA,
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("item_id", sa.String(128), primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("is_deleted", sa.Boolean, nullable=False),
    sa.Column("applied_at_s", sa.Float, nullable=False),
)

# Items that were not taken, newest last; bounded by whoever writes.
DESIRED_REFUSED = sa.Table(
    "desired_refused",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("reason", sa.String(512), nullable=False),
    sqlite_autoincrement=True,
)

META = sa.Table(
    "meta",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# `seq` is never used again, so the order of sending is the order of importing. `payload` is JSON objects of usage
# events with commas between them: what of them was imported together, and fits into one message.
OUTBOX = sa.Table(
    "outbox_bundle",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("events", sa.Integer, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("appended_at_s", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)

USAGE_SEGMENT = sa.Table(
    "usage_segment",
    METADATA,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("offset_bytes", sa.Integer, nullable=False),
    sa.Column("events", sa.Integer, nullable=False),
    sa.Column("gaps", sa.Integer, nullable=False),
    sa.Column("updated_at_s", sa.Float, nullable=False),
)

USAGE_TOTAL = sa.Table(
    "usage_total",
    METADATA,
    sa.Column("tenant_id", sa.String(64), primary_key=True),
    sa.Column("service", sa.String(64), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("events", sa.Integer, nullable=False),
    sa.Column("completed", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("audio_s", sa.Integer, nullable=False, server_default="0"),
    sa.Column("images", sa.Integer, nullable=False, server_default="0"),
    sa.Column("samples", sa.Integer, nullable=False, server_default="0"),
)

NODE = sa.Table(
    "node",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("is_cordoned", sa.Boolean, nullable=False),
    sa.Column("is_draining", sa.Boolean, nullable=False),
    sa.Column("plan_generation", sa.Integer, nullable=False),
    sa.Column("plan", sa.LargeBinary, nullable=False),
    sa.Column("changed_at_s", sa.Float, nullable=False),
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target", sa.String(128), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("prev_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
)

# A file's content is an encrypted blob on disk; without `sealed_key` nobody reads it again.
FILE = sa.Table(
    "file",
    METADATA,
    sa.Column("file_id", sa.String(64), primary_key=True),
    sa.Column("tenant_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("filename", sa.String(512), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("expires_at_s", sa.Float, nullable=False, index=True),
    sa.Column("sealed_key", sa.LargeBinary, nullable=False),
    sa.Index("ix_file_tenant", "tenant_id", "created_at_s", "file_id"),
)

# `state` is the batch as `madang.site.batches.state` encodes it; the columns beside it are what is searched for.
BATCH = sa.Table(
    "batch",
    METADATA,
    sa.Column("batch_id", sa.String(64), primary_key=True),
    sa.Column("tenant_id", sa.String(64), nullable=False),
    sa.Column("input_file_id", sa.String(64), nullable=False, index=True),
    sa.Column("is_over", sa.Boolean, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.Column("sealed_key", sa.LargeBinary, nullable=False),
    sa.Index("ix_batch_tenant", "tenant_id", "created_at_s", "batch_id"),
)

# How often a line was begun, written before each time; rows go when the batch is over.
BATCH_LINE = sa.Table(
    "batch_line",
    METADATA,
    sa.Column("batch_id", sa.String(64), primary_key=True),
    sa.Column("line", sa.Integer, primary_key=True),
    sa.Column("tries", sa.Integer, nullable=False),
)

# One signed tree for each import of usage events; `events` are its leaves, packed as `packing` says.
RECEIPT_TREE = sa.Table(
    "receipt_tree",
    METADATA,
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

# Where a request's events are; `place` sorts by the request's time, so that the index grows at its end.
RECEIPT_INDEX = sa.Table(
    "receipt_index",
    METADATA,
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tree_id", sa.Integer, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

# Money leased from the hub. `number` names a pot to the gateway workers and is never used again, not even by another
# database of this site; `state` is a `machine.lease.SitePot` as JSON; `slot` is -1 until the pot is in their tables.
LEASE_POT = sa.Table(
    "lease_pot",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(256), nullable=False, unique=True),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("ends_at_s", sa.Float, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
)

# Every transition of every alarm, numbered without holes; pruned by age.
ALARM_JOURNAL = sa.Table(
    "alarm_journal",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("alarm", sa.String(256), nullable=False),
    sa.Column("entry", sa.Text, nullable=False),
    sa.Index("alarm_journal_at", "at_s"),
)

# Energy registers at each quarter of an hour; a reading that could not be had has no value, and is never made up.
METER_READING = sa.Table(
    "meter_reading",
    METADATA,
    sa.Column("point_id", sa.String(128), primary_key=True),
    sa.Column("at_s", sa.Integer, primary_key=True),
    sa.Column("value_wh", sa.Float, nullable=True),
    sa.Column("read_at_s", sa.Float, nullable=True),
    sa.Column("quality", sa.String(16), nullable=False),
    sa.Column("is_simulated", sa.Boolean, nullable=False),
)
