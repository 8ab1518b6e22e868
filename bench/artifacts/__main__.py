"""Runs the bench; `python -m bench.artifacts --help`.

Both ways fetch the same file from the same server on loopback to the same disk, in turn, and end with the bytes
verified and durable. Ours goes over a link that is cut, curl's over one that is not; the time between a cut and its
healing is not counted, the time to notice and come back is.

What is printed as "speed of ours" is our speed divided by theirs, both in bytes a second: 0.60 means that ours takes
1/0.60 of their time, 1.00 the same, and above 1.00 ours is the faster one. The goal is 0.60 or more.
"""

import argparse
import hashlib
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from madang.runtime.artifacts.cache import ArtifactCache
from madang.runtime.artifacts.limiter import RateLimiter
from madang.runtime.artifacts.manifests import cut_file
from madang.runtime.artifacts.ranges import ChunkSource, RangeClient
from madang.runtime.artifacts.transfer import TransferKit, fetch_chunks
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.wire.artifacts import FileChunks

GOAL = 0.6
MIB = 2**20


class Origin:
    """The serving process and the link to it."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.artifacts.origin", folder], stdin=-1, stdout=-1, text=True
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/artifacts/"

    def say(self, word: str) -> None:
        """Cut or heal, and wait until it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Cutter:
    """Cuts the link when so many bytes have come, each time for a while."""

    def __init__(self, origin: Origin, at_bytes: list[int], down_s: float) -> None:
        self._origin = origin
        self._at_bytes = at_bytes
        self._down_s = down_s
        self._thread: threading.Thread | None = None
        self.down_s = 0.0
        self.cuts = 0
        self.cpu_s = 0.0

    def see(self, done_bytes: int) -> None:
        """Cut when so much has come; called from the transfer's thread, which stands until the link is down.

        What is left in the sockets when a cut begins may reach past the place of the next one: that one waits until
        the link has healed, so that a slow machine sees as many cuts as a fast one.
        """
        if not self._at_bytes or done_bytes < self._at_bytes[0]:
            return
        self._at_bytes.pop(0)
        self.end()
        self._origin.say("cut")
        self._thread = threading.Thread(target=self._heal)
        self._thread.start()

    def _heal(self) -> None:
        began = time.perf_counter()
        time.sleep(self._down_s)
        # Not counted is only what surely was down: until the port is about to open again.
        self.down_s += time.perf_counter() - began
        self._origin.say("heal")
        self.cuts += 1

    def end(self) -> None:
        """Wait for the healing of the cut that came last."""
        if self._thread is not None:
            self._thread.join()


class Turn(NamedTuple):
    """One measure of both ways, seconds."""

    ours_s: float
    curl_s: float
    curl_parts_s: tuple[float, float, float]
    down_s: float
    cuts: int
    ours_cpu_s: float
    curl_cpu_s: float

    @property
    def ratio(self) -> float:
        """Return our speed divided by that of curl, sha256sum and sync together: above 1, ours is the faster one."""
        return self.curl_s / self.ours_s

    @property
    def ratio_with_down(self) -> float:
        """Return the same with the down-time counted, in which hashing of what had come went on."""
        return self.curl_s / (self.ours_s + self.down_s)


