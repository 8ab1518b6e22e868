"""SQL databases of hub and site: engines, migrations, and one writer per database off the event loop.

Owns how a database is opened, upgraded and written. Refuses to know tables: each service declares its own and
keeps its migrations in a folder of its package. Called by hub and site.

SQLite runs with write-ahead log and `synchronous=FULL`: what was committed survives a power loss. All writes go
through one thread in the order they were asked for, so no two of ours ever wait for SQLite's lock; reads have
threads of their own and see the last commit. Its files are for their owner alone. PostgreSQL, for several hubs over
one database, is used in the same way: one writer at a time, by a lock that the server keeps.
"""

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

from madang.core import Conflict, Fault, MadangError, Rejected, Unavailable

T = TypeVar("T")

_BUSY_TIMEOUT_S = 5.0
_READ_THREADS = 2
_CONNECT_TIMEOUT_S = 5
_LOCK_TIMEOUT_MS = 5_000
_IDLE_TIMEOUT_MS = 30_000
_WRITER_LOCK = int.from_bytes(b"madang", "big")
"""Key of the advisory lock that PostgreSQL's writers hold; any number that nobody else uses in this database."""
_WAL_PAGES_MAX = 1000  # SQLite's own default of wal_autocheckpoint; stated because the log's size depends on it


def sqlite_url(path: Path) -> str:
    """Return the SQLAlchemy URL of an SQLite file."""
    return f"sqlite:///{path}"


def open_engine(url: str, *, is_reader: bool = False) -> sa.Engine:
    """Return an engine with this project's habits; nothing is opened until it is used.

    Args:
        url: SQLAlchemy URL, SQLite or PostgreSQL.
        is_reader: transactions take no write lock, and writing fails.

    Raises:
        Rejected: when the URL is malformed or names a driver that is not installed.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed, is_reader)
        return _open_postgres(parsed, is_reader)
    except (exc.ArgumentError, exc.NoSuchModuleError, ImportError) as error:
        raise Rejected(
            f"database URL is not usable: {error}",
            next_step="give an SQLAlchemy URL such as sqlite:////var/lib/madang/hub.db",
        ) from error


def _close_to_others(path: str) -> None:
    """See that a database's files are for us alone before SQLite opens them; it gives its log the file's own mode.

    A file that is there is never opened here: closing it would drop the locks that other connections of this process
    have on it. One that cannot be made or changed is SQLite's to complain of, if at all.
    """
    if not path or path == ":memory:":
        return
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for name in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(OSError):
            if os.stat(name).st_mode & 0o077:
                os.chmod(name, 0o600)


def _open_sqlite(url: sa.URL, is_reader: bool) -> sa.Engine:
    engine = sa.create_engine(
        url,
        pool_size=_READ_THREADS if is_reader else 1,
        max_overflow=0,
        connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    if not is_reader:

        @event.listens_for(engine, "do_connect")
        def _close(_dialect: object, _record: object, _cargs: object, _cparams: object) -> None:
            _close_to_others(url.database or "")

    @event.listens_for(engine, "connect")
    def _set_habits(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's implicit transactions would commit before DDL; with them off, migrations are atomic.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES_MAX}")
        # Debian's SQLite overwrites all that is deleted, which for blobs costs as much as writing them did. FAST still
        # overwrites what lies in a page that is written anyway, such as the key of a file.
        connection.execute("PRAGMA secure_delete=FAST")
        if is_reader:
            connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that reads and then writes must hold the lock from its start, or it may fail half-way.
        connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")

    return engine


def _open_postgres(url: sa.URL, is_reader: bool) -> sa.Engine:
    if url.password is not None or "password" in url.query:
        shown = url.difference_update_query(["password"]).render_as_string()
        raise Rejected(
            f"database URL {shown} holds a password, which would stand in a settings file in clear",
            next_step="put it into a file of mode 0600 as HOST:PORT:DATABASE:USER:PASSWORD and name that file in the "
            "URL, as in postgresql://madang@db.example/madang?passfile=/etc/madang/pgpass",
        )
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    # A hub that hangs inside a transaction, or is cut off in one, must not hold the others up for ever; the server ends
    # it. Keepalives let either side notice a lost one.
    options = f"-c lock_timeout={_LOCK_TIMEOUT_MS} -c idle_in_transaction_session_timeout={_IDLE_TIMEOUT_MS}"
    engine = sa.create_engine(
        url,
        pool_size=_READ_THREADS if is_reader else 1,
        max_overflow=0,
        pool_pre_ping=True,
        # A reader sees one commit throughout; a writer sees the last one, once it has the lock below.
        isolation_level="REPEATABLE READ" if is_reader else "READ COMMITTED",
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "options": options,
            "application_name": "madang",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        },
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        if is_reader:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        else:
            # What `BEGIN IMMEDIATE` is to SQLite: several hubs over one database write one after the other, so that a
            # transaction may read, decide and write.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")

    return engine


def upgrade_schema(engine: sa.Engine, location: str) -> str:
    """Bring a database to this release's schema in one transaction and return the revision.

    Args:
        engine: a writing engine.
        location: `package:folder` of the Alembic migrations, such as `madang.hub:migrations`.

    Raises:
        Rejected: the database was written by a newer release; nothing was changed.
        Unavailable: disk full, permission, or database unreachable, naming it.
    """
    newest = _newest_revision(location)
    target = describe_database(engine)
    try:
        with engine.begin() as connection:
            if _read_revision(connection) != newest:
                # Alembic is a tenth of a program's start, and most starts find a database that needs nothing.
                from madang.runtime.migrate import migrate

                migrate(connection, location, newest, target)
    except exc.DBAPIError as error:
        raise translate_database_error(error, target) from error
    return newest


def _newest_revision(location: str) -> str:
    """Return the last revision of a folder of migrations, which are files named `REVISION_what.py`."""
    package, folder = location.split(":")
    names = [entry.name for entry in files(package).joinpath(folder, "versions").iterdir()]
    return max(name.split("_")[0] for name in names if name[:1].isdigit() and name.endswith(".py"))


def _read_revision(connection: sa.Connection) -> str | None:
    """Return the revision that Alembic wrote into a database, or None in one that is empty."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def describe_database(engine: sa.Engine) -> str:
    """Return how messages name a database: its path, or its URL without the password."""
    return engine.url.database or "" if engine.dialect.name == "sqlite" else engine.url.render_as_string()


