"""Logs as events: a constant snake_case name and keys, one JSON object a line on standard error.

Owns the format. Refuses to hold secrets: a caller passes values, never settings or headers. Log a state change
once, and its recovery once; nothing per request.
"""

import sys
from typing import IO, Any

import msgspec

from madang.core import Clock

_encoder = msgspec.json.Encoder(enc_hook=str)


class EventLog:
    """Writes events of one program; `bind` adds keys that every event of a part carries."""

    def __init__(self, clock: Clock, stream: IO[str] | None = None, **keys: Any) -> None:
        self._clock = clock
        self._stream = stream
        self._keys = keys

    def bind(self, **keys: Any) -> "EventLog":
        """Return a log whose events also carry `keys`."""
        return EventLog(self._clock, self._stream, **{**self._keys, **keys})

    def info(self, event: str, **keys: Any) -> None:
        """Write an event that is part of normal life."""
        self._write("info", event, keys)

    def warning(self, event: str, **keys: Any) -> None:
        """Write an event that somebody may want to look at."""
        self._write("warning", event, keys)

    def error(self, event: str, **keys: Any) -> None:
        """Write an event that needs somebody."""
        self._write("error", event, keys)

    def _write(self, level: str, event: str, keys: dict[str, Any]) -> None:
        record = {
            "at_s": round(self._clock.wall_s(), 3),
            "level": level,
            "event": event,
            **self._keys,
            **keys,
        }
        stream = self._stream if self._stream is not None else sys.stderr
        stream.write(_encoder.encode(record).decode() + "\n")
        stream.flush()
