"""Parts of the node that need no process: board, accepted plans, chips, drivers, bootstrap."""

import asyncio
import functools

import msgspec
import pytest

from madang.chip.contract import ChipGrant
from madang.core import ChipId, Conflict, NodeId, Rejected, ReplicaId, ServiceName, SiteId, Unavailable
from madang.federation.catalog import CHAT_MODEL, builtin_catalog, find_entry
from madang.model import Chip, ChipHealth, ReplicaObserved, ReplicaPhase, ReplicaSpec, Task
from madang.node.board import Board
from madang.node.bootstrap import list_engines, prepare_node, stop_engines
from madang.node.chips import ChipBook
from madang.node.drivers import make_chip_drivers, make_engine_drivers
from madang.node.keeper import hash_spec
from madang.node.plans import REPLICAS_MAX, accept_plan, check_plan, load_plan
from madang.node.records import replica_folder
from madang.node.settings import NodeSettings
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog
from madang.wire.node_api import NodePlan

SITE, NODE = SiteId("daegu"), NodeId("daegu-1")


@functools.cache
def find_chat():
    return find_entry(builtin_catalog(), CHAT_MODEL)


def make_spec(replica_id="r-1", **changes):
    entry = find_chat()
    spec = ReplicaSpec(
        replica_id=ReplicaId(replica_id),
        service=ServiceName("chat"),
        model=entry.name,
        task=entry.task,
        artifact=entry.artifacts[0],
        chip_ids=(ChipId("cpu0"),),
        context_tokens=4096,
        slots=4,
    )
    return msgspec.structs.replace(spec, **changes)


def make_plan(generation, *specs, **changes):
    plan = NodePlan(site=SITE, node=NODE, generation=generation, replicas=specs)
    return msgspec.structs.replace(plan, **changes)


# The board


def observe(phase=ReplicaPhase.READY):
    return ReplicaObserved(replica_id=ReplicaId("r-1"), node=NODE, service=ServiceName("chat"), phase=phase)


def test_the_board_counts_changes_and_only_changes():
    async def scenario():
        board = Board(NODE, "boot", SystemClock())
        numbers = [board.observed().seq]
        for change in (
            lambda: board.see_replica(observe()),
            lambda: board.see_replica(observe()),
            lambda: board.see_replica(observe(ReplicaPhase.DRAINING)),
            lambda: board.forget_replica("r-1"),
            lambda: board.forget_replica("r-1"),
            lambda: board.accept(7),
        ):
            change()
            numbers.append(board.observed().seq)
        assert numbers == [0, 1, 1, 2, 3, 3, 4]
        assert board.observed().plan_generation == 7

    asyncio.run(scenario())


def test_the_board_wakes_all_who_wait():
    async def scenario():
        board = Board(NODE, "boot", SystemClock())
        waiting = [asyncio.create_task(board.wait(0, 10, lambda: False)) for _ in range(3)]
        await asyncio.sleep(0)
        board.see_replica(observe())
        return await asyncio.gather(*waiting)

    assert [seen.seq for seen in asyncio.run(scenario())] == [1, 1, 1]


def test_waiting_ends_with_the_time_the_program_or_another_boots_number():
    async def scenario():
        board = Board(NODE, "boot", SystemClock())
        assert (await board.wait(0, 0.01, lambda: False)).seq == 0
        assert (await board.wait(99, 10, lambda: False)).seq == 0
        assert (await board.wait(0, 10, lambda: True)).seq == 0

    asyncio.run(scenario())


# Plans


def test_an_accepted_plan_survives_and_an_older_one_is_refused(tmp_path):
    assert load_plan(tmp_path) is None
    plan = make_plan(3, make_spec())
    assert accept_plan(plan, None, tmp_path)
    assert load_plan(tmp_path) == plan
    assert not accept_plan(plan, plan, tmp_path)
    with pytest.raises(Conflict, match="2 is older than the accepted 3"):
        accept_plan(make_plan(2), plan, tmp_path)
    assert load_plan(tmp_path) == plan
    assert accept_plan(make_plan(4), plan, tmp_path)


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (make_plan(1, site=SiteId("gumi")), "this is daegu-1 of daegu"),
        (make_plan(1, node=NodeId("other")), "this is daegu-1 of daegu"),
        (make_plan(1, version=2), "version 2"),
        (make_plan(1, make_spec(), make_spec()), "twice"),
        (make_plan(1, make_spec("../x")), "replica id"),
        (make_plan(1, make_spec(".hidden")), "replica id"),
        (make_plan(1, *(make_spec(f"r-{i}") for i in range(REPLICAS_MAX + 1))), f"at most {REPLICAS_MAX}"),
        (make_plan(1, make_spec(artifact=msgspec.structs.replace(make_spec().artifact, files=()))), "no file"),
    ],
)
def test_a_plan_that_nobody_could_carry_out_is_refused(plan, told, tmp_path):
    with pytest.raises(Rejected) as caught:
        check_plan(plan, SITE, NODE, tmp_path)
    assert told in caught.value.message


def test_a_plan_at_the_limit_is_taken(tmp_path):
    check_plan(make_plan(1, *(make_spec(f"r-{i}") for i in range(REPLICAS_MAX))), SITE, NODE, tmp_path)


