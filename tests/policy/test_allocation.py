"""Allocation: whole cards, core sets, groups; never what is taken or closed, always something where there is some."""

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.depth import depth

from madang.core import ChipId, NodeId
from madang.model import Chip, ChipHealth
from madang.policy.allocation import Allocation, Ask, Refusal, Use, choose_chips, find_obstacle, is_shared

GIB = 1024**3
RNGD_CORES = 8
RNGD_SETS = (
    *((core,) for core in range(8)),
    *((core, core + 1) for core in range(0, 8, 2)),
    (0, 1, 2, 3),
    (4, 5, 6, 7),
)
"""Device nodes of an RNGD: single PEs and fused ones, `npuNpe0-1` to `npuNpe4-7` (libfuriosa-kubernetes, cdi_spec)."""


def chip(name, kind="rngd", **changes):
    values = {"memory_bytes": 48 * GIB, "health": ChipHealth.OK, "model": "x"}
    return Chip(chip_id=ChipId(name), node=NodeId("n"), kind=kind, **{**values, **changes})


def rngd(name, **changes):
    return chip(name, cores=RNGD_CORES, core_sets=RNGD_SETS, **changes)


def ask(chips=1, cores=0, kinds=("rngd",), memory_bytes=0):
    return Ask(kinds=kinds, chips=chips, cores=cores, memory_bytes=memory_bytes)


def use(name, *cores, holder="other", memory_bytes=0):
    return Use(chip_id=ChipId(name), holder=holder, cores=cores, memory_bytes=memory_bytes)


def got(*names, cores=()):
    return Allocation(chip_ids=names, cores=cores)


def test_a_free_chip_is_given_by_name_and_a_taken_one_is_not():
    chips = [rngd("b"), rngd("a")]
    assert choose_chips(ask(), chips, []) == got("a")
    assert choose_chips(ask(), chips, [use("a")]) == got("b")
    assert choose_chips(ask(), chips, [use("a", 3)]) == got("b")


def test_a_degraded_chip_comes_last_and_others_never():
    bad = [
        rngd("a", health=ChipHealth.FAILED, reason="link down"),
        rngd("b", health=ChipHealth.UNKNOWN),
        rngd("c", is_cordoned=True),
        rngd("d", incompatibility="driver 1 with firmware 2"),
        rngd("e", health=ChipHealth.DEGRADED, reason="hot"),
    ]
    assert choose_chips(ask(), [*bad, rngd("f")], []) == got("f")
    assert choose_chips(ask(), bad, []) == got("e")
    refused = choose_chips(ask(), bad[:4], [], {})
    assert refused.reason == (
        "needs 1 chip of kind rngd, 0 can be given: a not healthy (failed: link down); b not healthy (unknown); "
        "c cordoned; d incompatible: driver 1 with firmware 2"
    )
    assert dict(choose_chips(ask(), [rngd("f")], [], {"f": "by_hand: smells"}).blocked) == {
        "f": "cordoned: by_hand: smells"
    }


def test_chips_of_one_card_are_given_together():
    card = [chip(f"a{n}", kind="ca25", group="s1") for n in range(4)]
    other = [chip(f"b{n}", kind="ca25", group="s2") for n in range(4)]
    kinds = ("ca25",)
    assert choose_chips(ask(kinds=kinds), card, []) == got("a0", "a1", "a2", "a3")
    assert choose_chips(ask(chips=2, kinds=kinds), [*other, *card], [use("a2")]) == got("b0", "b1", "b2", "b3")
    assert len(choose_chips(ask(chips=5, kinds=kinds), [*other, *card], []).chip_ids) == 8
    sick = [*card[:3], chip("a3", kind="ca25", group="s1", health=ChipHealth.FAILED, reason="gone")]
    assert choose_chips(ask(kinds=kinds), sick, []).blocked[0] == ("a0", "a3 of its card not healthy (failed: gone)")


def test_many_chips_come_from_one_numa_node_and_from_near_buses():
    def at(name, numa, bus):
        return chip(name, numa_node=numa, pci_address=f"0000:{bus:02x}:00.0")

    chips = [at("a", 0, 0x10), at("b", 1, 0x80), at("c", 1, 0x90), at("d", 1, 0x81), at("e", 0, 0x40)]
    assert choose_chips(ask(2), chips, []) == got("b", "d")
    assert choose_chips(ask(2), chips, [use("d")]) == got("b", "c")
    assert choose_chips(ask(2), chips, [use("d"), use("b")]) == got("a", "e")
    # One engine on one chip leaves the three that are near each other.
    assert choose_chips(ask(), chips, []) == got("a")


def test_an_engine_never_gets_chips_of_two_models():
    chips = [chip("a", kind="rbln", model="CA22"), chip("b", kind="rbln", model="CA25")]
    assert isinstance(choose_chips(ask(2, kinds=("rbln",)), chips, []), Refusal)


