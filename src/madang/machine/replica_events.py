"""What happens to a replica and what its machine orders: the events and effects of `madang.machine.replica`.

Owns their shapes. An event about an engine or a fetch carries its number, so that one that comes late is told
from one about the present.
"""

from dataclasses import dataclass

# Events


@dataclass(frozen=True, slots=True)
class Planned:
    """The replica is wanted with this specification; repeating it is harmless."""

    spec_hash: str


@dataclass(frozen=True, slots=True)
class Unplanned:
    """The replica is not wanted any more."""


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """A person wants a fresh engine: a ready one is drained first, a back-off ends now."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The artifact is in place and verified."""

    fetch: int


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """No source had the artifact, or it cannot run here."""

    fetch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """The engine's process runs."""

    launch: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """There is no process of that launch."""

    launch: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeOk:
    """The engine answers that it is ready; `is_idle` when it has no request in flight."""

    launch: int
    is_idle: bool = True


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """The engine does not answer, or answers that it cannot work; while starting it may just be loading."""

    launch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """No process of that launch lives any more."""

    launch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Planned
    | Unplanned
    | RestartAsked
    | Fetched
    | FetchFailed
    | Started
    | StartFailed
    | ProbeOk
    | ProbeFailed
    | Exited
    | Tick
)

# Effects


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the artifact into the cache; answer with Fetched or FetchFailed."""

    fetch: int
    spec_hash: str


@dataclass(frozen=True, slots=True)
class CancelFetch:
    """The result of that fetch is not wanted any more."""

    fetch: int


@dataclass(frozen=True, slots=True)
class Launch:
    """Start an engine; answer with Started or StartFailed, and with Exited when it ends."""

    launch: int
    spec_hash: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the engine how it is; answer with ProbeOk or ProbeFailed."""

    launch: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the engine to end (SIGTERM)."""

    launch: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End the engine (SIGKILL)."""

    launch: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The replica is stopped and not wanted: remove what is kept of it."""


Effect = Fetch | CancelFetch | Launch | Probe | Terminate | Kill | Forget