def fetch_ours(file: FileChunks, origin: Origin, folder: Path, cuts: int, down_s: float) -> tuple[float, Cutter]:
    """Return the seconds that our transfer took, down-time excluded."""
    clock = SystemClock()
    kit = TransferKit(clock=clock, entropy=SystemEntropy(), limiter=RateLimiter(clock))
    cutter = Cutter(origin, [file.size_bytes * (index + 1) // (cuts + 1) for index in range(cuts)], down_s)
    cache = ArtifactCache(folder)
    began, cpu_s = time.perf_counter(), time.process_time()
    source = ChunkSource("origin", origin.url + file.sha256)
    part = fetch_chunks(file, [source], cache.partial_folder, kit, cancel=threading.Event(), report=cutter.see)
    cache.move_in(part, file.sha256)
    took_s = time.perf_counter() - began
    cutter.cpu_s = time.process_time() - cpu_s
    cutter.end()
    return took_s - cutter.down_s, cutter


def fetch_curl(file: FileChunks, origin: Origin, folder: Path) -> tuple[float, float, float]:
    """Return the seconds that curl, sha256sum and sync took."""
    path = folder / "curl.bin"
    times = [time.perf_counter()]
    subprocess.run(["curl", "-sS", "-o", path, origin.url + file.sha256], check=True)
    times.append(time.perf_counter())
    done = subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True)
    times.append(time.perf_counter())
    subprocess.run(["sync", path], check=True)
    times.append(time.perf_counter())
    assert done.stdout.split()[0] == file.sha256
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def run_turn(
    file: FileChunks, origin: Origin, folder: Path, options: argparse.Namespace, *, is_ours_first: bool
) -> Turn:
    """Measure both ways once, each on a clean folder and a quiet disk."""
    found: dict[str, object] = {}
    curl_cpu_s = 0.0
    for way in ("ours", "curl") if is_ours_first else ("curl", "ours"):
        target = folder / way
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        os.sync()
        if way == "ours":
            found[way] = fetch_ours(file, origin, target, options.cuts, options.down_s)
        else:
            before_s = _children_cpu_s()
            found[way] = fetch_curl(file, origin, target)
            curl_cpu_s = _children_cpu_s() - before_s
        shutil.rmtree(target)
    ours_s, cutter = found["ours"]  # type: ignore[misc]
    parts: tuple[float, float, float] = found["curl"]  # type: ignore[assignment]
    return Turn(ours_s, sum(parts), parts, cutter.down_s, cutter.cuts, cutter.cpu_s, curl_cpu_s)


def _children_cpu_s() -> float:
    """Return the CPU of the programs that ended; the serving process has not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_file(folder: Path, size_bytes: int) -> FileChunks:
    """Put a file of random bytes into a cache and return its chunks."""
    cache = ArtifactCache(folder)
    cache.partial_folder.mkdir(parents=True)
    path = cache.partial_folder / "new"
    with path.open("wb") as output:
        for start in range(0, size_bytes, MIB):
            output.write(os.urandom(min(MIB, size_bytes - start)))
    file = cut_file(path, "bench.bin")
    cache.move_in(path, file.sha256)
    return file


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.artifacts", description=__doc__)
    parser.add_argument("--mib", type=int, default=500, help="size of the file, default 500")
    parser.add_argument("--turns", type=int, default=5, help="how often both ways are measured, default 5")
    parser.add_argument("--cuts", type=int, default=3, help="how often the link is cut, default 3")
    parser.add_argument("--down-s", type=float, default=0.2, help="for how long each time, default 0.2")
    parser.add_argument("--parts", action="store_true", help="say first what each part of ours takes by itself")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default the temporary folder")
    return parser.parse_args()


def main() -> int:
    """Print every turn, medians and spread; exit 1 below the goal."""
    options = parse()
    if missing := [name for name in ("curl", "sha256sum", "sync") if shutil.which(name) is None]:
        sys.stderr.write(f"{' and '.join(missing)} are missing: install them to compare\n")
        return 2
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="madang-bench-") as name:
        folder = Path(name)
        file = make_file(folder / "origin", options.mib * MIB)
        origin = Origin(folder / "origin")
        try:
            sys.stdout.write(describe_machine())
            if options.parts:
                print_parts(file, origin, folder)
            turns = []
            for number in range(options.turns + 1):
                turn = run_turn(file, origin, folder, options, is_ours_first=number % 2 == 0)
                if number:  # the first warms the page cache and the interpreter
                    turns.append(turn)
                    print_turn(number, turn, options.mib)
        finally:
            origin.end()
    return judge(turns, options)


def describe_machine() -> str:
    """Return on what this runs, and how busy that is."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return (
        f"commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC; {processor}, "
        f"{os.cpu_count()} cores, {'with' if ' sha_ni' in flags else 'without'} SHA instructions; "
        f"Linux {platform.release()}, Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f}\n"
    )