def test_cores_fill_a_chip_that_is_in_use_and_break_no_more_than_needed():
    chips = [rngd("a"), rngd("b")]
    assert choose_chips(ask(cores=2), chips, []) == got("a", cores=(0, 1))
    assert choose_chips(ask(cores=2), chips, [use("b", 4)]) == got("b", cores=(6, 7))
    assert choose_chips(ask(cores=1), chips, [use("b", 4)]) == got("b", cores=(5,))
    assert choose_chips(ask(cores=4), chips, [use("b", 4)]) == got("b", cores=(0, 1, 2, 3))
    assert choose_chips(ask(cores=3), chips, []) == got("a", cores=(0, 1, 2, 3))
    assert choose_chips(ask(cores=8), chips, [use("a", 0)]) == got("b")
    assert choose_chips(ask(cores=9), chips, []).reason.endswith("needs 9 cores and 8 can be given together")


def test_cores_of_a_chip_that_is_not_divided_are_the_whole_of_it():
    undivided = chip("a", cores=8)
    assert choose_chips(ask(cores=2), [undivided], []) == got("a")
    assert isinstance(choose_chips(ask(cores=2), [undivided], [use("a")]), Refusal)


def test_memory_is_shared_evenly_by_chips_and_in_proportion_by_cores():
    chips = [rngd("a"), rngd("b")]
    assert choose_chips(ask(2, memory_bytes=96 * GIB), chips, []) == got("a", "b")
    assert "needs" in choose_chips(ask(2, memory_bytes=96 * GIB + 2), chips, []).reason
    assert choose_chips(ask(cores=2, memory_bytes=12 * GIB), chips, []) == got("a", cores=(0, 1))
    assert choose_chips(ask(cores=2, memory_bytes=12 * GIB + 1), chips, []) == got("a", cores=(0, 1, 2, 3))


def test_a_shared_chip_takes_engines_up_to_its_places_and_memory():
    cpu = chip("c", kind="cpu", engines_max=2, memory_bytes=8 * GIB)
    wanted = ask(kinds=("cpu",), memory_bytes=3 * GIB)
    first = use("c", memory_bytes=3 * GIB)
    assert choose_chips(wanted, [cpu], [first]) == got("c")
    assert "all 2 engine places" in choose_chips(wanted, [cpu], [first, use("c")]).reason
    assert "2147483648 are left" in choose_chips(wanted, [cpu], [use("c", memory_bytes=6 * GIB)]).reason
    assert not is_shared(rngd("a", engines_max=8)), "a chip with core sets has one engine a core, whatever it says"


def test_what_is_in_the_way_of_exactly_these_chips_is_named():
    card = [chip("a0", group="s"), chip("a1", group="s")]
    chips = [*card, rngd("b"), rngd("c", health=ChipHealth.FAILED, reason="lost"), chip("z", kind="cpu")]

    def obstacle(names, cores=(), uses=()):
        return find_obstacle(tuple(names), cores, chips, uses)

    assert obstacle(["a0", "a1"]) == obstacle(["b"]) == obstacle(["b"], (0, 1), [use("b", 2)]) == ""
    assert "a1 is on the same card (s)" in obstacle(["a0"])
    assert "not on this node" in obstacle(["x"])
    assert "no chip is named" in obstacle([])
    assert "several kinds" in obstacle(["a0", "a1", "z"])
    assert "chip c has failed: lost" in obstacle(["c"])
    assert "leased to other" in obstacle(["b"], (), [use("b", 7)])
    assert "leased to other" in obstacle(["b"], (6, 7), [use("b", 7)])
    assert "leased to other" in obstacle(["b"], (6, 7), [use("b")])
    assert "not a set" in obstacle(["b"], (1, 2))
    assert "one chip at a time" in obstacle(["a0", "a1"], (0,))


# Properties

KINDS = ("rngd", "rbln", "cpu")


LAYOUTS = (("rngd",), ("rbln",), ("cpu",), KINDS)
FAULTS = (
    *({},) * 7,
    {"health": ChipHealth.DEGRADED},
    {"health": ChipHealth.FAILED},
    {"health": ChipHealth.UNKNOWN},
    {"is_cordoned": True},
    {"incompatibility": "old driver"},
)


@st.composite
def chip_lists(draw):
    found = []
    kinds = draw(st.sampled_from(LAYOUTS))
    for name in "abcdef"[: draw(st.integers(2, 6))]:
        kind = draw(st.sampled_from(kinds))
        changes = {
            "rngd": {"cores": 4, "core_sets": ((0,), (1,), (2, 3), (0, 1), (2,), (3,))},
            "rbln": {"group": draw(st.sampled_from(["s1", "s2", ""])), "model": draw(st.sampled_from("xxy"))},
            "cpu": {"engines_max": draw(st.integers(2, 3))},
        }[kind]
        found.append(
            chip(
                name,
                kind=kind,
                memory_bytes=draw(st.sampled_from([8, 8, 4])) * GIB,
                numa_node=draw(st.sampled_from([0, 1, None])),
                pci_address=draw(st.sampled_from(["", "0000:03:00.0", "0000:83:00.0", "odd"])),
                **{**changes, **draw(st.sampled_from(FAULTS))},
            )
        )
    return found


