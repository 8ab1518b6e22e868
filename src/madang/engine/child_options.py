"""The command line of a child that is a module of ours, both ways: the driver writes it, engine and twin read it.

Owns how a field stands in it. Refuses to know engines: each adds its own fields. Standard library only, for twins
import it.
"""

import argparse
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Self

_SWITCH = {"on": True, "off": False}


def many(decode: Callable[[str], Any], encode: Callable[[Any], str] = str) -> dict[str, Any]:
    """Return the metadata of a field that holds a tuple and stands in the command line once for each of its items.

    Args:
        decode: reads one item; raises ValueError for a wrong one.
        encode: writes one.
    """
    return {"decode": decode, "encode": encode, "is_many": True}


def coded(decode: Callable[[str], Any], encode: Callable[[Any], str]) -> dict[str, Any]:
    """Return the metadata of a field with a form of its own; see `many`."""
    return {"decode": decode, "encode": encode}


@dataclass(frozen=True, kw_only=True)
class ChildOptions:
    """What every child is told; its engine adds what only it needs.

    Attributes:
        alias: name under which it answers.
        key_file: holds the bearer token.
    """

    alias: str
    host: str
    port: int
    key_file: Path

    def to_argv(self) -> tuple[str, ...]:
        """Return the arguments that `from_argv` reads; what is None is left out."""
        words = []
        for one in fields(self):
            value = getattr(self, one.name)
            encode = one.metadata.get("encode", _encode)
            items = value if one.metadata.get("is_many") else (value,)
            words += [f"{_flag(one)}={encode(item)}" for item in items if item is not None]
        return tuple(words)

    @classmethod
    def from_argv(cls, argv: list[str]) -> Self:
        """Return the options in `argv`; exits with code 2 and a usage text when they are wrong."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        for one in fields(cls):
            parser.add_argument(
                _flag(one),
                dest=one.name,
                type=one.metadata["decode"] if "decode" in one.metadata else _DECODERS[one.type],
                action="append" if one.metadata.get("is_many") else "store",
                required=one.default is MISSING,
            )
        values = vars(parser.parse_args(argv))
        for one in fields(cls):
            if one.metadata.get("is_many"):
                values[one.name] = tuple(values[one.name])
        try:
            return cls(**values)
        except ValueError as error:
            parser.error(str(error))


def _flag(one: "Field[Any]") -> str:
    return f"--{one.name.replace('_', '-')}"


def _encode(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _read_switch(text: str) -> bool:
    if text not in _SWITCH:
        raise ValueError("expected on or off")
    return _SWITCH[text]


_DECODERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    bool: _read_switch,
    Path: Path,
    Path | None: Path,
}
