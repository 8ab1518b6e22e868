"""The llama_cpp engine's texts: the command line of its child, and its metrics.

Owns both directions of the command line, so that driver, engine and twin cannot disagree. Refuses to open
anything. Uses the standard library only, for the twin imports it.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from madang.engine.child_options import ChildOptions

_METRIC = re.compile(rb"^llamacpp:([a-z_]+)(?:\{[^}]*\})?[ \t]+([-+0-9.eEnaifNIF]+)[ \t]*\r?$", re.MULTILINE)
_COUNT_MAX = 1 << 53


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChildOptions):
    """Command line of the engine's child.

    Attributes:
        model: path of the weights.
        slots: requests at a time; each has `context_tokens`.
        threads, prefill_threads: for generation and for prompts.
        has_prefix_cache: whether a prompt may reuse what an earlier request left in its slot.
    """

    model: Path
    slots: int
    context_tokens: int
    threads: int
    prefill_threads: int
    has_prefix_cache: bool


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
