"""Root causes along the power graph: what a lost supply explains, and that it hides no fault of its own."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.small_site import edge, equipment, feeds, point

from madang.core import SiteId
from madang.model import (
    AlarmKey,
    AlarmPriority,
    AlarmRole,
    AlarmRule,
    Condition,
    EdgeKind,
    PointKind,
    Quantity,
    SiteModel,
)
from madang.model import EquipmentKind as K
from madang.policy.facility.causes import SLACK_S, CauseIndex, Standing, find_causes
from madang.policy.facility.graph import SiteGraph
from madang.policy.facility.outage import Outages
from madang.policy.facility.signs import SAFETY

P = AlarmPriority
R = AlarmRole
LOSS_S = 1000.0
LATER_S = 1200.0
COOLERS = ("cooler_a", "cooler_b", "cooler_c")


def site(pieces, edges, points=()) -> SiteModel:
    return SiteModel(site=SiteId("here"), equipment=tuple(pieces), edges=tuple(edges), points=tuple(points))


def index_of(model: SiteModel) -> CauseIndex:
    return CauseIndex(SiteGraph(model))


def standing(
    owner: str,
    sign: str,
    role: AlarmRole,
    *,
    begun_s: float = LOSS_S,
    name: str = "state",
    priority: AlarmPriority = P.CRITICAL,
    **values: object,
) -> tuple[str, Standing]:
    key = AlarmKey(SiteId("here"), owner, f"{owner}.{name}", sign)
    rule = AlarmRule(key=key, condition=Condition.STATE, priority=priority, role=role)
    return f"{owner}/{name}/{sign}", Standing(rule=rule, begun_s=begun_s, **values)


def on_battery(ups: str, **values) -> tuple[str, Standing]:
    return standing(ups, "on_battery", R.SUPPLY, **values)


def no_cooling(cooler: str, **values) -> tuple[str, Standing]:
    return standing(cooler, "cooling_lost", R.COOLING, **values)


def cabinet() -> SiteModel:
    """Return a breaker with a UPS and a cooling unit on it, another unit above it, and a pump behind the UPS."""
    return site(
        [
            equipment("utility", K.UTILITY, voltage_v=220.0),
            equipment("meter", K.METER),
            equipment("breaker", K.BREAKER),
            equipment("ups", K.UPS, voltage_v=220.0),
            equipment("cooler_a", K.COOLING_UNIT, power_w=1300.0),
            equipment("cooler_b", K.COOLING_UNIT, power_w=1300.0),
            equipment("pump", K.PUMP),
            equipment("leak", K.LEAK_DETECTOR),
            equipment("rack", K.RACK),
        ],
        [
            feeds("utility", "breaker"),
            feeds("utility", "cooler_b"),
            feeds("breaker", "ups"),
            feeds("breaker", "cooler_a"),
            feeds("ups", "pump"),
            feeds("breaker", "leak"),
            edge(EdgeKind.MEASURES, "meter", "utility"),
            edge(EdgeKind.COOLS, "cooler_a", "rack"),
        ],
        [
            point("meter.voltage", Quantity.VOLTAGE, PointKind.METER),
            point("meter.power", Quantity.POWER, PointKind.METER),
            point("ups.voltage_input", Quantity.VOLTAGE, context="input"),
            point("ups.voltage", Quantity.VOLTAGE, context="output"),
            point("ups.power", Quantity.POWER, PointKind.METER, "output"),
            msgspec.structs.replace(
                point("ups.state_source", Quantity.STATE, PointKind.STATUS),
                states={1: "other", 2: "none", 3: "normal", 5: "battery"},
            ),
            point("cooler_a.power", Quantity.POWER, PointKind.METER),
            point("cooler_a.power_setpoint", Quantity.POWER, PointKind.SETPOINT),
        ],
    )


def test_a_ups_on_its_battery_explains_what_hangs_on_the_same_supply_without_a_ups():
    index = index_of(cabinet())
    battery, silent = on_battery("ups"), standing("cooler_b", "comms_loss", R.SILENCE, priority=P.HIGH)
    alarms = dict([battery, no_cooling("cooler_a"), no_cooling("cooler_b"), silent])
    assert find_causes(index, alarms) == dict.fromkeys(set(alarms) - {battery[0]}, battery[0])


def test_it_explains_nothing_that_it_carries_and_no_silence_of_what_watches():
    index = index_of(cabinet())
    guard = standing("leak", "comms_loss", R.SILENCE, priority=P.HIGH)
    alarms = dict([on_battery("ups"), no_cooling("pump"), standing("pump", "comms_loss", R.SILENCE), guard])
    assert find_causes(index, alarms) == {}


def test_a_reading_after_the_loss_says_how_far_up_the_power_is_gone():
    index = index_of(cabinet())
    battery, a, b = on_battery("ups"), no_cooling("cooler_a"), no_cooling("cooler_b")
    alarms = dict([battery, a, b])
    assert find_causes(index, alarms, {"utility": LOSS_S - 1.0}).keys() == {a[0], b[0]}, "of before: says nothing"
    assert find_causes(index, alarms, {"utility": LOSS_S + SLACK_S}).keys() == {a[0], b[0]}, "may be of before"
    assert find_causes(index, alarms, {"utility": LATER_S}) == {a[0]: battery[0]}, "the breaker, not the utility"
    assert find_causes(index, alarms, {"ups": LATER_S}) == {}, "it has its input and tests its battery"
    assert find_causes(index, alarms, {"cooler_a": LATER_S}) == {}, "it draws: nothing above it is dead"
    assert find_causes(index, alarms, {"cooler_b": LATER_S}) == {a[0]: battery[0]}


def test_what_had_failed_before_the_mains_were_lost_stands_for_itself():
    index = index_of(cabinet())
    battery = on_battery("ups", clear_s=LOSS_S - 2.0)
    early = no_cooling("cooler_a", begun_s=LOSS_S - 3.0 - SLACK_S)
    near = no_cooling("cooler_b", begun_s=LOSS_S - 2.0 - SLACK_S)
    later = no_cooling("cooler_a", name="power_lost", begun_s=LOSS_S + 1.0)
    causes = find_causes(index, dict([battery, early, near, later]))
    assert causes.keys() == {near[0], later[0]}
    assert causes[near[0]] == battery[0], "a slow UPS may say so later"
    assert find_causes(index, dict([on_battery("ups"), early])) == {early[0]: battery[0]}, "never seen on its input"


def test_a_loss_that_is_seen_to_be_over_takes_nothing_new_and_keeps_what_it_has():
    index = index_of(cabinet())
    battery = on_battery("ups", is_met=False)
    a, b = no_cooling("cooler_a", cause=battery[0]), no_cooling("cooler_b")
    assert find_causes(index, dict([battery, a, b]), {"ups": LATER_S}) == {a[0]: battery[0]}


def test_of_several_upss_on_one_supply_the_first_stands_for_the_others():
    model = cabinet()
    model = msgspec.structs.replace(
        model,
        equipment=(*model.equipment, equipment("ups_b", K.UPS), equipment("ups_c", K.UPS)),
        edges=(*model.edges, feeds("utility", "ups_b"), feeds("ups_b", "ups_c")),
    )
    first, second = on_battery("ups_b", begun_s=LOSS_S), on_battery("ups", begun_s=LOSS_S + 2.0)
    alarms = dict([second, first, no_cooling("cooler_a")])
    assert find_causes(index_of(model), alarms) == {second[0]: first[0], "cooler_a/state/cooling_lost": first[0]}
    other = on_battery("ups_c", begun_s=LOSS_S + 3.0)
    assert other[0] not in find_causes(index_of(model), dict([second, other])), "ups_b carries it"


def test_one_unit_that_says_it_thrice_is_one_alarm():
    index = index_of(cabinet())
    unit, part = no_cooling("cooler_a", name="unit", begun_s=10.0), no_cooling("cooler_a", name="part", begun_s=9.0)
    supply = standing("cooler_a", "high", R.COOLING, begun_s=5.0, priority=P.HIGH)
    other = no_cooling("cooler_b", begun_s=1.0)
    assert find_causes(index, dict([unit, part, supply, other])) == {unit[0]: part[0], supply[0]: part[0]}
    shelved = (part[0], msgspec.structs.replace(part[1], is_shelved=True))
    assert find_causes(index, dict([unit, shelved, supply])) == {supply[0]: unit[0]}, (
        "what lies on the shelf silences nothing"
    )
    low = standing("ups", "battery_low", R.NONE, name="a"), standing("ups", "battery_low", R.NONE, name="b")
    assert find_causes(index, dict(low)) == {low[1][0]: low[0][0]}, "without a role too"
    leaks = standing("leak", "leak", R.NONE, name="a"), standing("leak", "leak", R.NONE, name="b")
    assert find_causes(index, dict(leaks)) == {}


def test_the_stronger_limit_of_a_point_stands_for_the_weaker():
    def limit(owner, condition, priority):
        key = AlarmKey(SiteId("here"), owner, f"{owner}.power", condition.value)
        rule = AlarmRule(key=key, condition=condition, priority=priority)
        return f"{owner}/{condition}", Standing(rule=rule, begun_s=1.0)

    high, more = limit("breaker", Condition.HIGH, P.MEDIUM), limit("breaker", Condition.HIGH_HIGH, P.CRITICAL)
    other = limit("ups", Condition.HIGH, P.MEDIUM)
    assert find_causes(index_of(cabinet()), dict([high, more, other])) == {high[0]: more[0]}


def test_a_dead_pdu_explains_what_has_no_other():
    model = site(
        [equipment(name, K.RACK_PDU) for name in ("pdu_a", "pdu_b")] + [equipment(n, K.SERVER) for n in ("one", "two")],
        [feeds("pdu_a", "one"), feeds("pdu_a", "two"), feeds("pdu_b", "two")],
    )
    out = {name: standing(name, "output_lost", R.OUTAGE) for name in ("pdu_a", "pdu_b")}
    silent = {name: standing(name, "comms_loss", R.SILENCE, priority=P.MEDIUM) for name in ("one", "two")}
    one = find_causes(index_of(model), dict([out["pdu_a"], *silent.values()]))
    assert one == {silent["one"][0]: out["pdu_a"][0]}, "the other has its second cord"
    both = find_causes(index_of(model), dict([*out.values(), *silent.values()]))
    assert both.keys() == {silent["one"][0], silent["two"][0]}


def test_which_readings_show_power():
    points = Outages(SiteGraph(cabinet())).power_points
    assert points.keys() == {
        "meter.voltage", "meter.power", "ups.voltage_input", "ups.state_source", "cooler_a.power",
    }, "not what a UPS gives, nor what is commanded"  # fmt: skip
    assert points["meter.voltage"].equipment_id == "utility"
    assert (points["meter.voltage"].shows(111.0, ""), points["meter.voltage"].shows(109.0, "")) == (True, False)
    assert (points["cooler_a.power"].shows(27.0, ""), points["cooler_a.power"].shows(25.0, "")) == (True, False)
    said = {word: points["ups.state_source"].shows(1.0, word) for word in ("normal", "battery", "none", "other")}
    assert said == {"normal": True, "battery": False, "none": False, "other": False}


# Any site, any loss: the world below has power or not by its own simple rule, and devices that tell the truth late.


class World(msgspec.Struct):
    model: SiteModel
    fed_by: dict[str, tuple[str, ...]]
    lost: frozenset[str]
    own_s: dict[str, float]
    late_s: dict[str, float]
    read: frozenset[str]

    def has_power(self, name: str) -> bool:
        if name in self.lost:
            return False
        return name.startswith("ups") or not self.fed_by[name] or any(map(self.has_power, self.fed_by[name]))

    def is_on_battery(self, ups: str) -> bool:
        return ups not in self.lost and not any(map(self.has_power, self.fed_by[ups]))

    def alarms(self) -> dict[str, Standing]:
        found = []
        for name in self.fed_by:
            seen = {"begun_s": LOSS_S + self.late_s[name], "clear_s": LOSS_S + self.late_s[name] - 5.0}
            if name.startswith("ups") and self.is_on_battery(name):
                found.append(on_battery(name, **seen))
            if name in self.own_s and (self.own_s[name] < LOSS_S or self.has_power(name)):
                found.append(no_cooling(name, begun_s=self.own_s[name], clear_s=self.own_s[name] - 1.0))
            elif name in COOLERS and not self.has_power(name):
                found.append(no_cooling(name, **seen))
        return dict(found)

    def powered_s(self) -> dict[str, float]:
        def is_fed(name: str) -> bool:
            return self.has_power(name) and not (name.startswith("ups") and self.is_on_battery(name))

        return {name: LATER_S if is_fed(name) else LOSS_S + self.late_s[name] - 5.0 for name in self.read}


MORE = settings(max_examples=5 * settings.default.max_examples)
"""Worlds in which it matters are a few in a hundred, and each costs a millisecond."""


@st.composite
def worlds(draw) -> World:
    """Sources, then carriers on what was there before them, then cooling units: any tree or mesh without loops."""
    fed_by: dict[str, tuple[str, ...]] = {"utility": ()}
    if draw(st.booleans()):
        fed_by["generator"] = ()
    kinds = {"utility": K.UTILITY, "generator": K.GENERATOR}
    for number in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from([K.PANEL, K.BREAKER, K.UPS, K.UPS]))
        name = f"{'ups' if kind is K.UPS else 'carrier'}_{number}"
        fed_by[name] = draw(st.lists(st.sampled_from(list(fed_by)), min_size=1, max_size=2, unique=True).map(tuple))
        kinds[name] = kind
    places = list(fed_by)
    for name in COOLERS:
        fed_by[name] = draw(st.lists(st.sampled_from(places), min_size=1, max_size=2, unique=True).map(tuple))
        kinds[name] = K.COOLING_UNIT
    model = site(
        [equipment(name, kinds[name]) for name in fed_by],
        [feeds(source, name) for name, sources in fed_by.items() for source in sources],
    )
    can_fail = [name for name in places if kinds[name] is not K.UPS]
    return World(
        model=model,
        fed_by=fed_by,
        lost=draw(st.frozensets(st.sampled_from(can_fail), min_size=1, max_size=2)),
        own_s=draw(st.dictionaries(st.sampled_from(COOLERS), st.sampled_from([900.0, LOSS_S, 1100.0]), min_size=1)),
        late_s={name: draw(st.sampled_from([0.0, 0.5, 2.0, 4.5])) for name in fed_by},
        read=draw(st.just(frozenset(fed_by)) | st.frozensets(st.sampled_from(list(fed_by)))),
    )


def goes_only_through_ups(world: World, name: str) -> bool:
    return all(source.startswith("ups") for source in world.fed_by[name])


@MORE
@given(worlds())
def test_no_fault_of_its_own_is_put_behind_lost_power(world):
    causes = find_causes(index_of(world.model), world.alarms(), world.powered_s())
    for effect in causes:
        name = effect.partition("/")[0]
        assert not goes_only_through_ups(world, name) or name.startswith("ups"), "it had power all the time"
        assert world.own_s.get(name) != 900.0, "it failed before"
        if name in COOLERS and world.has_power(name):
            assert name not in world.read, "it was seen to have power"


@MORE
@given(worlds())
def test_where_everything_is_read_what_has_power_is_never_put_behind_its_loss(world):
    world.read = frozenset(world.fed_by)
    for effect in find_causes(index_of(world.model), world.alarms(), world.powered_s()):
        name = effect.partition("/")[0]
        assert not world.has_power(name) or name.startswith("ups")


@MORE
@given(worlds())
def test_lost_mains_are_one_alarm_on_top_where_a_ups_hangs_on_them(world):
    """With nothing but the utility to feed the site and no fault of their own, all units stand under the first UPS."""
    world.fed_by = {
        name: tuple("utility" if source == "generator" else source for source in sources)
        for name, sources in world.fed_by.items()
    }
    world.model = msgspec.structs.replace(
        world.model,
        edges=tuple(feeds(source, name) for name, sources in world.fed_by.items() for source in set(sources)),
    )
    world.lost, world.own_s = frozenset({"utility"}), {}
    alarms = world.alarms()
    causes = find_causes(index_of(world.model), alarms, world.powered_s())
    upses = [name for name in alarms if "on_battery" in name]
    if upses:
        first = min(upses, key=lambda name: (alarms[name].begun_s, name))
        assert causes == dict.fromkeys(set(alarms) - {first}, first)
    else:
        assert causes == {}


signs = st.sampled_from(
    [
        ("utility", "utility_lost", R.SUPPLY),
        ("carrier_0", "breaker_open", R.OUTAGE),
        ("ups_0", "on_battery", R.SUPPLY),
        *((name, "cooling_lost", R.COOLING) for name in COOLERS),
    ]
) | st.tuples(
    st.sampled_from(["utility", "carrier_0", "ups_0", *COOLERS]),
    st.sampled_from([*SAFETY, "state"]),
    st.sampled_from(AlarmRole),
)
others = st.tuples(
    signs, st.sampled_from([P.CRITICAL, P.HIGH]), st.sampled_from([900.0, LOSS_S, 1100.0]), st.booleans(), st.booleans()
)


@MORE
@given(worlds(), st.lists(others, min_size=2, max_size=8))
def test_whatever_is_active_safety_is_on_top_and_causes_are_in_service_on_top_and_no_less_urgent(world, extra):
    alarms = world.alarms()
    for number, ((owner, sign, role), priority, begun_s, is_out, is_met) in enumerate(extra):
        name, one = standing(owner, sign, role, priority=priority, begun_s=begun_s, name=f"n{number}")
        alarms[name] = msgspec.structs.replace(one, is_out=is_out, is_met=is_met)
    causes = find_causes(index_of(world.model), alarms, world.powered_s())
    for effect, cause in causes.items():
        assert alarms[effect].rule.key.condition not in SAFETY
        assert cause not in causes
        assert not alarms[cause].is_out
        assert alarms[cause].rule.priority.rank <= alarms[effect].rule.priority.rank
