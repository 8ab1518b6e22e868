"""An engine's manifest.toml: what it can and cannot do, its command lines by version, health, metrics and times.

Owns the shape, the choice of a command line and filling it in. Refuses to know any engine. Called by drivers when they
are made, by their tests and by `scripts/make-docs`.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from madang.core import Rejected
from madang.engine.contract import EngineCapabilities, EngineTimes
from madang.model import Task

_NUMBER = re.compile(r"\d+")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_PARTS_MAX = 3


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an engine says that it can serve.

    Attributes:
        path: asked with GET.
        ready, loading: statuses with that meaning; any other is sick.
        before_ready: what is seen while it loads, for people.
    """

    path: str
    ready: tuple[int, ...] = (200,)
    loading: tuple[int, ...] = ()
    before_ready: str


class MetricNames(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine calls its measurements.

    Attributes:
        path: where they are; empty when the health answer has the load.
        running, waiting: requests in flight and queued; the first name that is there counts.
        other: further ones by what they mean, with the names of older versions after the newest.
    """

    path: str = ""
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    other: dict[str, tuple[str, ...]] = {}


class CommandLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The command line of a range of versions.

    Attributes:
        since: first version, inclusive.
        until: first version that it is not for; empty for none yet.
        arguments: each one argument, with `{names}` of values.
        options: further arguments that some launches need, by what for.
        evidence: where the flags were read.
    """

    since: str
    until: str = ""
    arguments: tuple[str, ...]
    options: dict[str, tuple[str, ...]] = {}
    evidence: str

    def render(self, values: Mapping[str, object], wanted: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the arguments with their values, the wanted options last; KeyError for a value that is not given."""
        chosen = [*self.arguments, *(one for name in wanted for one in self.options.get(name, ()))]
        return tuple(_PLACEHOLDER.sub(lambda match: str(values[match[1]]), argument) for argument in chosen)

    @property
    def flags(self) -> tuple[str, ...]:
        """Every flag that it may pass, in order, each once."""
        every = [*self.arguments, *(one for option in self.options.values() for one in option)]
        return tuple(dict.fromkeys(one for one in every if one.startswith("-")))


class Symptom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Last words of an engine that failed, what they mean and what to do."""

    says: str
    means: str
    do: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it.

    Attributes:
        needs: what must be there before it runs.
        runtimes: `own` for our own child process; `process`, `container`, `none`.
        tasks: what it offers for models of each task.
        environment: variables that are always set.
        kind_environment: variables that are set for one kind of chip, by the chip driver's name.
        device_variables: variables that name the chips, new name first; all of them are set.
        stop: how it is ended after it was drained.
        secret: how it is told its key.
    """

    name: str
    title: str
    owner: str
    quality: str
    models: tuple[str, ...]
    capabilities: tuple[str, ...]
    cannot: tuple[str, ...]
    optional_dependencies: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    verified_on: str
    runtimes: tuple[str, ...] = ("own",)
    stop: str
    secret: str
    tiers: dict[str, str] = {}
    measured: dict[str, float] = {}
    tasks: dict[Task, EngineCapabilities]
    times: EngineTimes
    health: HealthCheck
    metrics: MetricNames = MetricNames()
    environment: dict[str, str] = {}
    kind_environment: dict[str, dict[str, str]] = {}
    device_variables: dict[str, tuple[str, ...]] = {}
    command: tuple[CommandLine, ...] = ()
    symptom: tuple[Symptom, ...] = ()

    def command_for(self, version: str) -> CommandLine:
        """Return the command line of a version; raises Rejected naming the versions that are known."""
        found = parse_version(version)
        for line in self.command:
            if parse_version(line.since) <= found and (not line.until or found < parse_version(line.until)):
                return line
        known = ", ".join(f"{one.since} to {one.until or 'the newest'}" for one in self.command)
        raise Rejected(
            f"{self.name}: version {version or '(unknown)'} has flags that this release does not know; known: {known}",
            next_step=f"install one of these, or state engine_runtimes.{self.name}.version",
        )


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version to compare it by: `2026.4.0b1` is (2026, 4, 0), `` is ()."""
    return tuple(int(part) for part in _NUMBER.findall(text.partition("+")[0])[:_PARTS_MAX])


def load_manifest(folder: Path) -> Manifest:
    """Return the manifest in a driver's folder; a damaged one is a bug of ours and raises."""
    text = (folder / "manifest.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Manifest, strict=True)
