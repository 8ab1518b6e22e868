"""The supervisor with real processes: crashes, held sockets, leftovers of its own death, orderly stop."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager

import pytest

from madang.core import Rejected
from madang.runtime.clock import SystemClock
from madang.runtime.leftovers import end_processes, find_leftovers, find_marked, read_record
from madang.runtime.listening import check_port_free
from madang.runtime.process import is_alive, make_ref
from madang.runtime.supervision import ListenSpec, ProcessSpec, RestartPolicy
from madang.runtime.supervisor import Supervisor, describe_exit, probe_url
from madang.runtime.telemetry import EventLog
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer

SLEEPER = "import signal; signal.pause()"
STUBBORN = "import signal, pathlib; signal.signal(15, signal.SIG_IGN); pathlib.Path('deaf').touch(); signal.pause()"
NOTES_ITS_END = """
import pathlib, signal, sys
def end(*_):
    with open('ends', 'a') as file: file.write(sys.argv[1] + '\\n')
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1] + '.up').touch()
signal.pause()
"""
# Answers each connection with its pid, one after the other, on the socket that it was handed.
ANSWERER = """
import os, socket
number = int(os.environ['MADANG_LISTEN_FDS'].removeprefix('tenant='))
listener = socket.socket(fileno=number); listener.setblocking(True)
while True:
    connection, _ = listener.accept()
    with connection: connection.sendall(str(os.getpid()).encode())