def print_parts(file: FileChunks, origin: Origin, folder: Path) -> None:
    """Print the CPU that receiving, hashing and storing take, each alone: the same on a busy machine, nearly."""
    data = memoryview(bytearray(file.chunk_bytes))
    client = RangeClient(ChunkSource("origin", origin.url + file.sha256))
    began = time.process_time()
    answer = client.open(0, file.size_bytes - 1)
    left_bytes = file.size_bytes
    while left_bytes:
        left_bytes -= client.read_into(answer, data[: min(left_bytes, len(data))])
    client.close()
    receive_s, began = time.process_time() - began, time.process_time()
    for _ in range(file.chunks):
        hashlib.sha256(data).hexdigest()
    hash_s, began = time.process_time() - began, time.process_time()
    path = folder / "parts.bin"
    with path.open("wb", buffering=0) as output:
        for _ in range(file.chunks):
            output.write(data)
        os.fdatasync(output.fileno())
    write_s, began = time.process_time() - began, time.process_time()
    with path.open("rb", buffering=0) as opened:
        while opened.readinto(data):
            pass
    read_s = time.process_time() - began
    path.unlink()
    sys.stdout.write(
        f"CPU of the parts, each alone: receiving {receive_s:.2f} s, SHA-256 once {hash_s:.2f} s (ours hashes twice: "
        f"each chunk, and the whole), writing and fdatasync {write_s:.2f} s, reading back {read_s:.2f} s; "
        f"together {receive_s + 2 * hash_s + write_s + read_s:.2f} s\n"
    )


def print_turn(number: int, turn: Turn, mib: int) -> None:
    """Print one measure."""
    curl_s, hash_s, sync_s = turn.curl_parts_s
    sys.stdout.write(
        f"turn {number}: ours {turn.ours_s:6.2f} s ({mib / turn.ours_s:5.0f} MiB/s, {turn.ours_cpu_s:.2f} s of CPU, "
        f"{turn.cuts} cuts, {turn.down_s:.1f} s down not counted)   curl {curl_s:.2f} + sha256sum {hash_s:.2f} + "
        f"sync {sync_s:.2f} = {turn.curl_s:5.2f} s ({mib / turn.curl_s:5.0f} MiB/s, {turn.curl_cpu_s:.2f} s of CPU)   "
        f"speed of ours {turn.ratio:.2f} of theirs (with the down-time {turn.ratio_with_down:.2f})\n"
    )
    sys.stdout.flush()


def judge(turns: list[Turn], options: argparse.Namespace) -> int:
    """Print medians and spread; return 1 when the median ratio is below the goal or a cut did not happen."""
    ratios = sorted(turn.ratio for turn in turns)
    ours, curl = (
        statistics.median(values) for values in zip(*((turn.ours_s, turn.curl_s) for turn in turns), strict=True)
    )
    median = statistics.median(ratios)
    sys.stdout.write(
        f"\n{options.mib} MiB, {options.cuts} cuts, {len(turns)} turns after one to warm up; load average "
        f"{os.getloadavg()[0]:.1f} at the end\n"
        f"median: ours {ours:.2f} s, curl + sha256sum + sync {curl:.2f} s\n"
        f"speed of ours: {median:.2f} of theirs (median; from {ratios[0]:.2f} to {ratios[-1]:.2f}; goal {GOAL:.2f} or "
        f"more, above 1.00 ours is faster); with the down-time counted "
        f"{statistics.median(turn.ratio_with_down for turn in turns):.2f}\n"
    )
    is_cut = all(turn.cuts == options.cuts for turn in turns)
    if not is_cut:
        sys.stdout.write("not every cut came before the end: take a larger file\n")
    return 0 if is_cut and median >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
