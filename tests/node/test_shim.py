"""The shim alone, with small programs in the place of engines: limits, logs, signals, and its own death."""

import fcntl
import json
import os
import signal
import sys
import time

import pytest
from tests.node.node_lab import is_running

from madang.node import shim
from madang.node.records import read_engine_record
from madang.runtime.process import ProcessRef

pytestmark = pytest.mark.peer
WAIT_S = 60.0


def wait(is_done, what):
    deadline_s = time.monotonic() + WAIT_S
    while not (value := is_done()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)
    return value


class ShimLab:
    def __init__(self, folder):
        self.folder = folder
        self.pid = 0

    def start(self, code, **changes):
        """Run `code` as an engine; return what the shim reported."""
        launch = {
            "replica_id": "r",
            "spec_hash": "h",
            "nonce": "n",
            "launch": 1,
            "host": "127.0.0.1",
            "port": 1,
            "argv": [sys.executable, "-u", "-c", code],
            "env": {"PATH": os.environ["PATH"], "GREETING": "hello"},
            "cwd": str(self.folder),
            "log": str(self.folder / "engine.log"),
            "log_bytes_max": 10_000,
            "record": str(self.folder / "record.json"),
            "lock": str(self.folder / "lock"),
            "private_bytes_max": 1 << 30,
            "open_files_max": 256,
            "nice": 1,
            "cpus": [min(os.sched_getaffinity(0))],
            "term_s": 0.3,
        }
        path = self.folder / "launch.json"
        path.write_text(json.dumps(launch | changes), encoding="utf-8")
        ready, report = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, report, shim.READY_FD)]
        argv = [sys.executable, "-I", "-S", shim.__file__, str(path)]
        os.set_inheritable(report, report == shim.READY_FD)
        self.pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setsid=True)
        os.close(report)
        with os.fdopen(ready, "rb") as file:
            return file.read().decode()

    def wait_end(self):
        """Wait until the shim has ended."""

        def look():
            done, _ = os.waitpid(self.pid, os.WNOHANG)
            return done

        wait(look, "the shim ends")
        self.pid = 0

    @property
    def record(self):
        return read_engine_record(self.folder)

    def log(self):
        return (self.folder / "engine.log").read_text(encoding="utf-8")

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@pytest.fixture
def lab(tmp_path):
    lab = ShimLab(tmp_path)
    try:
        yield lab
    finally:
        lab.close()


SLEEP = "import time; print('up'); time.sleep(60)"


def test_a_chip_lets_no_second_engine_in_whoever_starts_it(lab, tmp_path):
    locks = [str(tmp_path / f"n0.{core}") for core in range(2)]
    assert lab.start(SLEEP, chip_locks=locks) == "ok"
    (tmp_path / "other").mkdir()
    other = ShimLab(tmp_path / "other")  # another replica, by a program that lost all records
    assert other.start(SLEEP, chip_locks=locks[1:]) == f"another engine still has the chip of {locks[1]}"
    other.wait_end()
    os.kill(lab.pid, signal.SIGKILL)
    lab.wait_end()
    assert other.start(SLEEP, chip_locks=locks[1:]) == "ok"
    other.close()


def test_it_records_the_engine_before_it_says_ok(lab):
    assert lab.start(SLEEP) == "ok"
    record = lab.record
    assert (record.replica_id, record.spec_hash, record.nonce, record.launch, record.port) == ("r", "h", "n", 1, 1)
    assert record.shim.pid == lab.pid
    assert record.exit is None
    assert is_running(record.engine.pid)
    assert (lab.folder / "record.json").stat().st_mode & 0o777 == 0o600
    assert os.getsid(record.engine.pid) == lab.pid  # a session of its own
    assert os.getpgid(record.engine.pid) == record.engine.pid  # and a group for the engine alone


def test_the_engine_gets_its_limits_and_environment(lab):
    code = """
import os, resource as r, json
print(json.dumps([os.environ["GREETING"], os.getcwd(), r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_NOFILE),
    r.getrlimit(r.RLIMIT_DATA), len(os.sched_getaffinity(0)), os.nice(0), sorted(os.listdir("/proc/self/fd"))]))
"""
    nice = os.nice(0)
    lab.start(code)
    lab.wait_end()
    greeting, cwd, core, files, data, cpus, own_nice, descriptors = json.loads(lab.log())
    assert (greeting, cwd) == ("hello", str(lab.folder))
    assert (core, files, data) == ([0, 0], [256, 256], [1 << 30, 1 << 30])
    assert (cpus, own_nice) == (1, nice + 1)
    assert descriptors == ["0", "1", "2", "3"]  # 3 is the listing itself: nothing leaked


