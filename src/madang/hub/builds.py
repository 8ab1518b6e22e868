"""The build queue: what shall be compiled, who compiles, and what came out.

Owns the tables `build` and `build_worker`. Refuses to decide transitions (`madang.machine.build`) and to keep bytes
(`madang.hub.build_uploads`). Called by the routes, each action as one change. A lease that ran out is noticed when
anybody looks for work; until then nothing waits for it.
"""

import hashlib
import hmac

import msgspec
import sqlalchemy as sa

from madang.core import Conflict, Entropy, Rejected, check_entity_id
from madang.hub.change import Change
from madang.hub.desired_store import read_models
from madang.hub.facts_admin import put_model, read_model
from madang.hub.tables import BUILD, BUILD_WORKER
from madang.machine.build import (
    cancel_build,
    choose_build,
    expire_build,
    fail_build,
    finish_build,
    hold_build,
    request_build,
    take_build,
)
from madang.model import Artifact, ArtifactFile, CatalogEntry
from madang.model.build import Build, BuildRequest, BuildState, BuildWorker
from madang.runtime.admin_http import NotAuthorised, NotFound

OPEN_MAX = 1000
"""Builds that are queued or being worked on; more are a mistake of a script."""
OFFERS_MAX = 64
_TOKEN_PREFIX = "mdb_"
_TOKEN_BYTES = 32
_builds = msgspec.json.Decoder(Build)
_workers = msgspec.json.Decoder(BuildWorker)


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker and how long ago it was heard, wall time; 0 for never."""

    worker: BuildWorker
    heard_at_s: float


def put_build(change: Change, request: BuildRequest) -> tuple[Build, bool]:
    """Ask for a build; return it and whether anything changed. Raises as `request_build`, and NotFound."""
    entry = read_model(change.connection, request.key.model)
    _check_new(entry, request)
    old = _find_build(change.connection, request.key.key_id)
    build = request_build(old, request, change.now_s)
    if build == old:
        return build, False
    query = sa.select(sa.func.count()).where(BUILD.c.state.in_((BuildState.QUEUED.value, BuildState.BUILDING.value)))
    if (change.connection.scalar(query) or 0) >= OPEN_MAX:
        raise Conflict(f"{OPEN_MAX} builds wait already", next_step="cancel some: madang model builds")
    _write(change, build)
    change.audit("build.request", build.build_id, request)
    return build, True


def _check_new(entry: CatalogEntry, request: BuildRequest) -> None:
    if entry.revision != request.key.revision:
        raise Rejected(
            f"the catalog has revision {entry.revision!r} of {entry.name}, the build is for {request.key.revision!r}",
            next_step=f"see: madang model show {entry.name}",
        )
    for artifact in entry.artifacts:
        if artifact.artifact_id == request.artifact_id:
            raise Conflict(
                f"model {entry.name} has an artifact {request.artifact_id} already",
                next_step="give the new one another artifact_id",
            )


def list_builds(connection: sa.Connection, now_s: float, model: str | None = None) -> list[Build]:
    """Return builds, newest first, as they are now that leases are looked at."""
    query = sa.select(BUILD.c.spec).order_by(BUILD.c.created_at_s.desc(), BUILD.c.build_id)
    if model is not None:
        query = query.where(BUILD.c.model == model)
    return [expire_build(_builds.decode(spec), now_s) for spec in connection.scalars(query)]


def read_build(connection: sa.Connection, build_id: str, now_s: float) -> Build:
    """Return one build; raises NotFound."""
    build = _find_build(connection, build_id)
    if build is None:
        raise NotFound(f"build {build_id[:64]!r} does not exist", next_step="see: madang model builds")
    return expire_build(build, now_s)


def cancel(change: Change, build_id: str) -> Build:
    """Cancel a build; whoever works on it is told so when it next says something."""
    build = cancel_build(read_build(change.connection, build_id, change.now_s), change.now_s)
    _write(change, build)
    change.audit("build.cancel", build_id, {})
    return build


def retry(change: Change, build_id: str) -> Build:
    """Try a build that failed or was cancelled once more; raises Conflict when it is not over."""
    old = read_build(change.connection, build_id, change.now_s)
    if old.state not in (BuildState.FAILED, BuildState.CANCELLED):
        raise Conflict(f"build {build_id} is {old.state.value}: there is nothing to try again")
    return put_build(change, old.request)[0]


# Workers


def put_worker(change: Change, worker: BuildWorker, entropy: Entropy) -> str:
    """Register a worker, or give one other offers; return its new token, which is not kept."""
    check_entity_id("worker", worker.name)
    if not 0 < len(worker.offers) <= OFFERS_MAX or not all(one.chip_kind and one.sdk for one in worker.offers):
        raise Rejected(f"worker {worker.name}: expected 1 to {OFFERS_MAX} offers, each with chip_kind and sdk")
    token = _TOKEN_PREFIX + entropy.token_bytes(_TOKEN_BYTES).hex()
    change.connection.execute(BUILD_WORKER.delete().where(BUILD_WORKER.c.name == worker.name))
    change.connection.execute(
        BUILD_WORKER.insert().values(
            name=worker.name,
            token_sha256=hashlib.sha256(token.encode()).hexdigest(),
            spec=msgspec.json.encode(worker).decode(),
            created_at_s=change.now_s,
            heard_at_s=0.0,
        )
    )
    change.audit("build_worker.put", worker.name, worker)
    return token


def delete_worker(change: Change, name: str) -> None:
    """Remove a worker; its token opens nothing any more, and what it has is taken by others when its lease ends."""
    if not change.connection.execute(BUILD_WORKER.delete().where(BUILD_WORKER.c.name == name)).rowcount:
        raise NotFound(f"worker {name[:64]!r} does not exist")
    change.audit("build_worker.delete", name, {})


def list_workers(connection: sa.Connection) -> list[WorkerView]:
    """Return every worker, by name."""
    query = sa.select(BUILD_WORKER.c.spec, BUILD_WORKER.c.heard_at_s).order_by(BUILD_WORKER.c.name)
    return [
        WorkerView(worker=_workers.decode(row.spec), heard_at_s=row.heard_at_s) for row in connection.execute(query)
    ]


def find_worker(connection: sa.Connection, token: str) -> BuildWorker:
    """Return who holds a token; raises NotAuthorised."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    row = connection.execute(
        sa.select(BUILD_WORKER.c.spec, BUILD_WORKER.c.token_sha256).where(BUILD_WORKER.c.token_sha256 == digest)
    ).first()
    if row is None or not hmac.compare_digest(row.token_sha256, digest):
        raise NotAuthorised(
            "the worker's token is missing or wrong", next_step="madang model worker NAME gives a new one"
        )
    return _workers.decode(row.spec)


