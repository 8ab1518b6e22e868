"""The llama_cpp engine's texts: the command line of its child, and its metrics.

Owns both directions of the command line, so that driver, engine and twin cannot disagree. Refuses to open
anything. Uses the standard library only, for the twin imports it.
"""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

_METRIC = re.compile(rb"^llamacpp:([a-z_]+)(?:\{[^}]*\})?[ \t]+([-+0-9.eEnaifNIF]+)[ \t]*\r?$", re.MULTILINE)
_COUNT_MAX = 1 << 53


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Command line of the engine's child.

    Attributes:
        model: path of the weights.
        alias: name under which it answers.
        key_file: holds the bearer token.
        slots: requests at a time; each has `context_tokens`.
        threads, prefill_threads: for generation and for prompts.
        has_prefix_cache: whether a prompt may reuse what an earlier request left in its slot.
    """

    model: Path
    alias: str
    host: str
    port: int
    key_file: Path
    slots: int
    context_tokens: int
    threads: int
    prefill_threads: int
    has_prefix_cache: bool

    def to_argv(self) -> tuple[str, ...]:
        """Return the arguments that `from_argv` reads."""
        return (
            f"--model={self.model}",
            f"--alias={self.alias}",
            f"--host={self.host}",
            f"--port={self.port}",
            f"--key-file={self.key_file}",
            f"--slots={self.slots}",
            f"--context-tokens={self.context_tokens}",
            f"--threads={self.threads}",
            f"--prefill-threads={self.prefill_threads}",
            f"--prefix-cache={'on' if self.has_prefix_cache else 'off'}",
        )

    @staticmethod
    def from_argv(argv: list[str]) -> "ServeOptions":
        """Return the options in `argv`; exits with code 2 and a usage text when they are wrong."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("--model", type=Path, required=True)
        parser.add_argument("--alias", required=True)
        parser.add_argument("--host", required=True)
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--key-file", type=Path, required=True)
        parser.add_argument("--slots", type=int, required=True)
        parser.add_argument("--context-tokens", type=int, required=True)
        parser.add_argument("--threads", type=int, required=True)
        parser.add_argument("--prefill-threads", type=int, required=True)
        parser.add_argument("--prefix-cache", choices=("on", "off"), required=True)
        values = vars(parser.parse_args(argv))
        return ServeOptions(has_prefix_cache=values.pop("prefix_cache") == "on", **values)


@dataclass(frozen=True)
class Load:
    """Requests in flight and deferred, None when the metrics do not say."""

    running: int | None
    waiting: int | None


def parse_metrics(body: bytes) -> Load:
    """Return the load in the text of `/metrics`."""
    found: dict[bytes, int] = {}
    for name, text in _METRIC.findall(body):
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value) and 0 <= value <= _COUNT_MAX:
            found[name] = round(value)
    return Load(found.get(b"requests_processing"), found.get(b"requests_deferred"))
