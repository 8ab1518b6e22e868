"""Secrets of devices: one file each in a folder of the site's state, readable by its owner only.

Owns where they are and their form. Refuses to log or show them. A site file names a secret; it never holds one.
Read by the site program and by the plant twin.
"""

import tomllib
from pathlib import Path

import msgspec

from madang.core import Rejected
from madang.facility.contract import Secret
from madang.runtime.files import read_secret


def find_secret(folder: Path, name: str) -> Secret:
    """Return a secret by its name.

    Raises:
        Rejected: the name is no file's stem, or the file is no TOML of `user` and `words`.
        Unavailable: it is missing, or others may read it.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise Rejected(f"{name!r} cannot be the name of a secret", next_step="use letters, digits and underscores")
    path = folder / f"{name}.toml"
    try:
        text = read_secret(path).decode()
    except UnicodeDecodeError as error:
        raise Rejected(f"the secret {path} is not UTF-8") from error
    try:
        return msgspec.convert(tomllib.loads(text), Secret)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        # The reason would quote the line: a secret must not reach the log.
        raise Rejected(
            f"the secret {path} is malformed", next_step='expected `user = "…"` and a table `[words]`'
        ) from error
