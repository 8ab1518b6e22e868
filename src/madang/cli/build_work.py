"""A worker that compiles artifacts: takes a build, runs a command for it, uploads what the command left.

Owns one build at a time and its lease. Refuses to know compilers: the command does. Called by `madang model work` on a
machine that has the vendor's compiler.

The command runs in a folder of its own with `MADANG_BUILD` (a JSON file: the build, with key and inputs) and
`MADANG_BUILD_OUT` (a folder for the files that come out). Exit 0 means done, 65 (EX_DATAERR of sysexits) that trying
again cannot help, anything else a failure that may pass.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from madang.core import Conflict, Rejected, Unavailable
from madang.machine.build import LOG_BYTES_MAX
from madang.model.build import Build, BuildState
from madang.runtime.admin_client import AdminClient, is_loopback
from madang.runtime.artifacts.manifests import cut_file
from madang.runtime.clock import SystemClock
from madang.runtime.http_trust import trust_for
from madang.wire.artifacts import FileChunks

HOLD_S = 30.0
EXIT_FINAL = 65
_UPLOAD_TRIES = 20
_RETRY_S = 5.0
_TIMEOUT_S = 60.0


class WorkApi:
    """The hub as a worker sees it."""

    def __init__(self, url: str, token: str) -> None:
        self._json = AdminClient(url, token, name="the hub")
        self._bytes = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {token}"},
            timeout=_TIMEOUT_S,
            trust_env=not is_loopback(url),
            verify=trust_for(url),
        )

    def close(self) -> None:
        """Close its connections."""
        self._json.close()
        self._bytes.close()

    def take(self) -> Build | None:
        """Return the next build, or None."""
        found = self._json.call("POST", "/api/v1/work/take")
        return None if found is None else msgspec.convert(found, Build)

    def say(self, build: Build, what: str, body: object = None) -> Any:
        """Say something about a build in its attempt; raises Conflict when it is another's by now."""
        path = f"/api/v1/work/{build.build_id}/{what}"
        return self._json.call("POST", path, body, params={"attempt": build.attempt})

    def put_chunk(self, build: Build, file: FileChunks, index: int, data: bytes) -> None:
        """Upload one chunk; raises Conflict, Rejected or Unavailable."""
        path = f"/api/v1/work/{build.build_id}/files/{file.sha256}/chunks/{index}"
        try:
            answer = self._bytes.put(path, params={"attempt": build.attempt}, content=data)
        except httpx.HTTPError as error:
            raise Unavailable(f"the hub does not take chunk {index} of {file.name}: {error}") from error
        if answer.status_code == 204:
            return
        text = f"the hub answers chunk {index} of {file.name} with {answer.status_code}: {answer.text[:300]}"
        if answer.status_code == 409:
            raise Conflict(text)
        raise Unavailable(text) if answer.status_code >= 500 else Rejected(text)


def work_once(api: WorkApi, command: Sequence[str], folder: Path, wait: Callable[[float], object]) -> str | None:
    """Do one build; return how it ended in words, None when there was none to do.

    Args:
        api: the hub.
        command: what to run.
        folder: where builds get their folders; what a build leaves is removed.
        wait: sleeps for so many seconds.

    Raises:
        Unavailable: the hub does not answer a question that nothing was done for yet.
    """
    build = api.take()
    if build is None:
        return None
    job = folder / build.build_id
    shutil.rmtree(job, ignore_errors=True)
    (job / "out").mkdir(parents=True)
    (job / "build.json").write_bytes(msgspec.json.encode(build))
    try:
        code = _run(api, build, command, job)
        if code == 0:
            _upload(api, build, job / "out", wait)
            return f"build {build.build_id} is {BuildState.DONE.value}"
        failure = {"log": _read_end(job / "log"), "is_final": code == EXIT_FINAL}
        state = api.say(build, "fail", failure)["state"]
        return f"build {build.build_id} failed with exit code {code}: it is {state}"
    except Conflict as error:
        return f"build {build.build_id} is another's: {error.message}"
    except Rejected as error:
        api.say(build, "fail", {"log": error.message, "is_final": False})
        return f"build {build.build_id} failed: {error.message}"
    finally:
        shutil.rmtree(job, ignore_errors=True)


def _run(api: WorkApi, build: Build, command: Sequence[str], job: Path) -> int:
    """Run the command while holding the lease; raises Conflict, with the command ended, when the lease is lost."""
    environ = os.environ | {"MADANG_BUILD": str(job / "build.json"), "MADANG_BUILD_OUT": str(job / "out")}
    with (job / "log").open("wb") as log:
        try:
            process = subprocess.Popen(
                command, cwd=job, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, process_group=0
            )
        except OSError as error:
            raise Rejected(f"cannot run {command[0]}: {error.strerror}") from error
    try:
        while True:
            try:
                return process.wait(HOLD_S)
            except subprocess.TimeoutExpired:
                _hold(api, build)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _hold(api: WorkApi, build: Build) -> None:
    try:
        api.say(build, "hold")
    except Unavailable:
        return  # the hub is away; if it stays away too long, another worker gets the build and we are told


def _upload(api: WorkApi, build: Build, out: Path, wait: Callable[[float], object]) -> None:
    paths = sorted(path for path in out.iterdir() if path.is_file())
    if not paths:
        raise Rejected("the command left no file in MADANG_BUILD_OUT")
    files = [(path, cut_file(path, path.name, report=_make_holder(api, build))) for path in paths]
    for path, file in files:
        _keep_trying(lambda path=path, file=file: _upload_file(api, build, path, file), wait)  # type: ignore[misc]
    result = {"files": [{"name": one.name, "size_bytes": one.size_bytes, "sha256": one.sha256} for _, one in files]}
    _keep_trying(lambda: api.say(build, "finish", result), wait)


def _upload_file(api: WorkApi, build: Build, path: Path, file: FileChunks) -> None:
    hold = _make_holder(api, build)
    with path.open("rb") as opened:
        for index in api.say(build, "files", file)["missing"]:
            start, size_bytes = file.span_of(index)
            opened.seek(start)
            api.put_chunk(build, file, index, opened.read(size_bytes))
            hold(start)


def _make_holder(api: WorkApi, build: Build) -> Callable[[int], None]:
    """Return what may be called often and says now and then that we are alive."""
    clock = SystemClock()
    said_ns = clock.monotonic_ns()

    def hold(_done_bytes: int) -> None:
        nonlocal said_ns
        if clock.monotonic_ns() - said_ns >= HOLD_S * 1e9:
            _hold(api, build)
            said_ns = clock.monotonic_ns()

    return hold


def _keep_trying(act: Callable[[], object], wait: Callable[[float], object]) -> None:
    for number in range(_UPLOAD_TRIES):
        try:
            act()
            return
        except Unavailable:
            if number == _UPLOAD_TRIES - 1:
                raise
            wait(_RETRY_S)


def _read_end(path: Path) -> str:
    with path.open("rb") as opened:
        opened.seek(max(0, path.stat().st_size - LOG_BYTES_MAX))
        return opened.read().decode(errors="replace")