def take(change: Change, worker: BuildWorker) -> Build | None:
    """Give a worker the next build that it can do, or None; what it held already it gets again."""
    change.connection.execute(
        BUILD_WORKER.update().where(BUILD_WORKER.c.name == worker.name).values(heard_at_s=change.now_s)
    )
    open_states = (BuildState.QUEUED.value, BuildState.BUILDING.value)
    query = sa.select(BUILD.c.spec).where(BUILD.c.state.in_(open_states))
    builds = []
    for stored in [_builds.decode(spec) for spec in change.connection.scalars(query)]:
        build = expire_build(stored, change.now_s)
        if build != stored:
            _write(change, build)
        builds.append(build)
    found = choose_build(builds, worker.offers, change.now_s)
    if found is None:
        return None
    taken = take_build(found, worker.name, change.now_s)
    _write(change, taken)
    return taken


def hold(change: Change, worker: BuildWorker, build_id: str, attempt: int) -> Build:
    """Note that a worker is alive; raises Conflict when the build is not its any more."""
    build = hold_build(read_build(change.connection, build_id, change.now_s), worker.name, attempt, change.now_s)
    change.connection.execute(
        BUILD_WORKER.update().where(BUILD_WORKER.c.name == worker.name).values(heard_at_s=change.now_s)
    )
    _write(change, build)
    return build


def fail(change: Change, worker: BuildWorker, build_id: str, attempt: int, log: str, *, is_final: bool) -> Build:
    """End an attempt without a result."""
    old = read_build(change.connection, build_id, change.now_s)
    build = fail_build(old, worker.name, attempt, log, change.now_s, is_final=is_final)
    _write(change, build)
    change.audit("build.fail", build_id, {"worker": worker.name, "attempt": attempt, "state": build.state.value})
    return build


def finish(change: Change, worker: BuildWorker, build_id: str, attempt: int, files: tuple[ArtifactFile, ...]) -> Build:
    """Enter what came out into the catalog; its files are in the store already."""
    old = read_build(change.connection, build_id, change.now_s)
    build = finish_build(old, worker.name, attempt, files, change.now_s)
    if build == old:
        return build
    request = build.request
    entry = next(iter(read_models(change.connection, [request.key.model])), None)
    if entry is None:
        raise NotFound(f"model {request.key.model!r} left the catalog while it was compiled")
    _check_new(entry, request)
    made = Artifact(
        artifact_id=request.artifact_id,
        engine=request.engine,
        chip_kinds=(request.key.chip_kind,),
        files=files,
        memory_bytes=request.memory_bytes,
        context_tokens_max=request.key.context_tokens_max,
        sdk=request.key.sdk,
        parallelism=request.key.parallelism,
    )
    put_model(change, msgspec.structs.replace(entry, artifacts=(*entry.artifacts, made)))
    _write(change, build)
    change.audit("build.finish", build_id, {"worker": worker.name, "artifact": request.artifact_id})
    return build


def _find_build(connection: sa.Connection, build_id: str) -> Build | None:
    spec = connection.scalar(sa.select(BUILD.c.spec).where(BUILD.c.build_id == build_id))
    return None if spec is None else _builds.decode(spec)


def _write(change: Change, build: Build) -> None:
    change.write_fact(
        BUILD, BUILD.c.build_id, build.build_id, build, model=build.request.key.model, state=build.state.value
    )
