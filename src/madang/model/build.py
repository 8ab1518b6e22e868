"""Builds: artifacts that must be compiled before a chip can run a model, and who compiles them.

Owns their shapes. Refuses to know how anything is compiled: a worker gets the inputs as they were given.
"""

from enum import StrEnum

import msgspec

from madang.model.artifact import ArtifactFile
from madang.model.artifact_key import ArtifactKey


class BuildState(StrEnum):
    """Where a build stands."""

    QUEUED = "queued"
    BUILDING = "building"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be compiled.

    Attributes:
        key: what comes out; there is one build for each key.
        inputs: what the compiler is given, such as the hash of the weights and flags; handed to the worker unread.
        artifact_id, engine, memory_bytes: of the artifact that the catalog entry gets when it is done.
        attempts_max: how often it is tried.
    """

    key: ArtifactKey
    inputs: dict[str, str] = {}
    artifact_id: str
    engine: str
    memory_bytes: int
    attempts_max: int = 3


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One build.

    Attributes:
        build_id: the id of its key.
        attempt: how often it was taken, from 1; 0 before. Whoever works on an older attempt has lost it.
        first_attempt: what the count stood at when it was asked for, again.
        worker: who has or had it.
        lease_until_s: while it is building; after that somebody else may take it. Wall time.
        not_before_s: when a failed attempt may be tried again. Wall time.
        log: the last lines of the newest attempt that failed.
        files: what came out.
    """

    build_id: str
    request: BuildRequest
    state: BuildState = BuildState.QUEUED
    attempt: int = 0
    first_attempt: int = 0
    worker: str = ""
    lease_until_s: float = 0.0
    not_before_s: float = 0.0
    requested_at_s: float = 0.0
    ended_at_s: float = 0.0
    log: str = ""
    files: tuple[ArtifactFile, ...] = ()


class BuildOffer(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker can compile for."""

    chip_kind: str
    sdk: str


class BuildWorker(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who compiles."""

    name: str
    offers: tuple[BuildOffer, ...]