def translate_database_error(error: exc.DBAPIError, target: str) -> MadangError:
    """Return which of our errors a database's error is; `target` names the database."""
    text = str(error.orig)
    lowered = text.lower()
    if isinstance(error, exc.IntegrityError):
        return Conflict(f"database {target} already holds something else: {text}")
    if "malformed" in lowered or "not a database" in lowered:
        return Fault(f"database {target} is damaged: {text}", next_step="restore it from a backup")
    steps = {
        "disk is full": "free space on its disk",
        "disk i/o": "free space on its disk, or mend the disk",
        "readonly": "mend the permission of the file and its folder",
        "unable to open": "create its folder or mend its permission",
        "locked": "find the other process that holds the database",
        "lock timeout": "find the hub that writes for so long: pg_stat_activity names it, as application madang",
    }
    step = next((step for sign, step in steps.items() if sign in lowered), "see whether the database answers")
    return Unavailable(f"database {target} cannot be used: {text}", next_step=step, retry_after_s=1.0)


class Store:
    """A database with one writing thread and a few reading ones.

    A caller that is cancelled while waiting does not cancel its transaction: whoever must know reads again.
    """

    def __init__(self, url: str, *, writes_pending_max: int = 256, reads_pending_max: int = 256) -> None:
        """Make the engines; nothing is opened yet.

        Args:
            url: SQLAlchemy URL.
            writes_pending_max: over it a writer gets Unavailable at once.
            reads_pending_max: the same for readers.
        """
        self.engine = open_engine(url)
        self._reader = open_engine(url, is_reader=True)
        self._writes = _Lane("writes", 1, writes_pending_max)
        self._reads = _Lane("reads", _READ_THREADS, reads_pending_max)
        self._target = describe_database(self.engine)

    async def write(self, action: Callable[[sa.Connection], T]) -> T:
        """Run `action` in one transaction on the writing thread; commits when it returns, else rolls back.

        Raises:
            Unavailable: too many writes wait, or the database cannot be used.
            Conflict: a constraint of the database refused it.
        """
        return await self._writes.run(lambda: self._transact(self.engine, action))

    async def read(self, action: Callable[[sa.Connection], T]) -> T:
        """Run `action` on a snapshot of the last commit, on a reading thread."""
        return await self._reads.run(lambda: self._transact(self._reader, action))

    def write_now(self, action: Callable[[sa.Connection], T]) -> T:
        """Run `action` in one transaction in the caller's thread: for start-up, before any `write`."""
        return self._transact(self.engine, action)

    def _transact(self, engine: sa.Engine, action: Callable[[sa.Connection], T]) -> T:
        try:
            with engine.begin() as connection:
                return action(connection)
        except exc.DBAPIError as error:
            raise translate_database_error(error, self._target) from error

    def close(self) -> None:
        """Finish what runs, refuse what waits, and close the files; blocks until done."""
        self._writes.close()
        self._reads.close()
        self._reader.dispose()
        self.engine.dispose()


class _Lane:
    """A few threads with a bounded number of waiting calls."""

    def __init__(self, name: str, threads: int, pending_max: int) -> None:
        self._name = name
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"store-{name}")
        self._pending = 0
        self._pending_max = pending_max
        self._guard = threading.Lock()

    async def run(self, call: Callable[[], T]) -> T:
        with self._guard:
            if self._pending >= self._pending_max:
                raise Unavailable(
                    f"{self._pending} {self._name} already wait for the database, the most allowed",
                    next_step="try again shortly",
                    retry_after_s=1.0,
                )
            self._pending += 1
        try:
            future: asyncio.Future[T] = asyncio.get_running_loop().run_in_executor(self._executor, call)
        except RuntimeError as error:
            self._release(None)
            raise Unavailable("the database is being closed") from error
        future.add_done_callback(self._release)
        return await future

    def _release(self, _future: Any) -> None:
        with self._guard:
            self._pending -= 1

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
