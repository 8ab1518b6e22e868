"""The rows of files, and every query on them.

Owns what is known of a file beside its content. Refuses to read content. Each query names the tenant: another's file
does not exist.
"""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from madang.core import ProjectId, TenantId
from madang.site.tables import BATCH, FILE

PAGE_MAX = 10_000
"""As OpenAI's; the default is the same."""
EXPIRED_AT_ONCE_MAX = 100


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file.

    Attributes:
        sealed_key: its data key under the site's master key; gone with the row.
        expires_at_s: wall time after which it is destroyed.
    """

    file_id: str
    tenant_id: TenantId
    project_id: ProjectId
    filename: str
    purpose: str
    size_bytes: int
    created_at_s: float
    expires_at_s: float
    sealed_key: bytes


def show_file(row: FileRow) -> dict[str, object]:
    """Return a file as OpenAI's clients know it."""
    return {
        "id": row.file_id,
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": int(row.created_at_s),
        "expires_at": int(row.expires_at_s),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def write_file(connection: sa.Connection, row: FileRow) -> None:
    """Store a new file's row."""
    connection.execute(sa.insert(FILE).values(**msgspec.structs.asdict(row)))


def read_file(connection: sa.Connection, tenant_id: str, file_id: str) -> FileRow | None:
    """Return one file of a tenant."""
    found = connection.execute(sa.select(FILE).where(FILE.c.tenant_id == tenant_id, FILE.c.file_id == file_id))
    row = found.mappings().one_or_none()
    return None if row is None else FileRow(**row)


def list_files(
    connection: sa.Connection, tenant_id: str, *, purpose: str = "", after: str = "", limit: int, is_ascending: bool
) -> list[FileRow]:
    """Return a tenant's files by age, at most `limit`.

    Args:
        connection: to the database.
        tenant_id: whose.
        purpose: only those; empty for all.
        after: id of the last file of the page before; empty from the start. One that is gone begins nothing.
        limit: how many.
        is_ascending: oldest first.
    """
    statement = sa.select(FILE).where(FILE.c.tenant_id == tenant_id)
    if purpose:
        statement = statement.where(FILE.c.purpose == purpose)
    place = sa.tuple_(FILE.c.created_at_s, FILE.c.file_id)
    if after:
        last = read_file(connection, tenant_id, after)
        if last is None:
            return []
        edge = sa.tuple_(sa.literal(last.created_at_s), sa.literal(last.file_id))
        statement = statement.where(place > edge if is_ascending else place < edge)
    columns = (FILE.c.created_at_s, FILE.c.file_id)
    order = [column if is_ascending else column.desc() for column in columns]
    rows = connection.execute(statement.order_by(*order).limit(limit)).mappings()
    return [FileRow(**row) for row in rows]


def sum_files(connection: sa.Connection, tenant_id: str) -> tuple[int, int]:
    """Return how many files a tenant has and their bytes."""
    counted = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(FILE.c.size_bytes), 0))
    files, size_bytes = connection.execute(counted.where(FILE.c.tenant_id == tenant_id)).one()
    return int(files), int(size_bytes)


def sum_all(connection: sa.Connection) -> tuple[int, int]:
    """Return how many files the site has and their bytes."""
    files, size_bytes = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(FILE.c.size_bytes), 0)).select_from(FILE)
    ).one()
    return int(files), int(size_bytes)


def forget_files(connection: sa.Connection, file_ids: Sequence[str]) -> None:
    """Remove rows and, with them, the only copies of data keys; freed pages are overwritten."""
    connection.exec_driver_sql("PRAGMA secure_delete=ON")
    connection.execute(sa.delete(FILE).where(FILE.c.file_id.in_(file_ids)))


def find_expired(connection: sa.Connection, now_s: float) -> list[str]:
    """Return ids of files whose time is over and that no batch reads any more, at most EXPIRED_AT_ONCE_MAX."""
    in_use = sa.select(BATCH.c.input_file_id).where(~BATCH.c.is_over)
    expired = sa.select(FILE.c.file_id).where(FILE.c.expires_at_s <= now_s, FILE.c.file_id.not_in(in_use))
    return list(connection.scalars(expired.limit(EXPIRED_AT_ONCE_MAX)))


def list_tenants(connection: sa.Connection) -> frozenset[str]:
    """Return the tenants that have files here."""
    return frozenset(connection.scalars(sa.select(FILE.c.tenant_id).distinct()))


def list_unused(connection: sa.Connection, tenant_id: str) -> list[str]:
    """Return ids of a tenant's files that no batch reads any more, at most EXPIRED_AT_ONCE_MAX."""
    in_use = sa.select(BATCH.c.input_file_id).where(~BATCH.c.is_over)
    found = sa.select(FILE.c.file_id).where(FILE.c.tenant_id == tenant_id, FILE.c.file_id.not_in(in_use))
    return list(connection.scalars(found.limit(EXPIRED_AT_ONCE_MAX)))


def list_ids(connection: sa.Connection) -> frozenset[str]:
    """Return the ids of all files."""
    return frozenset(connection.scalars(sa.select(FILE.c.file_id)))
