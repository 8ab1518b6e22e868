"""Files and tools of a machine: bounded in time and size, and none left behind."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from tests.chip.chip_parts import HANG_S

from madang.chip.host import FILE_BYTES_MAX, MachineHost, Patience
from madang.chip.twin_machine import TwinMachine
from madang.core import Unavailable

TOOL = "/usr/bin/some-smi"


@pytest.fixture
def machine(tmp_path):
    made = TwinMachine(tmp_path)
    made.install(TOOL, {"info": "hello", "": "bare"})
    return made


def run(machine, *words, tools=("some-smi",), **options):
    return asyncio.run(MachineHost(machine.root, **options).run(tools, words))


def test_a_tool_is_run_with_its_words_and_without_a_shell(machine):
    output = run(machine, "info")
    assert (output.exit_code, output.stdout) == (0, b"hello")
    assert run(machine, "$(touch /tmp/x); info").exit_code == 2


def test_tools_are_found_by_path_first_and_by_name_then(machine):
    machine.install("/opt/vendor/other-smi", {"": "other"})
    assert run(machine, tools=("/opt/vendor/other-smi", "some-smi")).stdout == b"other"
    assert run(machine, tools=("/nowhere/other-smi", "some-smi")).stdout == b"bare"
    assert run(machine, tools=("other-smi",), folders=("/opt/vendor",)).stdout == b"other"
    host = MachineHost(machine.root)
    assert host.has_tool(("some-smi",))
    assert not host.has_tool(("other-smi",))


def test_a_tool_that_is_not_there_is_unavailable(machine):
    with pytest.raises(Unavailable, match="other-smi or other-stat is not installed"):
        run(machine, tools=("/usr/bin/other-smi", "other-smi", "other-stat"))


def test_a_file_that_cannot_be_run_is_unavailable(machine):
    machine.write("/usr/bin/broken-smi", "#!/no/such/interpreter\n")
    (machine.root / "usr/bin/broken-smi").chmod(0o755)
    with pytest.raises(Unavailable, match="broken-smi cannot be started"):
        run(machine, tools=("broken-smi",))


def processes_of(machine):
    """Return the pids of this machine's tools that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(machine.root / "usr/bin/some-smi") in words:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(("fault", "said"), [("hang", "did not end in 0.25 s"), ("flood", "wrote more than")])
def test_a_tool_that_does_not_end_is_killed_and_unavailable(machine, fault, said):
    machine.break_tool(TOOL, fault)
    with pytest.raises(Unavailable, match=said):
        run(machine, "info", tool_s_max=HANG_S if fault == "hang" else 10.0)
    assert processes_of(machine) == []


def test_a_reading_that_is_given_up_leaves_no_tool(machine):
    machine.break_tool(TOOL, "hang")

    async def give_up():
        task = asyncio.create_task(MachineHost(machine.root).run(("some-smi",), ("info",)))
        while not processes_of(machine):  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(give_up())
    assert processes_of(machine) == []


def test_a_crash_and_garbage_are_given_to_who_asked(machine):
    machine.break_tool(TOOL, "crash")
    output = run(machine, "info")
    assert (output.exit_code, output.stdout, output.stderr) == (101, b"", b"panicked\n")
    machine.break_tool(TOOL, "garbage")
    assert run(machine, "info").stdout == bytes(range(256))


def test_files_are_read_up_to_a_bound_and_absence_is_empty(machine):
    host = MachineHost(machine.root)
    machine.write("/sys/long", "x" * (FILE_BYTES_MAX + 1))
    machine.write("/sys/forbidden", "x")
    machine.forbid("/sys/forbidden")
    machine.link("/sys/link", "../../0000:81:00.0")
    assert len(host.read("/sys/long")) == FILE_BYTES_MAX
    assert (host.read("/sys/none"), host.read("/sys/forbidden"), host.names("/sys/none")) == (b"", b"", ())
    assert (host.link("/sys/link"), host.link("/sys/long")) == ("0000:81:00.0", "")
    assert host.names("/sys") == ("class", "forbidden", "link", "long")


def test_a_call_that_hangs_is_given_up_and_not_started_twice():
    gate = threading.Event()
    calls = []

    def hang():
        calls.append(1)
        gate.wait(60)
        return "late"

    async def check():
        patience = Patience("the card", 0.05)
        with pytest.raises(Unavailable, match=r"the card did not return in 0\.05 s"):
            await patience.call(hang)
        with pytest.raises(Unavailable, match="still hangs"):
            await patience.call(hang)
        assert len(calls) == 1
        gate.set()
        (thread,) = [one for one in threading.enumerate() if one.name == "chip: the card"]
        thread.join(10)
        assert await patience.call(lambda: "again") == "again"

    asyncio.run(check())


def test_one_call_after_the_other_is_never_taken_for_a_hanging_one():
    async def check():
        patience = Patience("the card")
        return [await patience.call(str) for _ in range(300)]

    assert len(asyncio.run(check())) == 300


def test_an_error_of_a_call_is_its_callers():
    def fail():
        raise Unavailable("no driver")

    with pytest.raises(Unavailable, match="no driver"):
        asyncio.run(Patience("x").call(fail))