"""


def python_spec(tmp_path, name, code, *arguments, **changes):
    return ProcessSpec(
        name=name,
        argv=(sys.executable, "-S", "-c", textwrap.dedent(code), *arguments),
        cwd=tmp_path,
        log_path=tmp_path / f"{name}.log",
        **changes,
    )


def make_supervisor(tmp_path, *specs, **changes):
    log = EventLog(SystemClock())
    return Supervisor(
        specs, record_path=tmp_path / "processes.json", marker=str(tmp_path), clock=SystemClock(), log=log, **changes
    )


@asynccontextmanager
async def running(supervisor):
    supervisor.open_listeners()
    task = asyncio.create_task(supervisor.run())
    try:
        yield task
    finally:
        supervisor.request_stop()
        await asyncio.wait_for(task, 20)


async def until(condition, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "condition did not come true in time"
        await asyncio.sleep(0.005)
    return found


def ref_of(tmp_path, name):
    record = read_record(tmp_path / "processes.json")
    found = [process for process in record.processes if process.name == name] if record else []
    return found[0].ref if found else None


def restarted(tmp_path, name, old):
    ref = ref_of(tmp_path, name)
    return ref if ref is not None and ref != old else None


def test_a_killed_process_is_started_again_at_once(tmp_path):
    async def play():
        async with running(make_supervisor(tmp_path, python_spec(tmp_path, "one", SLEEPER))):
            first = await until(lambda: ref_of(tmp_path, "one"))
            killed_at = time.monotonic()
            os.kill(first.pid, signal.SIGKILL)
            second = await until(lambda: restarted(tmp_path, "one", first))
            assert time.monotonic() - killed_at < 0.3
            assert is_alive(second)
            record = read_record(tmp_path / "processes.json")
            assert record.processes[0].last_exit == "signal SIGKILL"
            assert record.processes[0].restarts == 1
        assert not is_alive(second)

    asyncio.run(play())


def test_a_process_that_cannot_run_backs_off_and_says_why(tmp_path):
    missing = ProcessSpec(name="gone", argv=("/no/such/program",), cwd=tmp_path, log_path=tmp_path / "gone.log")
    policy = RestartPolicy(base_s=0.01, delay_s_max=0.02)

    async def play():
        async with running(make_supervisor(tmp_path, missing, policy=policy)):
            record = await until(
                lambda: (
                    (found := read_record(tmp_path / "processes.json")) and found.processes[0].restarts >= 3 and found
                )
            )
            assert "No such file" in record.processes[0].last_exit
            assert record.processes[0].note.startswith("starts again in")

    asyncio.run(play())


def test_retry_now_cuts_a_back_off_short(tmp_path):
    policy = RestartPolicy(base_s=60.0, delay_s_max=60.0)
    spec = python_spec(tmp_path, "one", "open('starts', 'a').write('x')")

    async def play():
        supervisor = make_supervisor(tmp_path, spec, policy=policy)
        async with running(supervisor):
            starts = tmp_path / "starts"
            await until(lambda: "60.0 s" in str(read_record(tmp_path / "processes.json")))
            assert starts.read_text() == "xx"
            supervisor.retry_now()
            await until(lambda: starts.read_text() == "xxx")

    asyncio.run(play())


def test_a_held_socket_drops_no_connection_while_its_process_is_killed(tmp_path):
    port = free_port()
    spec = python_spec(
        tmp_path, "gateway", ANSWERER, listeners=(ListenSpec(name="tenant", host="127.0.0.1", port=port),)
    )

    async def ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return int(answer)

    async def play():
        async with running(make_supervisor(tmp_path, spec)):
            first = await ask()
            os.kill(first, signal.SIGSTOP)
            queued = [asyncio.create_task(ask()) for _ in range(20)]
            await until(lambda: accept_queue(port) == 20)
            os.kill(first, signal.SIGKILL)
            answers = await asyncio.gather(*queued)
            assert set(answers) == {answers[0]}
            assert answers[0] != first

    asyncio.run(play())


def accept_queue(port):
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    # In state LISTEN (0A) the receive queue counts connections that wait to be accepted.
    return sum(int(row[4].split(":")[1], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A")


def test_a_port_in_use_names_port_holder_and_remedy(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        spec = python_spec(tmp_path, "gw", SLEEPER, listeners=(ListenSpec(name="tenant", host="127.0.0.1", port=port),))
        with pytest.raises(Rejected, match=rf"port {port} .* taken by pid {os.getpid()} .*pytest") as caught:
            asyncio.run(_open_only(tmp_path, spec))
        assert "--base-port" in caught.value.next_step


async def _open_only(tmp_path, spec):
    make_supervisor(tmp_path, spec).open_listeners()


def test_a_port_shared_by_another_supervisor_counts_as_taken():
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(Rejected, match="the gateway of daegu needs it"):
            check_port_free("127.0.0.1", holder.getsockname()[1], "the gateway of daegu")


def test_two_processes_share_a_port(tmp_path):
    listen = ListenSpec(name="tenant", host="127.0.0.1", port=free_port())
    specs = [python_spec(tmp_path, name, ANSWERER, listeners=(listen,)) for name in ("gw_0", "gw_1")]

    async def play():
        async with running(make_supervisor(tmp_path, *specs)):
            answers = set()
            for _ in range(200):
                reader, writer = await asyncio.open_connection("127.0.0.1", listen.port)
                answers.add(int(await asyncio.wait_for(reader.read(), 10)))
                writer.close()
                if len(answers) == 2:
                    return
            raise AssertionError("one of the two never answered")

    asyncio.run(play())


def test_stop_goes_down_the_ranks_and_kills_the_deaf(tmp_path):
    specs = [
        python_spec(tmp_path, "low", NOTES_ITS_END, "low", rank=0),
        python_spec(tmp_path, "deaf", STUBBORN, rank=1, stop_timeout_s=0.2),
        python_spec(tmp_path, "high", NOTES_ITS_END, "high", rank=2),
    ]

    async def play():
        async with running(make_supervisor(tmp_path, *specs)) as task:
            await until(lambda: all((tmp_path / name).exists() for name in ("low.up", "high.up", "deaf")))
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(task, 10)

    asyncio.run(play())
    assert (tmp_path / "ends").read_text().split() == ["high", "low"]
    record = read_record(tmp_path / "processes.json")
    assert {process.name: (process.ref, process.last_exit) for process in record.processes} == {
        "low": (None, "exit 0"),
        "deaf": (None, "signal SIGKILL"),
        "high": (None, "exit 0"),
    }


def test_files_and_dependencies_gate_the_first_start(tmp_path):
    serve = "import http.server as h; h.HTTPServer(('127.0.0.1', {0}), h.SimpleHTTPRequestHandler).serve_forever()"
    port = free_port()
    specs = [
        python_spec(tmp_path, "after", SLEEPER, depends_on=("before",)),
        ProcessSpec(
            name="before",
            argv=(sys.executable, "-c", serve.format(port)),
            cwd=tmp_path,
            log_path=tmp_path / "before.log",
            needs_files=(tmp_path / "creds",),
            ready_url=f"http://127.0.0.1:{port}/creds",
        ),
        python_spec(tmp_path, "free", SLEEPER),
    ]

    async def play():
        async with running(make_supervisor(tmp_path, *specs)):
            await until(lambda: ref_of(tmp_path, "free"))
            assert ref_of(tmp_path, "before") is None
            (tmp_path / "creds").write_text("x")
            await until(lambda: ref_of(tmp_path, "before"))
            await until(lambda: ref_of(tmp_path, "after"))
            assert await probe_url(f"http://127.0.0.1:{port}/creds")
            assert not await probe_url(f"http://127.0.0.1:{port}/nothing")
        assert not await probe_url(f"http://127.0.0.1:{port}/creds")

    asyncio.run(play())


def test_a_log_over_its_limit_is_moved_aside(tmp_path):
    spec = python_spec(tmp_path, "loud", "import signal; print('x' * 2000, flush=True); signal.pause()")

    async def play():
        async with running(make_supervisor(tmp_path, spec, log_bytes_max=1000)):
            await until(lambda: (tmp_path / "loud.log.1").exists() and (tmp_path / "loud.log").stat().st_size == 0)
            assert (tmp_path / "loud.log.1").stat().st_size == 2001

    asyncio.run(play())


SUPERVISE = """
import asyncio, sys, pathlib
from madang.runtime.clock import SystemClock
from madang.runtime.supervision import ProcessSpec
from madang.runtime.supervisor import Supervisor
from madang.runtime.telemetry import EventLog
folder = pathlib.Path(sys.argv[1])
def spec(name, code, **changes):
    argv = (sys.executable, '-S', '-c', code)
    return ProcessSpec(name=name, argv=argv, cwd=folder, log_path=folder / name, **changes)
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); open('deaf', 'w'); signal.pause()"
SHIM = "import os, signal; os.setsid(); open('shim_up', 'w'); signal.pause()"
specs = (
    spec('linked', "import signal; signal.pause()"),
    spec('stubborn', STUBBORN),
    spec('engine', f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {SHIM!r}])"),
)
supervisor = Supervisor(specs, record_path=folder / 'processes.json', marker=str(folder), clock=SystemClock(),
                        log=EventLog(SystemClock()))
