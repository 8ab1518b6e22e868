"""Loading of settings: defaults in code, then a TOML file, then environment, then flags.

Owns the order and the error texts. Refuses to know any service: each has one frozen struct, declared with
`forbid_unknown_fields`, so that a misspelt key stops start-up. A secret is never a setting, only its file is.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from madang.core import Rejected

S = TypeVar("S", bound=msgspec.Struct)


def load_settings(
    kind: type[S],
    path: Path | None,
    *,
    env_prefix: str,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> S:
    """Return the settings of a service.

    Args:
        kind: the frozen struct that declares them.
        path: TOML file, or None.
        env_prefix: `MADANG_HUB_` makes `MADANG_HUB_PORT=1` set `port`; lists and tables are written as in TOML.
        environ: environment to read; the process's own by default.
        flags: values from the command line; None values are ignored.

    Raises:
        Rejected: naming the file or variable, the key, and what was expected.
    """
    values: dict[str, Any] = {}
    where = "defaults"
    if path is not None:
        values, where = _read_toml(path), str(path)
    values |= _from_environ(kind, env_prefix, os.environ if environ is None else environ)
    values |= {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return msgspec.convert(values, kind, strict=True, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise Rejected(
            f"settings in {where}: {_explain(str(error))}",
            next_step=f"known keys: {', '.join(field.name for field in msgspec.structs.fields(kind))}",
        ) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as error:
        raise Rejected(f"settings file {path} does not exist") from error
    except OSError as error:
        raise Rejected(f"settings file {path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise Rejected(f"settings file {path} is not TOML: {error}") from error


def _from_environ(kind: type[msgspec.Struct], prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        name = prefix + field.name.upper()
        if name not in environ:
            continue
        try:
            found[field.name] = _convert_text(environ[name], field.type)
        except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
            raise Rejected(
                f"environment variable {name}: {error}",
                next_step="write a scalar as it is, and a list or table as in TOML",
            ) from error
    return found


def _convert_text(text: str, kind: Any) -> Any:
    """Return a variable's value: a scalar as it stands, a list or inline table in TOML's syntax."""
    if text.lstrip().startswith(("[", "{")):
        value = tomllib.loads(f"value = {text}")["value"]
        return msgspec.convert(value, kind, strict=True, dec_hook=_decode_path)
    return msgspec.convert(text, kind, strict=False, dec_hook=_decode_path)


def _decode_path(kind: type, value: Any) -> Any:
    # A path from the environment was decoded before it came among the other values.
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(f"settings have no decoder for {kind}")


def _explain(text: str) -> str:
    """Turn msgspec's `Expected int, got str - at `$.port`` into `key port: expected int, got str`."""
    message, _, at = text.partition(" - at ")
    key = at.strip("`").removeprefix("$.") if at else ""
    message = message[:1].lower() + message[1:]
    return f"key {key}: {message}" if key else message
