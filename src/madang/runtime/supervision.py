"""What a supervised process is, and when it is started again: facts and pure choices.

Owns the process specification, the order of starting and stopping, and the restart rule. Refuses to start
anything or to read a clock: `madang.runtime.supervisor` is the shell. Called by the embedded federation and by
`madang site run --all`, which describe their programs as specifications.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from madang.core import Rejected
from madang.runtime.process import ProcessRef

LISTEN_FDS_VARIABLE = "MADANG_LISTEN_FDS"
"""Environment variable that hands held listening sockets over, as `tenant=3,peer=4`."""

MARKER_VARIABLE = "MADANG_SUPERVISED_BY"
"""Environment variable that every supervised process and all its children carry: who started them."""

RECORD_VERSION = 1


class ListenSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A listening socket that the supervisor holds for a process.

    Attributes:
        name: how the process knows it, such as `tenant`.
        host: an IPv4 address.
        port: where it listens.
    """

    name: str
    host: str
    port: int


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process to keep alive.

    Attributes:
        name: unique under one supervisor.
        argv: program and arguments.
        env: variables added to the supervisor's own environment.
        cwd: working folder.
        log_path: file that receives standard output and standard error.
        listeners: sockets that stay open while the process is down, so that no accept queue is dropped.
        rank: processes of a lower rank are stopped after all of a higher one.
        stop_timeout_s: how long it may take to end after SIGTERM before it is killed.
        ready_url: answered with a 2xx status once the process is ready; empty when it has no such page.
        depends_on: names of processes that are waited for, a bounded time, before the first start.
        needs_files: files that must exist before the first start.
        is_death_linked: whether it gets SIGTERM when its supervisor dies. False for what is adopted later.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    log_path: Path
    env: dict[str, str] = {}
    listeners: tuple[ListenSpec, ...] = ()
    rank: int = 0
    stop_timeout_s: float = 5.0
    ready_url: str = ""
    depends_on: tuple[str, ...] = ()
    needs_files: tuple[Path, ...] = ()
    is_death_linked: bool = True


def encode_specs(specs: tuple[ProcessSpec, ...]) -> bytes:
    """Return the JSON bytes by which a supervisor in another process gets its specifications."""
    return msgspec.json.encode(specs, enc_hook=str)


def decode_specs(data: bytes) -> tuple[ProcessSpec, ...]:
    """Return the specifications in `data`; raises Rejected when they are damaged."""
    try:
        return msgspec.json.decode(data, type=tuple[ProcessSpec, ...], dec_hook=_decode_path)
    except msgspec.MsgspecError as error:
        raise Rejected(f"specifications of processes are damaged: {error}") from error


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How soon a process that ended is started again.

    The first restart is immediate, for most crashes are single. Further ones wait `base_s`, doubled each time
    up to `delay_s_max`. A process that has run for `healthy_after_s` starts over with a clean slate.
    """

    base_s: float = 0.25
    delay_s_max: float = 5.0
    healthy_after_s: float = 10.0


class RestartState(msgspec.Struct, frozen=True, kw_only=True):
    """Quick ends in a row so far."""

    failures: int = 0


def choose_restart(policy: RestartPolicy, state: RestartState, ran_s: float) -> tuple[RestartState, float]:
    """Return the next state and the delay in seconds before a process that ran for `ran_s` is started again."""
    failures = 0 if ran_s >= policy.healthy_after_s else state.failures
    # The exponent is bounded so that a process that fails for weeks does not overflow a float.
    delay_s = 0.0 if failures == 0 else min(policy.base_s * 2.0 ** min(failures - 1, 32), policy.delay_s_max)
    return RestartState(failures=failures + 1), delay_s


def check_specs(specs: Iterable[ProcessSpec]) -> None:
    """Raise Rejected when names repeat, a dependency is unknown, or dependencies form a ring."""
    by_name: dict[str, ProcessSpec] = {}
    for spec in specs:
        if spec.name in by_name:
            raise Rejected(f"two processes are named {spec.name!r}")
        by_name[spec.name] = spec
    for spec in by_name.values():
        for name in spec.depends_on:
            if name not in by_name:
                raise Rejected(f"process {spec.name!r} depends on {name!r}, which is not supervised")
    settled: set[str] = set()
    while len(settled) < len(by_name):
        free = {name for name, spec in by_name.items() if name not in settled and settled.issuperset(spec.depends_on)}
        if not free:
            raise Rejected(f"processes depend on each other in a ring: {', '.join(sorted(set(by_name) - settled))}")
        settled |= free


def plan_stop(specs: Iterable[ProcessSpec]) -> list[list[ProcessSpec]]:
    """Return the groups to stop one after the other: highest rank first, all of one rank together."""
    ranks: dict[int, list[ProcessSpec]] = {}
    for spec in specs:
        ranks.setdefault(spec.rank, []).append(spec)
    return [ranks[rank] for rank in sorted(ranks, reverse=True)]


def format_listen_fds(descriptors: dict[str, int]) -> str:
    """Return the value of MADANG_LISTEN_FDS for held sockets by name."""
    return ",".join(f"{name}={number}" for name, number in descriptors.items())


def parse_listen_fds(text: str) -> dict[str, int]:
    """Return inherited sockets by name from the value of MADANG_LISTEN_FDS; raises Rejected when malformed."""
    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, sign, number = part.partition("=")
        if not (name and sign and number.isdecimal()):
            raise Rejected(f"{LISTEN_FDS_VARIABLE} has {part!r}: expected name=descriptor, such as tenant=3")
        found[name] = int(number)
    return found


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one supervised process.

    Attributes:
        ref: the running process, None while there is none.
        since_s: wall time at which it was started or ended.
        restarts: starts after the first.
        last_exit: how it ended last, such as `exit 1` or `signal SIGKILL`; empty when it never did.
        note: why it is not running, when it is not.
    """

    name: str
    log_path: Path
    ref: ProcessRef | None = None
    since_s: float = 0.0
    restarts: int = 0
    last_exit: str = ""
    note: str = ""
    ready_url: str = ""


class SupervisorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The file by which a later command finds what a supervisor started, whether or not it still lives.

    Attributes:
        session: session id of the supervisor and its children; engines, which are adopted, have their own.
        marker: what identifies the children's environment.
    """

    supervisor: ProcessRef
    session: int
    marker: str
    processes: tuple[ProcessRecord, ...] = ()
    version: int = RECORD_VERSION


def encode_record(record: SupervisorRecord) -> bytes:
    """Return the JSON bytes of a record."""
    return msgspec.json.encode(record, enc_hook=str)


def decode_record(data: bytes) -> SupervisorRecord:
    """Return the record in `data`; raises Rejected when it is damaged or written by a newer release."""
    try:
        record = msgspec.json.decode(data, type=SupervisorRecord, dec_hook=_decode_path)
    except msgspec.MsgspecError as error:
        raise Rejected(f"record of supervised processes is damaged: {error}") from error
    if record.version != RECORD_VERSION:
        raise Rejected(f"record of supervised processes has version {record.version}; this release knows 1")
    return record


def _decode_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"no decoder for {kind}")