asyncio.run(supervisor.run())
"""


def test_a_killed_supervisor_leaves_nothing_that_is_not_found_again(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(tmp_path)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    me = make_ref(process.pid)

    async def play():
        await until(lambda: all((tmp_path / name).exists() for name in ("deaf", "shim_up")))
        linked, stubborn = ref_of(tmp_path, "linked"), ref_of(tmp_path, "stubborn")
        marked = find_marked(str(tmp_path))
        assert {ref.pid for ref in marked} > {linked.pid, stubborn.pid}
        process.kill()
        process.wait()
        await until(lambda: not is_alive(linked) and not is_alive(ref_of(tmp_path, "engine")))  # by the kernel alone
        record = read_record(tmp_path / "processes.json")
        assert record.supervisor == me
        kept = find_leftovers(record, str(tmp_path), is_detached_kept=True)
        everything = find_leftovers(record, str(tmp_path), is_detached_kept=False)
        engine = [ref for ref in everything if ref not in kept]
        assert kept == [stubborn]
        assert len(engine) == 1
        assert os.getsid(engine[0].pid) == engine[0].pid
        assert end_processes(everything, term_wait_s=0.3) == []
        assert find_marked(str(tmp_path)) == []

    asyncio.run(play())


def test_a_pid_that_was_used_again_is_left_alone(tmp_path):
    process = subprocess.Popen([sys.executable, "-S", "-c", SLEEPER])
    try:
        ref = make_ref(process.pid)
        stale = type(ref)(pid=ref.pid, start_ticks=ref.start_ticks - 1)
        assert end_processes([stale], term_wait_s=0.1) == []
        assert is_alive(ref)
    finally:
        process.kill()
        process.wait()


def test_ends_are_described():
    assert [describe_exit(code) for code in (0, 3, -9, -99)] == ["exit 0", "exit 3", "signal SIGKILL", "signal 99"]
