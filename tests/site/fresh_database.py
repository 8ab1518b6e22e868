"""Site databases of this release's schema, made once and copied: migrations cost more than most tests do."""

import functools
import tempfile
from pathlib import Path

from madang.runtime.store import Store, sqlite_url, upgrade_schema


@functools.cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site.db"
        store = Store(sqlite_url(path))
        upgrade_schema(store.engine, "madang.site:migrations")
        store.close()
        return path.read_bytes()


def make_database(path: Path) -> None:
    """Make a database of this release's schema on `path` when none is there."""
    if not path.exists():
        path.write_bytes(_template())


def open_database(path: Path) -> Store:
    """Return a store on `path`, made with this release's schema when it is not there."""
    make_database(path)
    return Store(sqlite_url(path))
