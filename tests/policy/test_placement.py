"""Placement: never over a chip's capacity, sticky, deterministic, and honest about what found no place."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from madang.core import ChipId, NodeId, ServiceName
from madang.model import (
    Artifact,
    Assignment,
    CatalogEntry,
    Chip,
    ChipCordon,
    ChipHealth,
    CordonCause,
    Service,
    Task,
)
from madang.policy.placement import NodeView, plan_placement

GIB = 1024**3


def make_chip(node="n1", name="c0", kind="cpu", **changes):
    values = {"memory_bytes": 8 * GIB, "engines_max": 4, "health": ChipHealth.OK}
    return Chip(chip_id=ChipId(name), node=NodeId(node), kind=kind, model="x", **{**values, **changes})


def make_node(name="n1", *chips, **changes):
    return NodeView(node=NodeId(name), chips=chips or (make_chip(name),), **changes)


def make_model(name="qwen", memory_bytes=GIB, kinds=("cpu",), **changes):
    artifact = Artifact(
        artifact_id="q4", engine="llama_cpp", chip_kinds=kinds, files=(), memory_bytes=memory_bytes, **changes
    )
    return CatalogEntry(name=name, task=Task.CHAT, title=name, licence="x", artifacts=(artifact,))


def make_service(name="chat", model="qwen", **changes):
    return Service(name=ServiceName(name), model=model, **changes)


def plan(wanted, nodes, existing=None, models=None, services=None):
    """Plan `{service: replicas}`; every service runs the model `qwen` unless told otherwise."""
    services = services or {name: make_service(name) for name in wanted}
    models = models or {"qwen": make_model()}
    assignments = [Assignment(service=ServiceName(name), replicas=count) for name, count in wanted.items()]
    return plan_placement(assignments, services, models, nodes, existing or {})


def where(placement):
    return {spec.replica_id: (node, spec.chip_ids) for node, specs in placement.replicas.items() for spec in specs}


def test_a_replica_is_named_after_its_service_and_carries_what_the_engine_needs():
    service = make_service(context_tokens=9000, slots=3, has_prefix_cache=True)
    models = {"qwen": make_model(context_tokens_max=8192)}
    placement = plan({"chat": 1}, [make_node()], models=models, services={"chat": service})
    (spec,) = placement.replicas["n1"]
    assert spec.replica_id == "chat-1"
    assert spec.chip_ids == ("c0",)
    assert (spec.context_tokens, spec.slots, spec.has_prefix_cache) == (8192, 3, True)


def test_replicas_of_one_service_spread_over_nodes():
    placement = plan({"chat": 2}, [make_node("n1"), make_node("n2")])
    assert {node for node, _ in where(placement).values()} == {"n1", "n2"}


def test_every_service_gets_its_first_replica_before_any_gets_its_second():
    node = make_node("n1", make_chip(engines_max=2))
    placement = plan({"a": 2, "b": 1}, [node])
    assert set(where(placement)) == {"a-1", "b-1"}
    assert [item.replica_id for item in placement.unplaced] == ["a-2"]


def test_the_artifact_that_the_catalog_names_first_wins():
    npu = Artifact(artifact_id="npu", engine="furiosa_llm", chip_kinds=("furiosa",), files=(), memory_bytes=GIB)
    cpu = Artifact(artifact_id="cpu", engine="llama_cpp", chip_kinds=("cpu",), files=(), memory_bytes=GIB)
    entry = CatalogEntry(
        name="qwen",
        task=Task.CHAT,
        title="x",
        licence="x",
        artifacts=(npu, cpu),
        equivalents=(("npu", "cpu"),),
    )
    node = make_node("n1", make_chip(), make_chip(name="f0", kind="furiosa", engines_max=1))
    placement = plan({"chat": 2}, [node], models={"qwen": entry})
    assert [(spec.replica_id, spec.artifact.artifact_id) for spec in placement.replicas["n1"]] == [
        ("chat-1", "npu"),
        ("chat-2", "cpu"),
    ]


def test_a_cordoned_node_keeps_what_it_has_and_gets_nothing_new():
    first = plan({"chat": 1}, [make_node()])
    second = plan({"chat": 2}, [make_node(is_cordoned=True)], existing=first.replicas)
    assert set(where(second)) == {"chat-1"}
    assert "cordoned" in second.unplaced[0].reason


def test_a_draining_node_is_emptied():
    first = plan({"chat": 1}, [make_node("n1"), make_node("n2")])
    (node, _) = where(first)["chat-1"]
    views = [make_node(name, is_draining=name == node) for name in ("n1", "n2")]
    second = plan({"chat": 1}, views, existing=first.replicas)
    assert second.replicas[node] == ()
    assert where(second)["chat-1"][0] != node
    alone = plan({"chat": 1}, [make_node("n1", is_draining=True)], existing=first.replicas)
    assert where(alone) == {}
    assert len(alone.unplaced) == 1


def rngd(name):
    return make_chip(name=name, kind="furiosa", engines_max=1, cores=4, core_sets=((0, 1), (2, 3), (0, 1, 2, 3)))


def parts(placement):
    return {spec.replica_id: (spec.chip_ids, spec.cores) for specs in placement.replicas.values() for spec in specs}


@pytest.mark.parametrize(
    ("cause", "cores", "leaving"),
    [
        (CordonCause.NOT_RELEASED, (0, 1), {"chat-1"}),
        (CordonCause.ENGINE_DEATHS, (0, 1), {"chat-1"}),
        (CordonCause.FAILED, (), {"chat-1", "chat-2"}),
        (CordonCause.DEGRADED, (), set()),
    ],
)
def test_a_cordon_for_some_cores_moves_only_who_is_on_them(cause, cores, leaving):
    models = {"qwen": make_model(kinds=("furiosa",), cores=2)}
    first = plan({"chat": 2}, [make_node("n1", rngd("f0"), rngd("f1"))], models=models)
    assert parts(first) == {"chat-1": (("f0",), (0, 1)), "chat-2": (("f0",), (2, 3))}
    cordon = ChipCordon(chip_id=ChipId("f0"), cause=cause, reason="x", by="node", since_s=1.0, cores=cores)
    node = make_node("n1", rngd("f0"), rngd("f1"), cordons=(cordon,))
    second = plan({"chat": 3}, [node], existing=first.replicas, models=models)
    assert second.unplaced == () or (cause, len(leaving)) == (CordonCause.FAILED, 2)
    moved = {name for name, place in parts(first).items() if parts(second).get(name) != place}
    assert moved == leaving
    # The whole card takes nothing new.
    assert all(parts(second)[name][0] == ("f1",) for name in {"chat-3"} & parts(second).keys())


def test_a_replica_whose_artifact_needs_another_number_of_cores_gets_others():
    node = make_node("n1", rngd("f0"))
    two = plan({"chat": 1}, [node], models={"qwen": make_model(kinds=("furiosa",), cores=2)})
    four = plan({"chat": 1}, [node], two.replicas, {"qwen": make_model(kinds=("furiosa",), cores=4)})
    assert (parts(two), parts(four)) == ({"chat-1": (("f0",), (0, 1))}, {"chat-1": (("f0",), ())})
    whole = plan({"chat": 1}, [node], two.replicas, {"qwen": make_model(kinds=("furiosa",))})
    assert parts(whole) == {"chat-1": (("f0",), ())}
    again = plan({"chat": 1}, [node], whole.replicas, {"qwen": make_model(kinds=("furiosa",), cores=1)})
    assert parts(again) == {"chat-1": (("f0",), (0, 1))}


def test_a_lost_node_is_left_when_another_fits_and_kept_when_none_does():
    first = plan({"chat": 1}, [make_node("n1")])
    moved = plan({"chat": 1}, [make_node("n1", is_lost=True), make_node("n2")], existing=first.replicas)
    assert where(moved)["chat-1"][0] == "n2"
    kept = plan({"chat": 1}, [make_node("n1", is_lost=True)], existing=first.replicas)
    assert where(kept)["chat-1"][0] == "n1"


def test_a_node_that_was_not_heard_yet_keeps_its_plan_as_it_is():
    first = plan({"chat": 1}, [make_node("n1")])
    silent = NodeView(node=NodeId("n1"), is_observed=False)
    second = plan({"chat": 2}, [silent], existing=first.replicas)
    assert second.replicas["n1"] == first.replicas["n1"]
    assert [item.replica_id for item in second.unplaced] == ["chat-2"]


def test_a_failed_chip_is_left():
    first = plan({"chat": 1}, [make_node("n1", make_chip(name="c0"))])
    chips = (make_chip(name="c0", health=ChipHealth.FAILED), make_chip(name="c1"))
    second = plan({"chat": 1}, [make_node("n1", *chips)], existing=first.replicas)
    assert where(second)["chat-1"] == ("n1", ("c1",))


def test_what_has_no_place_says_why():
    def reason(nodes, **more):
        return plan({"chat": 1}, nodes, **more).unplaced[0].reason

    assert "no chip of kind cpu" in reason([make_node("n1", make_chip(kind="furiosa"))])
    assert "no chip of kind cpu" in reason([])
    assert "not healthy" in reason([make_node("n1", make_chip(health=ChipHealth.UNKNOWN))])
    assert "engine places" in reason([make_node("n1", make_chip(engines_max=0))])
    assert f"needs {GIB} bytes" in reason([make_node("n1", make_chip(memory_bytes=GIB - 1))])
    assert "model 'qwen' is not in" in reason([make_node()], models={"other": make_model("other")})
    assert "service is not in" in reason([make_node()], services={"other": make_service("other")})
    assert "no artifact" in reason(
        [make_node()], models={"qwen": CatalogEntry(name="qwen", task=Task.CHAT, title="x", licence="x")}
    )


def test_a_changed_service_changes_the_spec_and_moves_nothing():
    nodes = [make_node("n1"), make_node("n2")]
    first = plan({"chat": 2}, nodes)
    services = {"chat": make_service(slots=9)}
    second = plan({"chat": 2}, nodes, existing=first.replicas, services=services)
    assert where(second) == where(first)
    assert {spec.slots for specs in second.replicas.values() for spec in specs} == {9}


chips = st.builds(
    make_chip,
    name=st.sampled_from(["c0", "c1", "c2"]),
    kind=st.sampled_from(["cpu", "furiosa"]),
    memory_bytes=st.integers(0, 8).map(lambda n: n * GIB),
    engines_max=st.integers(0, 3),
    health=st.sampled_from(list(ChipHealth)),
    is_cordoned=st.booleans(),
)


@st.composite
def node_lists(draw):
    views = []
    for name in draw(st.sets(st.sampled_from(["n1", "n2", "n3"]))):
        found = {chip.chip_id: chip for chip in draw(st.lists(chips, max_size=3))}
        views.append(
            NodeView(
                node=NodeId(name),
                chips=tuple(found.values()),
                is_cordoned=draw(st.booleans()),
                is_draining=draw(st.booleans()),
                is_lost=draw(st.booleans()),
            )
        )
    return views


wanteds = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 5), max_size=3)
MODELS = {
    "qwen": make_model(kinds=("cpu", "furiosa")),
    "big": make_model("big", memory_bytes=5 * GIB, kinds=("furiosa",)),
}
SERVICES = {"a": make_service("a"), "b": make_service("b", "big"), "c": make_service("c")}


def used(placement, nodes):
    for view in nodes:
        for chip in view.chips:
            specs = [spec for spec in placement.replicas[view.node] if spec.chip_ids == (chip.chip_id,)]
            yield view, chip, specs


@given(wanteds, node_lists(), node_lists(), wanteds, st.randoms())
def test_capacity_holds_everything_is_accounted_for_and_order_does_not_matter(wanted, nodes, before, earlier, random):
    existing = plan(earlier, before, models=MODELS, services=SERVICES).replicas
    placement = plan(wanted, nodes, existing=existing, models=MODELS, services=SERVICES)
    for view, chip, specs in used(placement, nodes):
        assert len(specs) <= chip.engines_max
        assert sum(spec.artifact.memory_bytes for spec in specs) <= chip.memory_bytes
        assert not (view.is_draining and specs)
        for spec in specs:
            was = any(
                spec.replica_id == old.replica_id and spec.chip_ids == old.chip_ids
                for old in existing.get(view.node, ())
            )
            closed = view.is_cordoned or view.is_lost or chip.is_cordoned
            assert was or not closed
            assert was or chip.health in (ChipHealth.OK, ChipHealth.DEGRADED)
    names = sorted([*where(placement), *(item.replica_id for item in placement.unplaced)])
    assert names == sorted(f"{service}-{n}" for service, count in wanted.items() for n in range(1, count + 1))

    def shuffled(items):
        items = list(items)
        random.shuffle(items)
        return items

    again = plan_placement(
        shuffled(Assignment(service=ServiceName(name), replicas=count) for name, count in wanted.items()),
        dict(shuffled(SERVICES.items())),
        dict(shuffled(MODELS.items())),
        shuffled(
            NodeView(**{f: getattr(v, f) for f in v.__struct_fields__ if f != "chips"}, chips=tuple(shuffled(v.chips)))
            for v in nodes
        ),
        dict(shuffled(existing.items())),
    )
    assert again == placement


@given(wanteds, node_lists())
def test_planning_again_on_its_own_result_moves_nothing(wanted, nodes):
    steady = [NodeView(node=view.node, chips=view.chips, is_cordoned=view.is_cordoned) for view in nodes]
    first = plan(wanted, steady, models=MODELS, services=SERVICES)
    assert plan(wanted, steady, existing=first.replicas, models=MODELS, services=SERVICES) == first


@given(wanteds, node_lists(), wanteds)
def test_what_runs_does_not_move_for_what_is_new(wanted, nodes, more):
    assume(all(count >= wanted.get(name, 0) for name, count in more.items()))
    steady = [NodeView(node=view.node, chips=view.chips) for view in nodes]
    first = plan(wanted, steady, models=MODELS, services=SERVICES)
    second = plan({**wanted, **more}, steady, existing=first.replicas, models=MODELS, services=SERVICES)
    for replica_id, place in where(first).items():
        assert where(second)[replica_id] == place
