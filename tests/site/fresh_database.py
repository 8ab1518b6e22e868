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


def open_database(path: Path) -> Store:
    """Return a store on `path`, made with this release's schema when it is not there."""
    if not path.exists():
        path.write_bytes(_template())
    return Store(sqlite_url(path))
