"""What a container for an engine is asked for: image, mounts, devices, limits, no network.

Owns the body of the request to create it, and where things are inside. Refuses to talk to a daemon: `container_run`,
which the shim starts in an engine's place, does. Called by `vendor`. The fields are those of Docker's Engine API 1.41,
which Podman's compatible service takes too.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import msgspec

from madang.core import Rejected
from madang.engine import vendor_start
from madang.engine.contract import LaunchRequest
from madang.engine.settings import EngineRuntime

REPLICA_LABEL = "org.madang.replica"
FOLDER_LABEL = "org.madang.folder"
LAUNCH_LABEL = "org.madang.launch"
_SHM_BYTES = 1 << 30
_PIDS_MAX = 4096
_FILES_MAX = 4096
"""As in a virtual environment; left to itself, Podman asks for a million, which not every kernel's owner may give."""
_OOM_SCORE = 500
_LOG_BYTES_MAX = "4m"


class ContainerPlace:
    """Where an engine finds things inside its container."""

    START = Path("/madang/vendor_start.py")
    KEY = Path("/madang/key")
    FILES = Path("/madang/files")
    RUN = Path("/madang/run")
    FOLDER = Path("/tmp/model")  # noqa: S108  in the container's own memory
    HOST = "127.0.0.1"
    PORT = 8000


class ContainerLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """What `container_run` is told; no secret among it.

    Attributes:
        socket: where the daemon listens.
        name: of the container.
        body: to create it.
        seccomp: as in the settings.
        run_folder: the folder on this machine that is RUN inside.
        key_file: what else a container must have been made with to be taken over.
    """

    socket: str
    name: str
    body: dict[str, Any]
    seccomp: str
    host: str
    port: int
    run_folder: str
    key_file: str
    term_s: float


def container_argv(
    engine: str,
    runtime: EngineRuntime,
    request: LaunchRequest,
    tail: list[str],
    env: dict[str, str],
    memory_bytes: int,
    term_s: float,
) -> tuple[str, ...]:
    """Return the command line of the process that keeps the container.

    Args:
        engine: its name.
        runtime: image, devices and daemon.
        request: the launch.
        tail: what `vendor_start` is told, paths as inside.
        env: variables of the engine.
        memory_bytes: its limit.
        term_s: between SIGTERM and SIGKILL.
    """
    if not runtime.image:
        raise Rejected(f"engine_runtimes.{engine}.image: a container needs one")
    folder = request.key_file.parent
    bridge = [f"--bridge={ContainerPlace.RUN}", f"--bridge-port={ContainerPlace.PORT}"]
    launch = ContainerLaunch(
        socket=str(runtime.socket),
        # The folder tells nodes of one machine apart.
        name=f"madang-{request.spec.replica_id}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}",
        body=_body(runtime, request, [*bridge, *tail], env, memory_bytes),
        seccomp=runtime.seccomp,
        host=request.host,
        port=request.port,
        run_folder=str(folder / "run"),
        key_file=str(request.key_file),
        term_s=term_s,
    )
    text = msgspec.json.encode(launch, order="deterministic").decode()
    return (sys.executable, "-P", "-m", "madang.engine.container_run", text)


def _body(
    runtime: EngineRuntime, request: LaunchRequest, tail: list[str], env: dict[str, str], memory_bytes: int
) -> dict[str, Any]:
    folder = request.key_file.parent
    mounts = [
        _mount(Path(str(vendor_start.__file__)), ContainerPlace.START),
        _mount(request.key_file, ContainerPlace.KEY),
    ]
    mounts += [_mount(path, ContainerPlace.FILES / name) for name, path in sorted(request.files.items())]
    mounts.append(_mount(folder / "run", ContainerPlace.RUN, is_read_only=False))
    return {
        "Image": runtime.image,
        "Entrypoint": [str(runtime.python or "python3"), "-I", str(ContainerPlace.START)],
        "Cmd": tail,
        "Env": [f"{name}={value}" for name, value in sorted(env.items())],
        "WorkingDir": "/tmp",  # noqa: S108  in the container's own memory
        "StopSignal": "SIGTERM",
        "Labels": {REPLICA_LABEL: request.spec.replica_id, FOLDER_LABEL: str(folder)},
        "HostConfig": {
            # Nothing of a prompt can leave: requests come through a socket in a shared folder.
            "NetworkMode": "none",
            # Without a first process that is none of the engine's, signals from inside would not end it.
            "Init": True,
            "AutoRemove": False,
            "RestartPolicy": {"Name": ""},
            "Mounts": mounts,
            "Tmpfs": {"/tmp": "rw,nosuid,nodev"},  # noqa: S108
            "ShmSize": _SHM_BYTES,
            "Memory": memory_bytes,
            "MemorySwap": memory_bytes,
            "NanoCpus": request.threads * 1_000_000_000,
            "PidsLimit": _PIDS_MAX,
            "OomScoreAdj": _OOM_SCORE,
            "Devices": [
                {"PathOnHost": str(path), "PathInContainer": str(path), "CgroupPermissions": "rw"}
                for path in runtime.devices
            ],
            "CapDrop": ["ALL"],
            "CapAdd": ["IPC_LOCK"],
            "SecurityOpt": ["no-new-privileges"],
            "Ulimits": [
                {"Name": "memlock", "Soft": -1, "Hard": -1},
                {"Name": "nofile", "Soft": _FILES_MAX, "Hard": _FILES_MAX},
            ],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": _LOG_BYTES_MAX, "max-file": "2"}},
        },
    }


def _mount(source: Path, target: Path, *, is_read_only: bool = True) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": str(target), "ReadOnly": is_read_only}
