"""Fixtures of the hub's tests: a database of its own for each."""

import hashlib

import pytest
from tests.hub.postgres import PostgresServer

from madang.hub.change import Change
from madang.hub.seeds import prepare_seeds
from madang.runtime.clock import SystemEntropy
from madang.runtime.store import Store, sqlite_url, upgrade_schema


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """The bytes of a database that was brought up to date once: copying it is faster than migrating again."""
    path = tmp_path_factory.mktemp("empty") / "hub.db"
    made = Store(sqlite_url(path))
    upgrade_schema(made.engine, "madang.hub:migrations")
    made.close()
    return path.read_bytes()


@pytest.fixture(scope="session")
def postgres():
    """A real PostgreSQL."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.deep, pytest.mark.peer])])
def database_url(request, tmp_path):
    """The URL of a database of its own, of this release's schema; on both kinds in `make test-deep`."""
    if request.param == "sqlite":
        (tmp_path / "hub.db").write_bytes(request.getfixturevalue("empty_database"))
        yield sqlite_url(tmp_path / "hub.db")
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture
def store(database_url):
    made = Store(database_url)
    yield made
    made.close()


@pytest.fixture
def seeds(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    return prepare_seeds(folder, SystemEntropy())


@pytest.fixture
def change(store):
    """Run an action as one change, as the admin API does."""

    def run(action, now_s=1000.0):
        def transact(connection):
            made = Change(connection, now_s, "admin")
            result = action(made)
            made.finish()
            return result

        return store.write_now(transact)

    return run


@pytest.fixture
def identity():
    return lambda name: hashlib.sha256(name.encode()).hexdigest()
