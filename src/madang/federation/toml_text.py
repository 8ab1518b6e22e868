"""Settings as TOML text. Owns the quoting. Refuses to read TOML: the standard library does. Pure."""

from typing import Any

import msgspec


def render_toml(settings: msgspec.Struct, comment: str) -> str:
    """Return a settings struct as TOML, headed by `comment`; values of None are left out."""
    values: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    plain: list[str] = [f"# {line}" for line in comment.splitlines()]
    tables: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict):
            tables += ["", f"[{name}]", *_lines(value)]
        elif isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                tables += ["", f"[[{name}]]", *_lines(item)]
        elif value is not None:
            plain.append(f"{name} = {_render(value)}")
    return "\n".join([*plain, *tables]) + "\n"


def _lines(table: dict[str, Any]) -> list[str]:
    return [f"{_quote(name)} = {_render(value)}" for name, value in table.items() if value is not None]


def _render(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_render(item) for item in value)}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(_lines(value)) + " }" if value else "{}"
    if isinstance(value, str):
        return _quote(value)
    return msgspec.json.encode(value).decode()  # numbers and booleans are written alike in both


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
