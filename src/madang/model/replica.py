"""A replica: one running engine of a service on given chips. Its life cycle is `madang.machine.replica`."""

from enum import StrEnum

import msgspec

from madang.core import ChipId, NodeId, ReplicaId, ServiceName
from madang.model.artifact import Artifact, Task
from madang.model.tenant import DataClass


class ReplicaPhase(StrEnum):
    """Where a replica stands; exactly one at a time."""

    PENDING = "pending"
    FETCHING = "fetching"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


class EngineFeature(StrEnum):
    """What some engines can do and others cannot; a driver names them, gateways ask."""

    UNSTREAMED_ABORT = "unstreamed_abort"
    """Stops at once when the client of a request that is not streamed leaves."""
    TOOLS = "tools"
    """Parses tool calls out of what the model writes."""
    IMAGES = "images"
    """Takes images in messages."""
    CHOICES = "choices"
    """Gives several answers to one request (`n`)."""
    JSON_SCHEMA = "json_schema"
    """Holds its output to a JSON schema."""
    LOGPROBS = "logprobs"
    """Says how likely each token was."""
    QUERY_PASSAGE = "query_passage"
    """Reads `query: ` and `passage: ` before a text to embed as what the text is, not as words of it."""
    TRANSCRIPT_STREAM = "transcript_stream"
    """Gives the text of a sound in pieces, as it understands them."""


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A replica wanted on a node, decided by the site; the node's executor is left no choices.

    Attributes:
        cores: of the only chip; empty means that the chips are given whole.
    """

    replica_id: ReplicaId
    service: ServiceName
    model: str
    task: Task
    artifact: Artifact
    chip_ids: tuple[ChipId, ...]
    context_tokens: int
    slots: int
    has_prefix_cache: bool = False
    cores: tuple[int, ...] = ()


class ReplicaObserved(msgspec.Struct, frozen=True, kw_only=True):
    """What a node saw of a replica.

    Attributes:
        endpoint: `http://host:port` of the engine, empty until it has one.
        engine_key: bearer token that the engine asks for; stays within the site.
        pid: the engine's process, 0 when none.
        restarts: starts after the first since the replica was planned.
        since_s: wall time at which the phase was entered.
        progress: 0 to 1 while fetching, None otherwise.
        is_simulated: true when a twin answers in the engine's place.
        features: words of EngineFeature; an unknown word of a newer node is kept and means nothing here.
        data_class_max: the highest class of data that the engine may see.
    """

    replica_id: ReplicaId
    node: NodeId
    service: ServiceName
    phase: ReplicaPhase
    reason: str = ""
    chip_kind: str = ""
    chip_ids: tuple[ChipId, ...] = ()
    endpoint: str = ""
    engine_key: str = ""
    pid: int = 0
    restarts: int = 0
    since_s: float = 0.0
    progress: float | None = None
    slots: int = 1
    artifact_sha256: str = ""
    is_simulated: bool = False
    features: tuple[str, ...] = ()
    data_class_max: DataClass = DataClass.CLASSIFIED
