"""The life of a build: asked for, taken by a worker under a lease, done or tried again, given up in the end.

Owns every transition. Refuses to know clocks, databases and compilers. Called by `madang.hub.builds`, which stores what
comes out, and by nobody else.

| from | by | to |
|---|---|---|
| queued | take | building, one attempt more |
| building | heartbeat | building, a longer lease |
| building | finish | done |
| building | fail, or a lease that ran out | queued after a rest, or failed when no attempt is left or none would help |
| queued, building | cancel | cancelled |
| failed, cancelled | request again | queued, with all attempts |

A worker names its attempt with everything it says; one that lost its lease to another is told so and changes nothing.
"""

from collections.abc import Collection, Iterable

import msgspec

from madang.core import Conflict, Rejected
from madang.model.artifact import ArtifactFile
from madang.model.build import Build, BuildOffer, BuildRequest, BuildState

LEASE_S = 120.0
"""A worker says four times in it that it is alive; a dead one costs two minutes."""
LOG_BYTES_MAX = 64 * 1024
ATTEMPTS_MAX = 10
INPUTS_MAX, INPUT_BYTES_MAX = 64, 4096
REST_BASE_S, REST_MAX_S = 30.0, 1800.0
FILES_MAX = 1024


def request_build(old: Build | None, request: BuildRequest, now_s: float) -> Build:
    """Return the build of a key: the one there is, or a new one, or one that is tried once more.

    Raises:
        Rejected: a field is out of its bounds.
        Conflict: a build of the same key was given other inputs and is not over.
    """
    check_request(request)
    fresh = Build(build_id=request.key.key_id, request=request, requested_at_s=now_s)
    if old is None or old.state in (BuildState.FAILED, BuildState.CANCELLED):
        # The attempt goes on counting, so that a worker of before stays a stranger.
        return fresh if old is None else msgspec.structs.replace(fresh, attempt=old.attempt, first_attempt=old.attempt)
    if old.request != request:
        raise Conflict(
            f"build {old.build_id} of the same key is {old.state.value} with other inputs",
            next_step="cancel it first, or give the other inputs another revision",
        )
    return old


def check_request(request: BuildRequest) -> None:
    """Raise Rejected naming the first field that is out of its bounds."""
    key = request.key
    if not (key.model and key.chip_kind and key.sdk):
        raise Rejected("a build needs model, chip_kind and sdk in its key; plain weights need no build")
    if not 1 <= request.attempts_max <= ATTEMPTS_MAX:
        raise Rejected(f"attempts_max is {request.attempts_max}, expected 1 to {ATTEMPTS_MAX}")
    if not (request.artifact_id and request.engine and request.memory_bytes > 0):
        raise Rejected("a build needs artifact_id, engine and memory_bytes of the artifact that comes out")
    if len(request.inputs) > INPUTS_MAX:
        raise Rejected(f"a build has {len(request.inputs)} inputs, at most {INPUTS_MAX}")
    for name, value in request.inputs.items():
        if len(name.encode()) + len(value.encode()) > INPUT_BYTES_MAX:
            raise Rejected(f"input {name[:80]!r} is over {INPUT_BYTES_MAX} bytes")


def choose_build(builds: Iterable[Build], offers: Collection[BuildOffer], now_s: float) -> Build | None:
    """Return the build that a worker should take: the one asked for first, ties by id; None when there is none."""
    can = {(offer.chip_kind, offer.sdk) for offer in offers}
    waiting = (
        one
        for one in builds
        if one.state is BuildState.QUEUED
        and one.not_before_s <= now_s
        and (one.request.key.chip_kind, one.request.key.sdk) in can
    )
    return min(waiting, key=lambda one: (one.requested_at_s, one.build_id), default=None)


def take_build(build: Build, worker: str, now_s: float) -> Build:
    """Return the build in a worker's hands."""
    assert build.state is BuildState.QUEUED
    return msgspec.structs.replace(
        build,
        state=BuildState.BUILDING,
        attempt=build.attempt + 1,
        worker=worker,
        lease_until_s=now_s + LEASE_S,
    )


