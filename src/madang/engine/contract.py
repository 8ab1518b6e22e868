"""What an engine driver must do, whatever the engine.

Owns the protocol: how an engine is launched, how it is asked how it is, what it can and cannot do, how long
things may take. Refuses to start processes (the node does) and to know chips. Implemented by each folder of
`madang.engine`; called by the node program.
"""

from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from madang.model import DataClass, EngineFeature, ReplicaSpec


class EngineCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine can and cannot do.

    Attributes:
        endpoints: paths that it serves to a gateway.
        has_streaming: whether generation can be streamed; a gateway then always asks for streams, since only
            those are cancelled when the client goes.
        features: what it can do beyond the plain endpoints, in the words of EngineFeature; the gateway offers nothing
            that an engine does not name.
        limits: what it refuses, in words, for people.
        data_class_max: the highest class of data that it may see. An engine that the node does not run itself names
            `open`, or `sensitive` where whoever runs it answers for that, and never `classified`.
    """

    endpoints: tuple[str, ...]
    has_streaming: bool
    features: tuple[EngineFeature, ...] = ()
    limits: tuple[str, ...] = ()
    data_class_max: DataClass = DataClass.CLASSIFIED


class EngineTimes(msgspec.Struct, frozen=True, kw_only=True):
    """How long things may take, in seconds; accelerators that compile or load for minutes say so here."""

    start_s_max: float = 120.0
    drain_s_max: float = 30.0
    term_s_max: float = 5.0


class LaunchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a launch depends on.

    Attributes:
        spec: the replica.
        files: verified files of the artifact by name.
        host, port: where the engine shall listen; always loopback.
        key_file: holds the bearer token that the engine shall ask for, mode 0600.
        devices, device_env: what the chip driver granted.
        threads: CPU threads for generation.
        prefill_threads: CPU threads for prompts.
        private_bytes_max: cap of memory that is not file pages.
    """

    spec: ReplicaSpec
    files: dict[str, Path]
    host: str
    port: int
    key_file: Path
    devices: tuple[str, ...]
    device_env: dict[str, str] = {}
    threads: int
    prefill_threads: int
    private_bytes_max: int


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How to start an engine.

    Attributes:
        argv: the whole command line; secrets never stand in it.
        env: variables to add.
        private_bytes_max: limit of private writable memory (RLIMIT_DATA). The address space is not limited: a
            mapped model and thread stacks take many times what they use.
        open_files_max: RLIMIT_NOFILE.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    private_bytes_max: int
    open_files_max: int = 1024


class Verdict(StrEnum):
    """What a probe found."""

    READY = "ready"
    LOADING = "loading"
    SILENT = "silent"
    SICK = "sick"


class EngineReading(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine said of itself.

    Attributes:
        reason: why it is not ready.
        running, waiting: requests in flight and queued; None when it does not say.
        is_simulated: a twin answered.
    """

    verdict: Verdict
    reason: str = ""
    running: int | None = None
    waiting: int | None = None
    is_simulated: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight, as far as the engine says."""
        return not self.running and not self.waiting


class EngineDriver(Protocol):
    """One kind of engine."""

    @property
    def name(self) -> str:
        """Return the driver's name, as artifacts carry it."""
        ...

    @property
    def program(self) -> str:
        """Return the module that runs as the engine: its own, or its twin's."""
        ...

    def identity_of(self, spec: ReplicaSpec) -> str:
        """Return what tells an engine from another of the same specification: its program, and what runs it."""
        ...

    def capabilities_for(self, spec: ReplicaSpec) -> EngineCapabilities:
        """Return what the engine can and cannot do for a replica; raises Rejected when it can never run it."""
        ...

    @property
    def times(self) -> EngineTimes:
        """Return how long things may take."""
        ...

    def check(self, spec: ReplicaSpec) -> None:
        """Raise Rejected when this engine can never run this specification."""
        ...

    def plan_launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return how to start the engine; depends on the request, its verified files and what is installed alone.

        Raises:
            Rejected: when what is installed, or what was granted, does not fit the artifact.
        """
        ...

    async def probe(self, endpoint: str, key: str) -> EngineReading:
        """Ask a running engine how it is; takes at most a few seconds and raises nothing for a broken engine.

        Args:
            endpoint: `http://host:port`.
            key: its bearer token.
        """
        ...
