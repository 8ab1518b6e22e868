"""The content-addressed artifact cache of one machine: what is in it is whole and verified.

Owns its layout, verification and the lock of each file. Refuses to know where bytes come from
(`madang.node.artifacts` asks sources) and what may leave (`room`). Called by the fetchers of nodes and sites, by
`madang model import` and by whoever needs the path of a verified file. Several programs on one machine share it; a file
enters by rename only.

    <folder>/<sha256[:2]>/<sha256>        the file, mode 0444
    <folder>/<sha256[:2]>/<sha256>.ok     size and mtime at which it was verified in full; its own mtime: last used
    <folder>/.partial/<sha256>.part       bytes so far of a download from one end to the other
    <folder>/.partial/<sha256>.parts/     whole wheels so far
    <folder>/.partial/<sha256>.data, .journal   chunks so far (`chunk_file`)
    <folder>/.locks/<sha256>.lock         held by whoever fetches the file
    <folder>/.pins/<owner>.json           what an owner runs or wants (`room`)
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from madang.core import Rejected, Unavailable
from madang.model import ArtifactFile
from madang.runtime.files import replace_file, sync_folder

CHUNK_BYTES = 1024 * 1024
_BLOCK_BYTES = 512
"""The unit of st_blocks on Linux, whatever the file system's own."""
DISK_MARGIN_BYTES = 64 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

Report = Callable[[int], None]
"""Called with the bytes that are done so far."""


class _Marker(msgspec.Struct, frozen=True, kw_only=True):
    size_bytes: int
    mtime_ns: int


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Return `$MADANG_CACHE/artifacts`, or `~/.cache/madang/artifacts`."""
    root = environ.get("MADANG_CACHE")
    return (Path(root) if root else Path(environ.get("HOME", "/")) / ".cache" / "madang") / "artifacts"


class ArtifactCache:
    """Verified files by SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, sha256: str) -> Path:
        """Return where the file with that hash lies, whether or not it is there."""
        if not _SHA256.match(sha256):
            raise Rejected(f"{sha256[:80]!r} is not a SHA-256: expected 64 lower-case hex digits")
        return self.folder / sha256[:2] / sha256

    @property
    def partial_folder(self) -> Path:
        """Return the folder of what is not whole yet."""
        return self.folder / ".partial"

    def part_of(self, file: ArtifactFile) -> Path:
        """Return where the bytes of an unfinished download lie."""
        return self.partial_folder / f"{file.sha256}.part"

    def wheels_of(self, file: ArtifactFile) -> Path:
        """Return the folder of the whole wheels of an unfinished download."""
        return self.partial_folder / f"{file.sha256}.parts"

    def find(self, file: ArtifactFile) -> Path | None:
        """Return the path of a verified file, or None.

        A file is hashed in full when it enters; after that its size and modification time vouch for it. Where
        they disagree with the marker it is hashed again, and removed when it is not what its name says. Cost:
        two `stat` calls, or reading the file.
        """
        path = self.path_of(file.sha256)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        if _read_marker(path) == _Marker(size_bytes=status.st_size, mtime_ns=status.st_mtime_ns):
            # What was used last leaves last; a cache that may only be read keeps its order.
            with contextlib.suppress(OSError):
                os.utime(_marker_path(path))
            return path
        if status.st_size == file.size_bytes and hash_file(path) == file.sha256:
            _write_marker(path)
            return path
        path.unlink(missing_ok=True)
        return None

    def admit(self, part: Path, file: ArtifactFile, source: str, report: Report | None = None) -> Path:
        """Verify `part` and move it into the cache.

        Raises:
            Rejected: naming source, expected and found; `part` is removed.
        """
        size_bytes = part.stat().st_size
        if size_bytes != file.size_bytes:
            part.unlink()
            raise Rejected(f"{source}: expected {file.size_bytes} bytes of {file.name}, found {size_bytes}")
        found = hash_file(part, report)
        if found != file.sha256:
            part.unlink()
            raise Rejected(f"{source}: expected sha256 {file.sha256} of {file.name}, found {found}")
        return self.move_in(part, file.sha256)

    def move_in(self, part: Path, sha256: str) -> Path:
        """Move a file that was verified in full into the cache; for whoever has hashed it already."""
        path = self.path_of(sha256)
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("rb") as opened:
                os.fsync(opened.fileno())
            # Read-only, so that no tool changes in place what engines have mapped.
            part.chmod(0o444)
            part.replace(path)
            sync_folder(path.parent)
        _write_marker(path)
        return path

    @contextlib.contextmanager
    def lock(self, file: ArtifactFile, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of one file; `on_wait` is called, and paces the tries, while another process has it.

        The kernel frees the lock when its holder dies. `on_wait` ends the wait by raising.
        """
        path = self.folder / ".locks" / f"{file.sha256}.lock"
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.partial_folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    on_wait()
            yield
        finally:
            os.close(descriptor)

    def bytes_so_far(self, file: ArtifactFile) -> int:
        """Return about how much of an unfinished download is on disk, whoever is fetching it."""
        part, data = self.part_of(file), self.partial_folder / f"{file.sha256}.data"
        found_bytes = size_under(self.wheels_of(file)) + (part.stat().st_size if part.exists() else 0)
        if data.exists():
            found_bytes += data.stat().st_blocks * _BLOCK_BYTES
        return min(file.size_bytes, found_bytes)

    def check_space(self, needed_bytes: int) -> None:
        """Raise Unavailable unless the cache's disk has room for `needed_bytes` and a margin."""
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            free_bytes = shutil.disk_usage(self.folder).free
        if free_bytes < needed_bytes + DISK_MARGIN_BYTES:
            raise Unavailable(
                f"the disk of {self.folder} has {free_bytes >> 20} MiB free; "
                f"{(needed_bytes + DISK_MARGIN_BYTES) >> 20} MiB are needed",
                next_step="free space, or set MADANG_CACHE to a folder on a larger disk",
            )


def copy_to_part(source: Path, part: Path, report: Report | None = None) -> None:
    """Copy `source` to `part`, replacing it; raises Unavailable naming what could not be read or written."""
    with _explained(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as opened, part.open("wb") as output:
            done_bytes = 0
            while chunk := opened.read(CHUNK_BYTES):
                output.write(chunk)
                done_bytes += len(chunk)
                if report is not None:
                    report(done_bytes)


def hash_file(path: Path, report: Report | None = None) -> str:
    """Return the hex SHA-256 of a file."""
    digest = hashlib.sha256()
    done_bytes = 0
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
            done_bytes += len(chunk)
            if report is not None:
                report(done_bytes)
    return digest.hexdigest()


def size_under(folder: Path) -> int:
    """Return the sum of file sizes under a folder that another process may be changing; 0 when it is absent."""
    total_bytes = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total_bytes += (Path(root) / name).stat().st_size
    return total_bytes


def _marker_path(path: Path) -> Path:
    return path.with_name(path.name + ".ok")


def _read_marker(path: Path) -> _Marker | None:
    try:
        return msgspec.json.decode(_marker_path(path).read_bytes(), type=_Marker)
    except (OSError, msgspec.MsgspecError):
        return None  # absent or damaged: the file is hashed again


def _write_marker(path: Path) -> None:
    status = path.stat()
    marker = _Marker(size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
    replace_file(_marker_path(path), msgspec.json.encode(marker))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"cannot write {error.filename or path}: {error.strerror}",
            next_step="free space or mend the permission, or set MADANG_CACHE to another folder",
        ) from error
