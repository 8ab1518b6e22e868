"""A file over a link that is cut three times, as the bench cuts it: whole, and no finished chunk fetched again."""

import threading

import pytest
from bench.artifacts.__main__ import Cutter, Origin, make_file
from tests.runtime.artifact_lab import make_kit

from madang.runtime.artifacts.cache import ArtifactCache
from madang.runtime.artifacts.limiter import RateLimiter
from madang.runtime.artifacts.ranges import ChunkSource
from madang.runtime.artifacts.transfer import fetch_chunks
from madang.runtime.clock import SystemClock

MIB = 2**20
CUTS = 3


class CountingLimiter(RateLimiter):
    """A limiter that limits nothing and counts every byte that comes over the link."""

    def __init__(self):
        super().__init__(SystemClock(), line_bytes_s=2**50)
        self.bytes = 0

    def take(self, source, count, wait):
        self.bytes += count


@pytest.mark.peer
@pytest.mark.parametrize("size_mib", [64, pytest.param(500, marks=pytest.mark.deep)])
def test_a_file_arrives_whole_over_a_link_that_is_cut_three_times(tmp_path, size_mib):
    file = make_file(tmp_path / "origin", size_mib * MIB)
    origin = Origin(tmp_path / "origin")
    cache = ArtifactCache(tmp_path / "node")
    limiter = CountingLimiter()
    cutter = Cutter(origin, [file.size_bytes * part // (CUTS + 1) for part in range(1, CUTS + 1)], 0.1)
    try:
        part = fetch_chunks(
            file,
            [ChunkSource("origin", origin.url + file.sha256)],
            cache.partial_folder,
            make_kit(limiter=limiter, patience_s=60.0),
            cancel=threading.Event(),
            report=cutter.see,
        )
        cutter.end()
    finally:
        origin.end()
    path = cache.move_in(part, file.sha256)
    assert cutter.cuts == CUTS
    assert path.stat().st_size == file.size_bytes
    # A cut costs at most the chunk that it broke.
    assert limiter.bytes <= file.size_bytes + CUTS * file.chunk_bytes