def test_private_memory_is_limited_and_mapped_files_are_not(lab):
    code = """
import mmap
with open("big", "wb") as f: f.truncate(3 << 30)
with open("big", "rb") as f: m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print("mapped", m[1 << 30])
try: bytearray(2 << 30); print("too much")
except MemoryError: print("refused")
"""
    lab.start(code)
    lab.wait_end()
    assert lab.log().split() == ["mapped", "0", "refused"]


def test_the_end_of_the_engine_is_recorded(lab):
    lab.start("raise SystemExit(7)")
    lab.wait_end()
    assert lab.record.exit == "exit 7"


def test_a_signal_is_recorded_by_name(lab):
    lab.start(SLEEP)
    os.kill(lab.record.engine.pid, signal.SIGSEGV)
    lab.wait_end()
    assert lab.record.exit == "signal SIGSEGV"


def test_sigterm_lets_the_engine_end_by_itself(lab):
    code = """
import signal, sys, time
signal.signal(15, lambda *_: (print('bye'), sys.exit(0)))
print('up')
time.sleep(60)
"""
    lab.start(code, term_s=8.0)
    wait(lambda: "up" in lab.log() if (lab.folder / "engine.log").exists() else False, "up")
    os.kill(lab.pid, signal.SIGTERM)
    lab.wait_end()
    assert lab.record.exit == "exit 0"
    assert "bye" in lab.log()


def test_an_engine_that_ignores_sigterm_is_killed_with_its_children(lab):
    code = """
import os, signal, time
signal.signal(15, signal.SIG_IGN)
child = os.fork()
if child: print("child", child)
time.sleep(60)
"""
    lab.start(code)
    words = wait(lambda: lab.log().split() if (lab.folder / "engine.log").exists() else [], "up")
    child = int(wait(lambda: words[1:] or lab.log().split()[1:], "the child is named")[0])
    os.kill(lab.pid, signal.SIGTERM)
    lab.wait_end()
    assert lab.record.exit == "signal SIGKILL"
    wait(lambda: not is_running(child), "the group is gone")


def test_a_killed_shim_takes_the_engine_along(lab):
    lab.start(SLEEP)
    engine = lab.record.engine.pid
    os.kill(lab.pid, signal.SIGKILL)
    lab.wait_end()
    wait(lambda: not is_running(engine), "the engine is gone")


def test_the_log_is_bounded_and_keeps_the_end(lab):
    lab.start("for i in range(20_000): print('line', i)", log_bytes_max=10_000)
    lab.wait_end()
    old = lab.folder / "engine.log.1"
    assert (lab.folder / "engine.log").stat().st_size <= 10_000 + shim._READ_BYTES
    assert old.stat().st_size <= 10_000 + shim._READ_BYTES
    assert lab.log().endswith("line 19999\n")


def test_a_log_that_cannot_be_written_does_not_stop_the_engine(lab):
    (lab.folder / "engine.log").mkdir()
    lab.start("for i in range(20_000): print('line', i)\nraise SystemExit(5)")
    lab.wait_end()
    assert lab.record.exit == "exit 5"


def test_a_program_that_does_not_exist_says_so(lab):
    assert lab.start("", argv=["/no/such/engine"]) == "ok"
    lab.wait_end()
    assert lab.record.exit == "exit 127"
    assert "/no/such/engine" in lab.log()


def test_there_is_one_engine_for_a_replica(lab):
    with (lab.folder / "lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert lab.start(SLEEP) == "another engine of this replica still lives"
        lab.wait_end()
    assert lab.record is None


def test_it_ends_the_engine_that_it_cannot_record(lab):
    (lab.folder / "record.json.new").mkdir()
    assert lab.start(SLEEP).startswith("cannot write")
    lab.wait_end()


def test_other_signals_do_not_disturb_it(lab):
    lab.start(SLEEP)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD):
        os.kill(lab.pid, number)
    engine = lab.record.engine
    assert isinstance(engine, ProcessRef)
    assert is_running(engine.pid)
    os.kill(lab.pid, signal.SIGTERM)
    lab.wait_end()
    assert lab.record.exit == "signal SIGTERM"
