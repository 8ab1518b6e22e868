"""How a vendor's server is launched in a runtime of its own, whatever the vendor.

Owns the step from a filled-in command line to a launch plan, what is installed where, and whether it fits an artifact.
Refuses to know engines and to start anything. Called by the drivers of vendors' engines.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from madang.core import Rejected
from madang.engine import vendor_start
from madang.engine.container_plan import ContainerPlace, container_argv
from madang.engine.contract import LaunchPlan, LaunchRequest
from madang.engine.manifest import Manifest, parse_version
from madang.engine.settings import EngineRuntime, RuntimeKind, identity_of_settings
from madang.model import ReplicaSpec

_FILES_MAX = 4096
_STOP_MARGIN_S = 5.0
"""The container's keeper must have removed it before the shim's own SIGKILL comes."""
_SDK_PARTS = 2
"""Vendors promise compatibility within year and month (Furiosa), or major and minor (Rebellions)."""


@dataclass(frozen=True)
class Place:
    """Where an engine finds its model and listens, as it sees it itself.

    Attributes:
        folder: the model's files by name.
    """

    folder: Path
    host: str
    port: int


@dataclass(frozen=True)
class VendorCommand:
    """A vendor's server to start.

    Attributes:
        script: its console script.
        arguments: after the script's name.
        env: variables to add.
        key_variable, key_flag: how it is told its key; one of them.
    """

    script: str
    arguments: tuple[str, ...]
    env: dict[str, str]
    key_variable: str = ""
    key_flag: str = ""


class VendorRuntime:
    """One vendor's stack on this node.

    Args:
        manifest: of the engine.
        runtime: what the settings say; None when they say nothing.
        program: a twin's module; empty for the engine itself.
    """

    def __init__(self, manifest: Manifest, runtime: EngineRuntime | None, program: str) -> None:
        self._manifest = manifest
        self._given = runtime
        self._runtime = runtime or EngineRuntime()
        self._program = program

    @property
    def is_container(self) -> bool:
        """Return whether it runs in a container."""
        return self._runtime.kind is RuntimeKind.CONTAINER

    @property
    def identity(self) -> str:
        """Return what tells this runtime from another."""
        return identity_of_settings(self._runtime)

    def check(self) -> None:
        """Raise Rejected when this node has no such stack."""
        name = self._manifest.name
        if self._program or self.is_container:
            return
        python = self._runtime.python
        if python is None:
            raise Rejected(
                f"this node has no {name}: engine_runtimes.{name} is not in its settings",
                next_step="install the vendor's package into a virtual environment of its own and name its python",
            )
        if not python.exists():
            raise Rejected(f"engine_runtimes.{name}.python: there is no {python}")

    def version(self, package: str) -> str:
        """Return the version of a vendor's package; raises Rejected when it is neither stated nor to be found."""
        stated, found = self._runtime.version, self._installed(package)
        return self._agree(package, stated, found, "version")

    def sdk_version(self, package: str) -> str:
        """Return the version of the stack that compiled artifacts must match."""
        stated = self._runtime.sdk_version or ("" if self._runtime.python else self._runtime.version)
        return self._agree(package, stated, self._installed(package), "sdk_version")

    def check_sdk(self, spec: ReplicaSpec, package: str) -> None:
        """Raise Rejected when an artifact was compiled with another stack than the one that is here."""
        wanted = parse_version(spec.artifact.sdk.rpartition("-")[2])[:_SDK_PARTS]
        if not wanted:
            raise Rejected(
                f"replica {spec.replica_id}: artifact {spec.artifact.artifact_id} does not say which SDK compiled it",
                next_step="enter it in the catalog as `sdk`",
            )
        here = self.sdk_version(package)
        if parse_version(here)[:_SDK_PARTS] != wanted:
            raise Rejected(
                f"replica {spec.replica_id}: artifact {spec.artifact.artifact_id} was compiled with"
                f" {spec.artifact.sdk}; this node has {package} {here}",
                next_step="bring an artifact of this version, or the SDK of that one",
            )

    def plan(self, request: LaunchRequest, command: VendorCommand) -> LaunchPlan:
        """Return how to start a command whose arguments were filled in for `place`."""
        place = self.place(request)
        runtime = self._runtime
        own = [f"--key-file={self._seen(request.key_file)}", f"--folder={place.folder}"]
        own += [f"--key-variable={command.key_variable}"] if command.key_variable else []
        own += [f"--key-flag={command.key_flag}"] if command.key_flag else []
        own += [f"--link={name}={self._seen(path, name)}" for name, path in sorted(request.files.items())]
        own += [f"--module={self._program}"] if self._program else [f"--script={command.script}"]
        env = {**request.device_env, **command.env, **runtime.env}
        memory_bytes = runtime.memory_bytes_max or request.private_bytes_max
        tail = [*own, "--", *command.arguments]
        if self.is_container:
            argv = container_argv(
                self._manifest.name,
                runtime,
                request,
                tail,
                env,
                memory_bytes,
                self._manifest.times.term_s_max - _STOP_MARGIN_S,
            )
            return LaunchPlan(argv=argv, env={}, private_bytes_max=request.private_bytes_max)
        if self._program:
            # -P: the working folder holds engine logs and must not shadow modules.
            head = [sys.executable, "-P", "-m", "madang.engine.vendor_start"]
        else:
            # -I: neither our modules nor our variables may reach another's Python.
            head = [str(runtime.python), "-I", str(vendor_start.__file__)]
        return LaunchPlan(argv=(*head, *tail), env=env, private_bytes_max=memory_bytes, open_files_max=_FILES_MAX)

    def place(self, request: LaunchRequest) -> Place:
        """Return where the engine finds its model and listens."""
        if self.is_container:
            return Place(ContainerPlace.FOLDER, ContainerPlace.HOST, ContainerPlace.PORT)
        return Place(request.key_file.parent / "model", request.host, request.port)

    def _seen(self, path: Path, name: str = "") -> Path:
        if not self.is_container:
            return path
        return ContainerPlace.FILES / name if name else ContainerPlace.KEY

    def _installed(self, package: str) -> str:
        python = self._runtime.python
        if python is None or self.is_container:
            return ""
        # Not resolved: a virtual environment's interpreter is a link to the one that it was made with.
        stem = package.lower().replace("-", "_")
        for folder in sorted(python.parent.parent.glob("lib/python3*/site-packages/*.dist-info")):
            name, _, version = folder.name.removesuffix(".dist-info").partition("-")
            if name.lower().replace(".", "_") == stem:
                return version
        return ""

    def _agree(self, package: str, stated: str, found: str, key: str) -> str:
        where = f"engine_runtimes.{self._manifest.name}.{key}"
        if stated and found and parse_version(stated) != parse_version(found):
            raise Rejected(f"{where} is {stated}, and {package} {found} is installed", next_step=f"correct {where}")
        if not (stated or found):
            raise Rejected(f"the version of {package} is not known on this node", next_step=f"state {where}")
        return stated or found