def test_a_damaged_plan_names_its_file(tmp_path):
    (tmp_path / "plan.json").write_bytes(b"{torn")
    with pytest.raises(Rejected, match=r"plan\.json is damaged"):
        load_plan(tmp_path)


# Chips and drivers


class FakeChipDriver:
    def __init__(self, kind, *chip_ids):
        self.kind = kind
        self.chip_ids = chip_ids
        self.health = ChipHealth.OK

    async def read(self):
        return tuple(
            Chip(chip_id=ChipId(i), node=NODE, kind=self.kind, model="m", memory_bytes=1, health=self.health)
            for i in self.chip_ids
        )

    def grant(self, chip_ids):
        return ChipGrant(devices=tuple(f"{self.kind}:{i}" for i in chip_ids))


def test_chips_are_granted_by_the_driver_that_has_them():
    seen = []
    book = ChipBook((FakeChipDriver("a", "a0", "a1"), FakeChipDriver("b", "b0")), seen.append, EventLog(SystemClock()))
    asyncio.run(book.read())
    assert [chip.chip_id for chip in seen[0]] == ["a0", "a1", "b0"]
    assert book.grant((ChipId("a1"), ChipId("a0"))).devices == ("a:a1", "a:a0")
    assert book.kind_of((ChipId("b0"),)) == "b"
    for chip_ids, told in ((("x",), "it has a0, a1, b0"), ((), "none asked for"), (("a0", "b0"), "several kinds")):
        with pytest.raises(Conflict, match=told):
            book.grant(tuple(ChipId(i) for i in chip_ids))


def test_a_chip_that_vanishes_is_granted_no_more(capsys):
    driver = FakeChipDriver("a", "a0")
    seen = []
    book = ChipBook((driver,), seen.append, EventLog(SystemClock()))
    asyncio.run(book.read())
    driver.chip_ids = ()
    asyncio.run(book.read())
    (chip,) = seen[-1]
    assert (chip.health, chip.reason) == (ChipHealth.FAILED, "it was there and the driver does not find it any more")
    assert "chip_vanished" in capsys.readouterr().err
    with pytest.raises(Conflict):
        book.grant((ChipId("a0"),))


def test_unknown_drivers_in_the_settings_are_named():
    with pytest.raises(Rejected, match="setting chips: no chip driver 'gpu'; known: cpu"):
        make_chip_drivers(("gpu",), NODE, SystemClock())
    with pytest.raises(Rejected, match="setting engine_twins: no engine 'x'"):
        make_engine_drivers(("x",))


def test_an_engine_and_its_twin_are_never_taken_for_each_other():
    real, played = make_engine_drivers(()), make_engine_drivers(("llama_cpp",))
    assert hash_spec(make_spec(), real) != hash_spec(make_spec(), played)
    assert hash_spec(make_spec(), real) == hash_spec(make_spec(), make_engine_drivers(("embed",)))
    assert hash_spec(make_spec(), real) != hash_spec(make_spec(slots=5), real)
    spec = make_spec()
    told = msgspec.structs.replace(spec.artifact, tokenizer_sha256="a" * 64, template_sha256="b" * 64)
    assert hash_spec(msgspec.structs.replace(spec, artifact=told), real) == hash_spec(spec, real)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": Task.EMBEDDING}, "serves chat models"),
        ({"slots": 0}, "slots is 0"),
        ({"context_tokens": 40_000}, "expected 256 to 32768"),
        ({"context_tokens": 1}, "expected 256 to 32768"),
    ],
)
def test_llama_refuses_what_it_cannot_run(changes, told):
    with pytest.raises(Rejected, match=told):
        make_engine_drivers(())["llama_cpp"].check(make_spec(**changes))


def test_embed_refuses_chat():
    with pytest.raises(Rejected, match="serves embedding models"):
        make_engine_drivers(())["embed"].check(make_spec())


# Bootstrap


def make_settings(folder):
    return NodeSettings(
        name="n", site="s", state_dir=folder / "state", token_file=folder / "state" / "token", cache_dir=folder / "c"
    )


def test_preparing_twice_keeps_the_token(tmp_path):
    settings = make_settings(tmp_path)
    prepare_node(settings)
    token = settings.token_file.read_bytes()
    prepare_node(settings)
    assert settings.token_file.read_bytes() == token
    assert len(token) >= 40
    assert settings.token_file.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    with pytest.raises(Unavailable, match="state"):
        prepare_node(make_settings(tmp_path))


def test_damaged_and_foreign_records_end_nobody(tmp_path):
    settings = make_settings(tmp_path)
    prepare_node(settings)
    for name, text in (("a", "{torn"), ("b", "{}"), ("c", '{"version": 9}')):
        folder = replica_folder(settings.state_dir, name)
        folder.mkdir()
        (folder / "record.json").write_text(text, encoding="utf-8")
    assert list_engines(settings) == []
    assert stop_engines(settings) == 0


def test_nothing_to_stop_where_nothing_was(tmp_path):
    assert stop_engines(make_settings(tmp_path)) == 0
