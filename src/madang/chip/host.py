"""The machine as chip drivers see it: small files, links and vendors' tools, all bounded in time and size.

Owns how a file is read and how a tool is found, run and ended. Refuses to interpret what comes back, to run a
shell, and to wait for anything without a limit. Called by chip drivers; twins give it another root, and
`madang chip probe` one that records.

A tool or file of a broken card may never return, not even when killed (a task in uninterruptible sleep). So nothing
here is started while the last of its kind still hangs, and no pool of threads is used that the program would have
to wait for when it ends.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from madang.core import Unavailable

FILE_BYTES_MAX = 64 * 1024
"""Files of sysfs are one page; lists such as /proc/cpuinfo are not read through here."""
TOOL_BYTES_MAX = 1024 * 1024
"""What `rbln-smi -j` writes for 64 devices with contexts is well under a tenth of this."""
TOOL_S_MAX = 5.0
"""What Rebellions' own Go library (rblnlib-go) grants its tool."""
_STDERR_BYTES_MAX = 8 * 1024
_NAMES_MAX = 4096
_REAP_S_MAX = 1.0
_CHUNK_BYTES = 64 * 1024
_ENVIRONMENT = ("PATH", "HOME", "LD_LIBRARY_PATH")
_USUAL_FOLDERS = ("/usr/local/bin", "/usr/bin")

T = TypeVar("T")


class ToolOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool that ended by itself wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Host(Protocol):
    """What drivers ask of a machine. Paths are absolute, as on the machine itself."""

    def read(self, path: str) -> bytes:
        """Return the first bytes of a file; empty when it is absent, forbidden or fails."""
        ...

    def names(self, path: str) -> tuple[str, ...]:
        """Return the sorted names in a folder; empty when there is none."""
        ...

    def link(self, path: str) -> str:
        """Return the last part of where a symbolic link points; empty when it is none."""
        ...

    def has_tool(self, tools: Sequence[str]) -> bool:
        """Return whether any of `tools` (paths, or names to look for in PATH) is installed."""
        ...

    async def run(self, tools: Sequence[str], words: Sequence[str]) -> ToolOutput:
        """Run the first of `tools` that exists and return what it wrote.

        Raises Unavailable when none exists, when it does not end in time, or when it writes too much.
        """
        ...


