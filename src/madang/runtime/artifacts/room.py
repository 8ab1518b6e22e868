"""The room of a cache: who needs which files, and what leaves when another one must come.

Owns pins on disk, the lock between those who pin and those who remove, and the removing. Refuses to choose
(`madang.policy.eviction`). Called by nodes and sites before they fetch, and by `madang model cache`.

A pin is a file of its owner that names what the owner runs or wants. It is written, durably, before the owner looks for
the files themselves, under the lock that removing takes too: a file is found after it was pinned, or it was gone
already and is fetched. Pins outlive their owner, for its engines do; only the owner and people remove them.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from madang.core import Rejected, Unavailable
from madang.policy.eviction import Held, choose_evictions
from madang.runtime.artifacts.cache import DISK_MARGIN_BYTES, ArtifactCache, size_under
from madang.runtime.artifacts.chunk_file import explained
from madang.runtime.files import replace_file

_OWNER = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PINS_BYTES_MAX = 4 * 1024 * 1024
_BLOCK_BYTES = 512


class Pins(msgspec.Struct, frozen=True, kw_only=True):
    """What one owner needs."""

    sha256s: tuple[str, ...]
    version: int = 1


class CacheUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a cache holds, in bytes on the disk.

    Attributes:
        files: whole or not.
        pinned_bytes: of files that somebody runs or wants.
        loose_bytes: of files that may leave.
        free_bytes: of the disk.
        quota_bytes: what the cache may hold; 0 for as much as the disk has, less a margin.
    """

    files: int
    pinned_bytes: int
    loose_bytes: int
    free_bytes: int
    quota_bytes: int


@dataclass
class RoomCounts:
    """What was done about room in this life: what left, and how often there was not enough."""

    evicted_files: int = 0
    evicted_bytes: int = 0
    refusals: int = 0