def hold_build(build: Build, worker: str, attempt: int, now_s: float) -> Build:
    """Return the build with a longer lease; raises Conflict when the worker has it no longer."""
    check_holder(build, worker, attempt)
    return msgspec.structs.replace(build, lease_until_s=now_s + LEASE_S)


def finish_build(build: Build, worker: str, attempt: int, files: tuple[ArtifactFile, ...], now_s: float) -> Build:
    """Return the build as done; raises Conflict when the worker has it no longer, Rejected without files."""
    if build.state is BuildState.DONE and (build.worker, build.attempt, build.files) == (worker, attempt, files):
        return build  # said twice
    check_holder(build, worker, attempt)
    if not 0 < len(files) <= FILES_MAX:
        raise Rejected(f"a build ends with 1 to {FILES_MAX} files, not {len(files)}")
    return msgspec.structs.replace(
        build, state=BuildState.DONE, files=files, lease_until_s=0.0, ended_at_s=now_s, log=""
    )


def fail_build(build: Build, worker: str, attempt: int, log: str, now_s: float, *, is_final: bool = False) -> Build:
    """Return the build after an attempt that failed; raises Conflict when the worker has it no longer.

    Args:
        build: as it is.
        worker: who says so.
        attempt: of that worker.
        log: what the compiler said; its end is kept.
        now_s: wall time.
        is_final: trying again cannot help.
    """
    check_holder(build, worker, attempt)
    return _end_attempt(build, log, now_s, is_final=is_final)


def expire_build(build: Build, now_s: float) -> Build:
    """Return the build as it is when its lease is looked at: unchanged while it holds."""
    if build.state is not BuildState.BUILDING or build.lease_until_s > now_s:
        return build
    return _end_attempt(build, f"worker {build.worker} was silent for {LEASE_S:.0f} s", now_s, is_final=False)


def cancel_build(build: Build, now_s: float) -> Build:
    """Return the build as cancelled; raises Conflict when it is over."""
    if build.state not in (BuildState.QUEUED, BuildState.BUILDING):
        raise Conflict(f"build {build.build_id} is {build.state.value}: there is nothing to cancel")
    return msgspec.structs.replace(build, state=BuildState.CANCELLED, lease_until_s=0.0, ended_at_s=now_s)


def check_holder(build: Build, worker: str, attempt: int) -> None:
    """Raise Conflict unless the worker has the build in this attempt."""
    if (build.state, build.worker, build.attempt) != (BuildState.BUILDING, worker, attempt):
        raise Conflict(
            f"build {build.build_id} is {build.state.value} in attempt {build.attempt} of "
            f"{build.worker or 'nobody'}: attempt {attempt} of {worker} is over",
            next_step="stop working on it and take the next",
        )


def keep_end(log: str) -> str:
    """Return the end of a log within LOG_BYTES_MAX, cut at a line where there is one."""
    data = log.encode(errors="replace")
    if len(data) <= LOG_BYTES_MAX:
        return log
    tail = data[-LOG_BYTES_MAX:]
    line = tail.find(b"\n")
    return tail[line + 1 if 0 <= line < len(tail) - 1 else 0 :].decode(errors="ignore")


def _end_attempt(build: Build, log: str, now_s: float, *, is_final: bool) -> Build:
    tried = build.attempt - build.first_attempt
    is_over = is_final or tried >= build.request.attempts_max
    rest_s = min(REST_BASE_S * 2.0 ** min(tried - 1, 10), REST_MAX_S)
    return msgspec.structs.replace(
        build,
        state=BuildState.FAILED if is_over else BuildState.QUEUED,
        lease_until_s=0.0,
        not_before_s=0.0 if is_over else now_s + rest_s,
        ended_at_s=now_s if is_over else 0.0,
        log=keep_end(log),
    )