class Patience:
    """Calls a function that may never return, in a thread of its own, one at a time.

    Args:
        what: names the function in errors.
        wait_s_max: how long to wait for it.
    """

    def __init__(self, what: str, wait_s_max: float = TOOL_S_MAX) -> None:
        self._what = what
        self._wait_s_max = wait_s_max
        self._is_running = False

    async def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns; raises Unavailable when it takes too long, or still does from before."""
        if self._is_running:
            raise Unavailable(f"{self._what} still hangs since an earlier reading", next_step="see the kernel's log")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function()
            except Exception as raised:
                error = raised
            self._is_running = False
            # The loop may be gone when a call returns after all.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result, error)

        self._is_running = True
        threading.Thread(target=work, name=f"chip: {self._what}", daemon=True).start()
        try:
            async with asyncio.timeout(self._wait_s_max):
                return await future
        except TimeoutError as error:
            raise Unavailable(f"{self._what} did not return in {self._wait_s_max:g} s") from error


class MachineHost:
    """This machine, or a twin's folder in its place.

    Args:
        root: what stands for `/`.
        folders: where named tools are looked for; by default those of PATH, then the usual ones.
        tool_s_max: how long a tool may take.
    """

    def __init__(
        self, root: Path = Path("/"), *, folders: Sequence[str] | None = None, tool_s_max: float = TOOL_S_MAX
    ) -> None:
        self._root = root
        found = os.environ.get("PATH", "").split(os.pathsep) if folders is None else list(folders)
        self._folders = tuple(folder for folder in dict.fromkeys([*found, *_USUAL_FOLDERS]) if folder.startswith("/"))
        self._tool_s_max = tool_s_max
        self._unreaped: dict[str, asyncio.subprocess.Process] = {}

    def read(self, path: str) -> bytes:
        """Return the first bytes of a file; empty when it is absent, forbidden or fails."""
        try:
            # Unbuffered: sysfs gives a whole value at once, and a second read would ask the device again.
            with (self._root / path.lstrip("/")).open("rb", buffering=0) as file:
                return file.read(FILE_BYTES_MAX) or b""
        except OSError:
            return b""

    def names(self, path: str) -> tuple[str, ...]:
        """Return the sorted names in a folder; empty when there is none."""
        try:
            return tuple(sorted(os.listdir(self._root / path.lstrip("/")))[:_NAMES_MAX])
        except OSError:
            return ()

    def link(self, path: str) -> str:
        """Return the last part of where a symbolic link points; empty when it is none."""
        try:
            return os.path.basename(os.readlink(self._root / path.lstrip("/")))
        except OSError:
            return ""

    def has_tool(self, tools: Sequence[str]) -> bool:
        """Return whether any of `tools` is installed."""
        return bool(self._find(tools))

    async def run(self, tools: Sequence[str], words: Sequence[str]) -> ToolOutput:
        """Run the first of `tools` that exists and return what it wrote."""
        program = self._find(tools)
        if not program:
            names = " or ".join(dict.fromkeys(Path(tool).name for tool in tools))
            raise Unavailable(f"{names} is not installed", next_step="install the vendor's tools on this node")
        label = " ".join([Path(program).name, *words])
        hanging = self._unreaped.get(program)
        if hanging is not None and hanging.returncode is None:
            raise Unavailable(f"{label}: the last one was killed and has not ended (pid {hanging.pid})")
        self._unreaped.pop(program, None)
        starting = asyncio.create_task(_start(program, words))
        try:
            process = await asyncio.shield(starting)
        except OSError as error:
            raise Unavailable(f"{label} cannot be started: {error.strerror or error}") from error
        except asyncio.CancelledError:
            # Given up while it starts: asyncio would kill the tool alone, and then wait for whatever that had started.
            with contextlib.suppress(OSError):
                await self._end(program, await starting)
            raise
        try:
            async with asyncio.timeout(self._tool_s_max):
                return await _collect(process, label)
        except TimeoutError as error:
            raise Unavailable(f"{label} did not end in {self._tool_s_max:g} s") from error
        finally:
            # Also when the reading itself was given up: no tool outlives the call that started it.
            await self._end(program, process)

    def _find(self, tools: Sequence[str]) -> str:
        for tool in tools:
            places = [tool] if tool.startswith("/") else [f"{folder}/{tool}" for folder in self._folders]
            for place in places:
                program = self._root / place.lstrip("/")
                if program.is_file() and os.access(program, os.X_OK):
                    return str(program)
        return ""

    async def _end(self, program: str, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            _kill(process)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP_S_MAX):
                    await process.wait()
        if process.returncode is None:
            self._unreaped[program] = process


async def _start(program: str, words: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        program,
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )


async def _collect(process: asyncio.subprocess.Process, label: str) -> ToolOutput:
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.TaskGroup() as group:
        out = group.create_task(_read_whole(process, process.stdout))
        err = group.create_task(_read_beginning(process.stderr))
    stdout = out.result()
    if stdout is None:
        raise Unavailable(f"{label} wrote more than {TOOL_BYTES_MAX} bytes")
    return ToolOutput(exit_code=await process.wait(), stdout=stdout, stderr=err.result())


async def _read_whole(process: asyncio.subprocess.Process, stream: asyncio.StreamReader) -> bytes | None:
    """Return all that a stream gives, or None (and end the process) when that is too much."""
    parts: list[bytes] = []
    size = 0
    while chunk := await stream.read(_CHUNK_BYTES):
        parts.append(chunk)
        size += len(chunk)
        if size > TOOL_BYTES_MAX:
            _kill(process)
            return None
    return b"".join(parts)


async def _read_beginning(stream: asyncio.StreamReader) -> bytes:
    """Return the first bytes of a stream and read the rest away, so that its writer never blocks."""
    kept = b""
    while chunk := await stream.read(_CHUNK_BYTES):
        kept += chunk[: _STDERR_BYTES_MAX - len(kept)]
    return kept


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        # A session of its own, so whatever the tool started goes with it.
        os.killpg(process.pid, signal.SIGKILL)