@st.composite
def worlds(draw):
    """Return chips, what is taken of them by earlier choices, and which are closed."""
    chips = draw(chip_lists())
    uses = []
    for index, wanted in enumerate(draw(st.lists(asks, max_size=4))):
        found = choose_chips(wanted, chips, uses)
        if isinstance(found, Allocation):
            uses += to_uses(found, wanted, f"r{index}")
    closed = {one.chip_id: "broken" for one in chips if draw(st.sampled_from([False] * 6 + [True]))}
    return chips, uses, closed


asks = st.builds(
    ask,
    chips=st.integers(1, 4),
    cores=st.integers(0, 5),
    kinds=st.sampled_from([KINDS, ("rngd",), ("cpu", "rbln")]),
    memory_bytes=st.sampled_from([0, GIB, 2 * GIB, 4 * GIB, 8 * GIB]),
)


def to_uses(found, wanted, holder):
    return [
        Use(chip_id=one, holder=holder, cores=found.cores, memory_bytes=wanted.chip_memory_bytes)
        for one in found.chip_ids
    ]


def is_sound(found, wanted, chips, uses, closed):
    """Say from the rules alone, with no code of the policy, whether an allocation is right."""
    known = {one.chip_id: one for one in chips}
    given = [known[name] for name in found.chip_ids]
    is_open = all(
        one.health in (ChipHealth.OK, ChipHealth.DEGRADED)
        and not (one.is_cordoned or one.incompatibility or one.chip_id in closed)
        and all(o in given for o in chips if one.group and (o.kind, o.group) == (one.kind, one.group))
        for one in given
    )
    return (
        len({(one.kind, one.model) for one in given}) == 1
        and given[0].kind in wanted.kinds
        and is_open
        and (is_enough_cores(found, wanted, given) if wanted.cores else len(given) >= wanted.chips and not found.cores)
        and all(is_free(found, wanted, one, [u for u in uses if u.chip_id == one.chip_id]) for one in given)
    )


def is_enough_cores(found, wanted, given):
    is_one_card = len(given) == 1 or (given[0].group and len({one.group for one in given}) == 1)
    return is_one_card and (len(found.cores) or sum(one.cores for one in given)) >= wanted.cores


def is_free(found, wanted, one, taken):
    if found.cores:
        return (
            found.cores in {tuple(sorted(s)) for s in one.core_sets}
            and all(u.cores and not set(u.cores) & set(found.cores) for u in taken)
            and one.memory_bytes * len(found.cores) >= wanted.memory_bytes * one.cores
        )
    if one.kind == "cpu":
        left = one.memory_bytes - sum(u.memory_bytes for u in taken)
        return len(taken) < one.engines_max and left >= wanted.chip_memory_bytes
    return not taken and one.memory_bytes >= wanted.chip_memory_bytes


def brute_force(wanted, chips, uses, closed):
    """Yield every sound allocation there is: all subsets of chips, all core sets."""
    names = sorted(one.chip_id for one in chips)
    for size in range(1, len(names) + 1):
        for subset in itertools.combinations(names, size):
            if is_sound(found := Allocation(chip_ids=subset), wanted, chips, uses, closed):
                yield found
    for one in chips:
        for cores in one.core_sets:
            found = Allocation(chip_ids=(one.chip_id,), cores=tuple(sorted(cores)))
            if wanted.cores and is_sound(found, wanted, chips, uses, closed):
                yield found


@settings(max_examples=depth(150, 2000), deadline=None)
@given(worlds(), asks)
@example(([chip("a", kind="rbln", group="s1"), chip("b", kind="rbln", group="s1")], [], {}), ask(2, 0, ("rbln",)))
@example(
    ([chip("a", kind="rbln", group="s1"), chip("b", kind="rbln", group="s1", model="y")], [], {}), ask(1, 0, ("rbln",))
)
def test_what_is_given_is_sound_and_something_is_given_whenever_something_may_be(world, wanted):
    chips, uses, closed = world
    found = choose_chips(wanted, chips, uses, closed)
    possible = list(brute_force(wanted, chips, uses, closed))
    if isinstance(found, Allocation):
        assert is_sound(found, wanted, chips, uses, closed)
        assert find_obstacle(found.chip_ids, found.cores, chips, uses) == ""
        smaller = [one for one in possible if set(one.chip_ids) < set(found.chip_ids)]
        assert not smaller, "a card could have been left out"
    else:
        assert not possible, found.reason
        assert found.reason
        named = {name for name, _ in found.blocked}
        assert all(one in named for one in closed if any(c.chip_id == one and c.kind in wanted.kinds for c in chips))


@given(worlds(), asks, st.randoms())
def test_the_order_of_telling_changes_nothing(world, wanted, random):
    chips, uses, closed = world
    first = choose_chips(wanted, chips, uses, closed)
    chips, uses = list(chips), list(uses)
    random.shuffle(chips)
    random.shuffle(uses)
    assert choose_chips(wanted, chips, uses, dict(reversed(closed.items()))) == first
