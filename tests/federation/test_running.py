"""Starting and ending a detached supervisor from outside, with small stand-in programs in the places of ours."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from madang.core import Conflict, Rejected, Unavailable
from madang.federation.layout import folders, make_layout
from madang.federation.running import (
    check_machine,
    clean_leftovers,
    exclusive,
    find_supervisor,
    retry_now,
    start_supervisor,
    stop_everything,
)
from madang.federation.supervise import PROGRAMS_FILE
from madang.runtime.leftovers import find_marked, read_record
from madang.runtime.process import is_alive
from madang.runtime.supervision import ListenSpec, ProcessSpec, encode_specs

pytestmark = pytest.mark.peer

PAUSE = "import signal; signal.pause()"
SHIM = """
import os, pathlib, signal, sys
if os.fork(): sys.exit(0)
os.setsid()
pathlib.Path('engine.up').write_text(str(os.getpid()))
signal.pause()
"""


def free_base_port():
    for base in range(20000, 30000, 100):
        try:
            for port in make_layout_at(base).ports():
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free block of ports")


def make_layout_at(base, state_dir=None):
    return make_layout(state_dir or Path("/nowhere"), Path("/nowhere"), base)


@pytest.fixture
def layout(tmp_path):
    made = make_layout_at(free_base_port(), tmp_path)
    for folder in folders(made):
        folder.mkdir(exist_ok=True)
    yield made
    stop_everything(made)


def write_programs(layout, *codes, listeners=()):
    specs = [
        ProcessSpec(
            name=f"p{index}",
            argv=(sys.executable, "-S", "-c", code),
            cwd=layout.run_dir,
            log_path=layout.log_dir / f"p{index}.log",
            listeners=listeners if index == 0 else (),
            stop_timeout_s=0.5,
        )
        for index, code in enumerate(codes)
    ]
    (layout.run_dir / PROGRAMS_FILE).write_bytes(encode_specs(tuple(specs)))


def until(condition, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.005)
    return found


def process(layout, name):
    record = read_record(layout.record_path)
    return next((each for each in record.processes if each.name == name), None) if record else None


def test_the_supervisor_is_detached_and_everything_ends_with_it(layout):
    write_programs(layout, PAUSE, SHIM)
    start_supervisor(layout)
    supervisor = find_supervisor(layout)
    until(lambda: process(layout, "p0").ref)
    engine = int(until(lambda: (layout.run_dir / "engine.up").exists() and read(layout.run_dir / "engine.up")))
    assert os.getsid(supervisor.pid) not in (os.getsid(0), supervisor.pid)
    with open(f"/proc/{supervisor.pid}/status") as status:
        assert "PPid:\t1\n" in status.read() or os.getppid() != 1
    for number in (0, 1, 2):
        assert os.readlink(f"/proc/{supervisor.pid}/fd/{number}") in (
            "/dev/null",
            str(layout.log_dir / "supervisor.log"),
        )
    assert stop_everything(layout) >= 3
    assert find_marked(str(layout.run_dir)) == []
    assert not os.path.exists(f"/proc/{engine}") or not is_running(engine)
    assert stop_everything(layout) == 0


def read(path):
    return path.read_text()


def is_running(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def ignores_sigterm(pid):
    """Return whether a process has come to the point of ignoring SIGTERM (bit 14 of SigIgn, proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> 14 & 1)


def test_a_killed_supervisor_is_cleaned_after_and_its_engines_are_kept(layout):
    write_programs(layout, "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()", SHIM)
    start_supervisor(layout)
    engine = int(until(lambda: (layout.run_dir / "engine.up").exists() and read(layout.run_dir / "engine.up")))
    deaf = until(lambda: process(layout, "p0").ref)
    until(lambda: ignores_sigterm(deaf.pid))
    supervisor = find_supervisor(layout)
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: find_supervisor(layout) is None)
    assert clean_leftovers(layout, term_wait_s=0.3) >= 1
    assert not is_alive(deaf)
    assert is_running(engine)
    start_supervisor(layout)
    assert find_supervisor(layout) != supervisor


def test_a_second_supervisor_of_the_same_state_does_not_start(layout):
    write_programs(layout, PAUSE)
    start_supervisor(layout)
    first = find_supervisor(layout)
    record = layout.record_path.read_bytes()
    with pytest.raises(Unavailable, match="did not start"):
        start_supervisor(layout, wait_s=1.0)
    layout.record_path.write_bytes(record)
    assert find_supervisor(layout) == first


def test_a_port_taken_at_the_last_moment_is_the_reason_given(layout):
    listen = ListenSpec(name="tenant", host="127.0.0.1", port=layout.base_port + 1)
    write_programs(layout, PAUSE, listeners=(listen,))
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", listen.port))
        holder.listen()
        with pytest.raises(Unavailable, match=f"port {listen.port} .* taken by pid {os.getpid()}"):
            start_supervisor(layout)


def test_ports_in_use_are_all_named_with_their_holder(layout):
    ports = (layout.base_port, layout.base_port + 10)
    holders = [socket.create_server(("127.0.0.1", port)) for port in ports]
    try:
        with pytest.raises(Rejected) as caught:
            check_machine(layout)
    finally:
        for holder in holders:
            holder.close()
    for port in ports:
        assert f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}" in caught.value.message
    assert "the tenants' API of daegu needs it" in caught.value.message
    assert f"--base-port {layout.base_port + 100}" in caught.value.next_step
    check_machine(layout)


def test_a_back_off_is_cut_short_from_outside(layout):
    write_programs(layout, "open('starts', 'a').write('x')")
    start_supervisor(layout)
    until(lambda: "starts again in 1.0 s" in process(layout, "p0").note)
    before = len(read(layout.run_dir / "starts"))
    asked_at = time.monotonic()
    retry_now(layout)
    until(lambda: len(read(layout.run_dir / "starts")) > before)
    assert time.monotonic() - asked_at < 0.9


def test_two_commands_do_not_start_and_stop_at_once(layout):
    with (
        exclusive(layout),
        pytest.raises(Conflict, match=rf"another madang command \(pid {os.getpid()}\)"),
        exclusive(layout),
    ):
        pass
    with exclusive(layout):
        pass


def test_what_the_map_decides_is_not_for_the_environment(layout, monkeypatch):
    monkeypatch.setenv("MADANG_HUB_PORT", "1")
    monkeypatch.setenv("MADANG_ADMIN_TOKEN", "secret")
    monkeypatch.setenv("MADANG_NODE_ENGINE_THREADS", "1")
    write_programs(layout, "import os; open('env', 'w').write(repr(sorted(os.environ))); import signal; signal.pause()")
    start_supervisor(layout)
    text = until(lambda: (layout.run_dir / "env").exists() and read(layout.run_dir / "env"))
    assert "MADANG_HUB_PORT" not in text
    assert "MADANG_ADMIN_TOKEN" not in text
    assert "MADANG_NODE_ENGINE_THREADS" in text
    assert "MADANG_SUPERVISED_BY" in text
