"""The rows of batches, and every query on them. Each query of a tenant names the tenant: another's does not exist."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from madang.site.batches.state import Batch, BatchStatus, decode_batch, encode_batch
from madang.site.tables import BATCH, BATCH_LINE

KEPT_S = 30 * 24 * 3600.0
"""How long a batch that is over is shown: as long as its results can live."""
FORGOTTEN_AT_ONCE_MAX = 100


def write_batch(connection: sa.Connection, batch: Batch, sealed_key: bytes) -> None:
    """Store a new batch."""
    connection.execute(
        sa.insert(BATCH).values(
            batch_id=batch.batch_id,
            tenant_id=batch.tenant_id,
            input_file_id=batch.input_file_id,
            is_over=batch.status.is_over,
            created_at_s=batch.created_at_s,
            state=encode_batch(batch),
            sealed_key=sealed_key,
        )
    )


def update_batch(connection: sa.Connection, batch: Batch) -> None:
    """Store a batch's new state; one that is over gives up its key and the counts of its lines."""
    values: dict[str, object] = {"state": encode_batch(batch), "is_over": batch.status.is_over}
    if batch.status.is_over:
        connection.exec_driver_sql("PRAGMA secure_delete=ON")
        connection.execute(sa.delete(BATCH_LINE).where(BATCH_LINE.c.batch_id == batch.batch_id))
        values["sealed_key"] = b""
    connection.execute(sa.update(BATCH).where(BATCH.c.batch_id == batch.batch_id).values(**values))


def mark_cancelling(connection: sa.Connection, tenant_id: str, batch_id: str, now_s: float) -> Batch | None:
    """Note that the client wants a batch to stop, if it still runs; return the batch."""
    batch = read_batch(connection, tenant_id, batch_id)
    if batch is not None and batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
        batch = batch.become(BatchStatus.CANCELLING, now_s)
        update_batch(connection, batch)
    return batch


def read_batch(connection: sa.Connection, tenant_id: str, batch_id: str) -> Batch | None:
    """Return one batch of a tenant."""
    state = connection.scalar(
        sa.select(BATCH.c.state).where(BATCH.c.tenant_id == tenant_id, BATCH.c.batch_id == batch_id)
    )
    return None if state is None else decode_batch(state)


def revise_batch(connection: sa.Connection, batch_id: str, change: Callable[[Batch], Batch]) -> Batch:
    """Change a running batch as it stands now, whoever's it is, and return it: a client may cancel it meanwhile."""
    state = connection.execute(sa.select(BATCH.c.state).where(BATCH.c.batch_id == batch_id)).scalar_one()
    before = decode_batch(state)
    after = change(before)
    if after != before:
        update_batch(connection, after)
    return after


def list_batches(connection: sa.Connection, tenant_id: str, *, after: str, limit: int) -> list[Batch]:
    """Return a tenant's batches, newest first, from the one behind `after`."""
    statement = sa.select(BATCH.c.state).where(BATCH.c.tenant_id == tenant_id)
    place = sa.tuple_(BATCH.c.created_at_s, BATCH.c.batch_id)
    if after:
        last = read_batch(connection, tenant_id, after)
        if last is None:
            return []
        statement = statement.where(place < sa.tuple_(sa.literal(last.created_at_s), sa.literal(last.batch_id)))
    ordered = statement.order_by(BATCH.c.created_at_s.desc(), BATCH.c.batch_id.desc()).limit(limit)
    return [decode_batch(state) for state in connection.scalars(ordered)]


def count_running(connection: sa.Connection, tenant_id: str) -> int:
    """Return how many batches of a tenant are not over."""
    statement = sa.select(sa.func.count()).select_from(BATCH)
    return int(connection.scalar(statement.where(BATCH.c.tenant_id == tenant_id, ~BATCH.c.is_over)) or 0)


def list_running(connection: sa.Connection, limit: int) -> list[tuple[Batch, bytes]]:
    """Return batches that are not over with their sealed keys, oldest first."""
    statement = sa.select(BATCH.c.state, BATCH.c.sealed_key).where(~BATCH.c.is_over)
    rows = connection.execute(statement.order_by(BATCH.c.created_at_s, BATCH.c.batch_id).limit(limit))
    return [(decode_batch(state), sealed_key) for state, sealed_key in rows]


def list_running_ids(connection: sa.Connection) -> frozenset[str]:
    """Return the ids of all batches that are not over."""
    return frozenset(connection.scalars(sa.select(BATCH.c.batch_id).where(~BATCH.c.is_over)))


def find_reader(connection: sa.Connection, file_id: str) -> str:
    """Return the id of a batch that still reads a file, or nothing."""
    statement = sa.select(BATCH.c.batch_id).where(BATCH.c.input_file_id == file_id, ~BATCH.c.is_over).limit(1)
    return connection.scalar(statement) or ""


def begin_try(connection: sa.Connection, batch_id: str, line: int) -> int:
    """Count one more try of a line before it is made; return the count."""
    statement = insert(BATCH_LINE).values(batch_id=batch_id, line=line, tries=1)
    statement = statement.on_conflict_do_update(
        index_elements=["batch_id", "line"], set_={"tries": BATCH_LINE.c.tries + 1}
    )
    return int(connection.execute(statement.returning(BATCH_LINE.c.tries)).scalar_one())


def forget_old(connection: sa.Connection, now_s: float) -> int:
    """Remove batches that were made long ago and are over; return how many."""
    old = sa.select(BATCH.c.batch_id).where(BATCH.c.is_over, BATCH.c.created_at_s < now_s - KEPT_S - 24 * 3600.0)
    ids = list(connection.scalars(old.limit(FORGOTTEN_AT_ONCE_MAX)))
    if ids:
        connection.execute(sa.delete(BATCH).where(BATCH.c.batch_id.in_(ids)))
    return len(ids)