class ArtifactRoom:
    """The room of one cache.

    Args:
        cache: whose files it is about.
        quota_bytes: what they may take together; 0 for as much as the disk has, less a margin.

    Attributes:
        counts: of this object's life.
        use: as `measure` found it last; None before.
    """

    def __init__(self, cache: ArtifactCache, quota_bytes: int = 0) -> None:
        self._cache = cache
        self._quota_bytes = quota_bytes
        self.counts = RoomCounts()
        self.use: CacheUse | None = None

    def measure(self) -> CacheUse:
        """Look what the cache holds; cost as `list_held`. Raises Unavailable when pins or folder cannot be read."""
        held = self.list_held()
        try:
            free_bytes = shutil.disk_usage(self._cache.folder).free
        except OSError as error:
            raise Unavailable(f"cache {self._cache.folder} cannot be read: {error.strerror}") from error
        pinned_bytes = sum(one.size_bytes for one in held if one.is_pinned)
        self.use = CacheUse(
            files=len(held),
            pinned_bytes=pinned_bytes,
            loose_bytes=sum(one.size_bytes for one in held) - pinned_bytes,
            free_bytes=free_bytes,
            quota_bytes=self._quota_bytes,
        )
        return self.use

    def pin(self, owner: str, sha256s: Collection[str]) -> None:
        """Say what `owner` needs from now on, instead of what it said before; raises Unavailable."""
        if not _OWNER.match(owner):
            raise Rejected(f"{owner[:80]!r} is no owner of pins: expected a-z, 0-9, '.', '_' and '-'")
        with self._locked():
            data = msgspec.json.encode(Pins(sha256s=tuple(sorted(set(sha256s)))))
            replace_file(self._pins_folder / f"{owner}.json", data, is_durable=True)

    def unpin(self, owner: str) -> bool:
        """Forget an owner; return whether there was one."""
        if not _OWNER.match(owner):
            return False
        with self._locked():
            path = self._pins_folder / f"{owner}.json"
            was_there = path.exists()
            path.unlink(missing_ok=True)
            return was_there

    def read_pins(self) -> dict[str, Pins]:
        """Return every owner's pins; raises Unavailable naming a file that cannot be read."""
        found = {}
        for path in sorted(self._pins_folder.glob("*.json")):
            try:
                found[path.stem] = msgspec.json.decode(path.read_bytes()[:_PINS_BYTES_MAX], type=Pins)
            except FileNotFoundError:
                continue
            except (OSError, msgspec.MsgspecError) as error:
                # Removing files without knowing who needs them could stop an engine's next start.
                raise Unavailable(
                    f"pins {path} cannot be read: {error}", next_step="mend or remove that file"
                ) from error
        return found

    def list_held(self) -> list[Held]:
        """Return every file of the cache, whole or not; cost: a few `stat` calls for each."""
        pinned = {sha256 for pins in self.read_pins().values() for sha256 in pins.sha256s}
        whole = [path for path in self._cache.folder.glob("[0-9a-f][0-9a-f]/*") if _SHA256.match(path.name)]
        held = [self._see(path.name, [path], pinned) for path in whole]
        parts: dict[str, list[Path]] = {}
        for path in self._cache.partial_folder.glob("*"):
            sha256 = path.name.partition(".")[0]
            if _SHA256.match(sha256):
                parts.setdefault(sha256, []).append(path)
        held += [self._see(sha256, paths, pinned) for sha256, paths in parts.items()]
        return sorted((one for one in held if one is not None), key=lambda one: (one.used_at_s, one.sha256))

    def make_room(self, sha256: str, needed_bytes: int) -> tuple[str, ...]:
        """Remove what must leave before `needed_bytes` of a file may come; return what left.

        Raises:
            Unavailable: what is not needed by anybody does not make enough room; nothing was removed.
        """
        with self._locked():
            held = [
                msgspec.structs.replace(one, is_pinned=True) if one.sha256 == sha256 or self._is_fetched(one) else one
                for one in self.list_held()
            ]
            free_bytes = shutil.disk_usage(self._cache.folder).free
            found = choose_evictions(
                held,
                needed_bytes=needed_bytes,
                quota_bytes=self._quota_bytes,
                free_bytes=free_bytes,
                margin_bytes=DISK_MARGIN_BYTES,
            )
            if found.short_bytes:
                self.counts.refusals += 1
                pinned_bytes = sum(one.size_bytes for one in held if one.is_pinned)
                raise Unavailable(
                    f"{needed_bytes >> 20} MiB do not fit into {self._cache.folder}: {free_bytes >> 20} MiB of the "
                    f"disk are free, quota {self._quota_bytes >> 20} MiB (0: none), and {pinned_bytes >> 20} MiB "
                    f"are in use; {-(-found.short_bytes >> 20)} MiB are lacking",
                    next_step="raise the quota, free the disk, or stop a service that runs here",
                )
            sizes = {one.sha256: one.size_bytes for one in held}
            for leaving in found.leaving:
                self._remove(leaving)
                self.counts.evicted_files += 1
                self.counts.evicted_bytes += sizes[leaving]
            return found.leaving

    @property
    def _pins_folder(self) -> Path:
        return self._cache.folder / ".pins"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._cache.folder / ".locks" / "room.lock"
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._pins_folder.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _see(self, sha256: str, paths: list[Path], pinned: Collection[str]) -> Held | None:
        size_bytes, used_at_s = 0, 0.0
        for path in paths:
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            size_bytes += size_under(path) if path.is_dir() else status.st_blocks * _BLOCK_BYTES
            used_at_s = max(used_at_s, status.st_mtime)
            with contextlib.suppress(FileNotFoundError):
                used_at_s = max(used_at_s, path.with_name(path.name + ".ok").stat().st_mtime)
        if not size_bytes and not used_at_s:
            return None
        return Held(sha256=sha256, size_bytes=size_bytes, used_at_s=used_at_s, is_pinned=sha256 in pinned)

    def _is_fetched(self, one: Held) -> bool:
        """Return whether some process holds the file's lock: it is being fetched, or has just come."""
        path = self._cache.folder / ".locks" / f"{one.sha256}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _remove(self, sha256: str) -> None:
        path = self._cache.path_of(sha256)
        with explained(path):
            # The marker last: a file without one is hashed again, one with it is believed.
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".ok").unlink(missing_ok=True)
            for part in self._cache.partial_folder.glob(f"{sha256}.*"):
                if part.is_dir():
                    shutil.rmtree(part, ignore_errors=True)
                else:
                    part.unlink(missing_ok=True)
