"""The alarms that a site has without writing any: by kind of equipment and quantity.

Owns the starting values. Refuses to know a site's own rules, which replace these by key. Called where a site's model
is loaded.

Deadbands and delays start from the values that EEMUA 191 gives by kind of signal (temperature 1 % and 60 s, pressure
2 % and 15 s, level 5 % and 60 s, flow 5 % and 15 s), taken here as engineering values; limits of inlet air are those of
ASHRAE TC9.9 (2021) class A2 less a warning's distance. Leak, smoke, doors and the UPS on battery wait 2 s at most and
latch where a person has to look.
"""

from collections.abc import Iterator, Mapping

import msgspec

from madang.machine.alarm_defaults_host import is_host_state, make_host_rules
from madang.model import (
    AlarmKey,
    AlarmPriority,
    AlarmRole,
    AlarmRule,
    Condition,
    Equipment,
    EquipmentKind,
    Point,
    PointKind,
    Quantity,
    SiteModel,
)
from madang.policy.facility.signs import Sign, can_show, words_of

K = EquipmentKind
P = AlarmPriority
R = AlarmRole
C = Condition

_VALUES = "engineering value after EEMUA 191"


class _Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on a quantity; `ratio`: of the rating that belongs to the quantity, instead of `limit`."""

    kinds: tuple[EquipmentKind, ...]
    quantity: Quantity
    contexts: tuple[str, ...] = ()
    condition: Condition
    limit: float = 0.0
    ratio: float = 0.0
    deadband: float = 0.0
    on_delay_s: float = 0.0
    off_delay_s: float = 0.0
    priority: AlarmPriority = P.MEDIUM
    role: AlarmRole = R.NONE
    ko: str
    en: str
    source: str = _VALUES


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm on a sign."""

    sign: Sign
    on_delay_s: float = 2.0
    off_delay_s: float = 5.0
    priority: AlarmPriority = P.HIGH
    is_latching: bool = False
    role: AlarmRole = R.NONE
    ko: str
    en: str


_AIRED = (K.RACK, K.SERVER, K.STORAGE, K.SENSOR, K.ROOM)
_COOLERS = (K.COOLING_UNIT, K.CHILLER, K.CDU, K.PUMP)
_SUPPLIES = (K.UTILITY, K.METER, K.UPS, K.PANEL, K.BREAKER, K.RACK_PDU)
_ASHRAE = "ASHRAE TC9.9 2021, class A2"

_LIMITS = (
    _Limit(
        kinds=_AIRED, quantity=Quantity.TEMPERATURE, contexts=("inlet", "ambient"), condition=C.HIGH, limit=30.0,
        priority=P.MEDIUM, role=R.TEMPERATURE, ko="흡기 온도 높음", en="inlet temperature high", source=_ASHRAE,
        deadband=0.5, on_delay_s=60.0, off_delay_s=60.0,
    ),
    _Limit(
        kinds=_AIRED, quantity=Quantity.TEMPERATURE, contexts=("inlet", "ambient"), condition=C.HIGH_HIGH, limit=32.0,
        deadband=0.5, on_delay_s=2.0, off_delay_s=60.0, priority=P.HIGH, role=R.TEMPERATURE,
        ko="흡기 온도 한계 초과", en="inlet temperature above the limit", source=_ASHRAE,
    ),
    _Limit(
        kinds=_AIRED, quantity=Quantity.TEMPERATURE, contexts=("inlet",), condition=C.RATE, limit=2.0, deadband=0.2,
        off_delay_s=60.0, priority=P.MEDIUM, role=R.TEMPERATURE, ko="흡기 온도 급변",
        en="inlet temperature changes fast",
    ),
    _Limit(
        kinds=_COOLERS, quantity=Quantity.TEMPERATURE, contexts=("supply", "outlet"), condition=C.HIGH, limit=27.0,
        deadband=0.5, on_delay_s=15.0, off_delay_s=60.0, priority=P.HIGH, role=R.COOLING,
        ko="냉방 공급 온도 높음", en="supply temperature high", source=_ASHRAE,
    ),
    _Limit(
        kinds=_COOLERS, quantity=Quantity.FLOW, condition=C.LOW, ratio=0.5, deadband=0.05, on_delay_s=2.0,
        off_delay_s=15.0, priority=P.HIGH, role=R.COOLING, ko="유량 부족", en="flow low",
    ),
    _Limit(
        kinds=_AIRED, quantity=Quantity.HUMIDITY, condition=C.HIGH, limit=70.0, deadband=2.0, on_delay_s=60.0,
        off_delay_s=60.0, priority=P.LOW, ko="습도 높음", en="humidity high", source=_ASHRAE,
    ),
    _Limit(
        kinds=_SUPPLIES, quantity=Quantity.CURRENT, condition=C.HIGH, ratio=0.8, deadband=0.02, on_delay_s=15.0,
        off_delay_s=15.0, priority=P.MEDIUM, ko="연속 부하 80 % 초과", en="above 80 % of the continuous rating",
    ),
    _Limit(
        kinds=_SUPPLIES, quantity=Quantity.CURRENT, condition=C.HIGH_HIGH, ratio=1.0, deadband=0.02, on_delay_s=1.0,
        off_delay_s=15.0, priority=P.CRITICAL, ko="정격 전류 초과", en="above the rating",
    ),
    _Limit(
        kinds=_SUPPLIES, quantity=Quantity.POWER, condition=C.HIGH, ratio=0.8, deadband=0.02, on_delay_s=15.0,
        off_delay_s=15.0, priority=P.MEDIUM, ko="연속 부하 80 % 초과", en="above 80 % of the continuous rating",
    ),
    _Limit(
        kinds=_SUPPLIES, quantity=Quantity.POWER, condition=C.HIGH_HIGH, ratio=1.0, deadband=0.02, on_delay_s=1.0,
        off_delay_s=15.0, priority=P.CRITICAL, ko="정격 전력 초과", en="above the rating",
    ),
    _Limit(
        kinds=(K.SERVER, K.RACK_PDU, K.PANEL, K.BREAKER), quantity=Quantity.VOLTAGE, contexts=("input",),
        condition=C.LOW, ratio=0.85, deadband=0.02, on_delay_s=2.0, off_delay_s=5.0, priority=P.HIGH, role=R.SUPPLY,
        ko="입력 전원 상실", en="input lost",
    ),
    _Limit(
        kinds=(K.UPS, K.BATTERY), quantity=Quantity.CHARGE, condition=C.LOW, limit=50.0, deadband=5.0, on_delay_s=10.0,
        off_delay_s=60.0, priority=P.HIGH, ko="배터리 잔량 부족", en="battery charge low",
    ),
    _Limit(
        kinds=(K.UPS, K.BATTERY), quantity=Quantity.HEALTH, condition=C.LOW, limit=80.0, deadband=2.0, on_delay_s=60.0,
        off_delay_s=60.0, priority=P.LOW, ko="배터리 수명 저하", en="battery worn",
    ),
    _Limit(
        kinds=(K.STORAGE, K.SERVER), quantity=Quantity.LEVEL, condition=C.HIGH, limit=90.0, deadband=5.0,
        on_delay_s=60.0, off_delay_s=60.0, priority=P.MEDIUM, ko="저장 공간 부족", en="nearly full",
    ),
)  # fmt: skip

_STATES = (
    _State(
        sign=Sign.UTILITY_LOST, role=R.SUPPLY, priority=P.CRITICAL, ko="상용 전원 상실", en="utility power lost"
    ),
    _State(sign=Sign.ON_BATTERY, role=R.SUPPLY, priority=P.CRITICAL, ko="UPS 배터리 운전", en="UPS on battery"),
    _State(sign=Sign.BATTERY_LOW, priority=P.CRITICAL, ko="UPS 배터리 부족 신호", en="UPS says battery low"),
    _State(sign=Sign.OUTPUT_LOST, role=R.OUTAGE, priority=P.CRITICAL, ko="출력 전원 상실", en="output lost"),
    _State(sign=Sign.BREAKER_OPEN, role=R.OUTAGE, priority=P.CRITICAL, ko="차단기 열림", en="breaker open"),
    _State(sign=Sign.COOLING_LOST, role=R.COOLING, priority=P.CRITICAL, ko="냉방 정지", en="cooling lost"),
    _State(sign=Sign.LEAK, on_delay_s=0.0, is_latching=True, priority=P.CRITICAL, ko="누수 감지", en="leak"),
    _State(sign=Sign.SMOKE, on_delay_s=0.0, is_latching=True, priority=P.CRITICAL, ko="연기 감지", en="smoke"),
    _State(
        sign=Sign.FIRE_RELEASED, on_delay_s=0.0, is_latching=True, priority=P.CRITICAL, ko="소화 설비 방출",
        en="fire suppression released",
    ),
    _State(sign=Sign.DOOR_FORCED, on_delay_s=0.0, is_latching=True, ko="출입문 강제 개방", en="door forced"),
    _State(sign=Sign.DOOR_OPEN, on_delay_s=120.0, priority=P.MEDIUM, ko="출입문 열려 있음", en="door held open"),
)  # fmt: skip

_SILENCE_PRIORITY = {
    K.UPS: P.HIGH,
    K.COOLING_UNIT: P.HIGH,
    K.CHILLER: P.HIGH,
    K.CDU: P.HIGH,
    K.LEAK_DETECTOR: P.HIGH,
    K.SMOKE_DETECTOR: P.HIGH,
    K.FIRE_SUPPRESSION: P.HIGH,
    K.INTERLOCK: P.HIGH,
}
"""A blind spot is as urgent as what it hides; all else is MEDIUM."""

_TROUBLE_WORDS = ("active", "alarm", "critical", "failed", "fault", "tripped", "yes")
"""What alarms of a device's own say; a mere warning is left to the console."""

_NAMED_POWER = frozenset({"input", "output", ""})
"""Contexts of a power or current that the whole rating applies to."""


def default_rules(model: SiteModel, devices: Mapping[str, str] | None = None) -> tuple[AlarmRule, ...]:
    """Return the rules of a site's model in the order of its points, then those on silence.

    Every point with a rule has one on its reading being lost. All equipment has one on its silence; where several
    devices read one piece of it, each of them has one too, or the others would hide that it is silent.

    Args:
        model: the site.
        devices: the device that reads each point; None where that is not known.
    """
    equipment = {one.equipment_id: one for one in model.equipment}
    rules: dict[AlarmKey, AlarmRule] = {}
    for point in model.points:
        owner = equipment.get(point.equipment_id)
        if owner is None or point.kind in (PointKind.COMMAND, PointKind.SETPOINT):
            continue
        # A host's own come first: of two rules with one key the first holds.
        found = [*make_host_rules(model, point), *_make_limits(model, owner, point)]
        found += [] if is_host_state(point) else _make_states(model, owner, point)
        if found:
            found.append(_make_silence(model, owner, point.point_id, Condition.READING_LOST))
        for rule in found:
            rules.setdefault(rule.key, rule)
    for equipment_id in dict.fromkeys(point.equipment_id for point in model.points):
        if equipment_id in equipment:
            rule = _make_silence(model, equipment[equipment_id], "", Condition.COMMS_LOSS)
            rules.setdefault(rule.key, rule)
            for rule in _make_device_silences(model, equipment[equipment_id], devices or {}):
                rules.setdefault(rule.key, rule)
    return tuple(rules.values())


def _make_limits(model: SiteModel, owner: Equipment, point: Point) -> list[AlarmRule]:
    made = []
    for row in _LIMITS:
        if owner.kind not in row.kinds or point.quantity is not row.quantity:
            continue
        if row.contexts and not any(part in (point.context or point.name) for part in row.contexts):
            continue
        rating = _rating_of(owner, point) if row.ratio else None
        if row.ratio and rating is None:
            continue
        scale = rating or 1.0
        made.append(
            AlarmRule(
                key=AlarmKey(model.site, owner.equipment_id, point.point_id, row.condition.value),
                condition=row.condition,
                priority=row.priority,
                limit=row.ratio * scale if row.ratio else row.limit,
                deadband=row.deadband * scale,
                on_delay_s=row.on_delay_s,
                off_delay_s=row.off_delay_s,
                role=row.role,
                title_ko=row.ko,
                title_en=row.en,
                source=row.source,
            )
        )
    return made


def _rating_of(owner: Equipment, point: Point) -> float | None:
    ratings = owner.ratings
    match point.quantity:
        case Quantity.CURRENT:
            return ratings.current_a
        case Quantity.FLOW:
            return ratings.flow_l_min
        case Quantity.VOLTAGE:
            return ratings.voltage_v
        case Quantity.POWER if point.context in _NAMED_POWER:
            if ratings.power_w is None and ratings.current_a and ratings.voltage_v:
                return ratings.current_a * ratings.voltage_v * ratings.phases
            return ratings.power_w
    return None


def _make_states(model: SiteModel, owner: Equipment, point: Point) -> list[AlarmRule]:
    signs = can_show(point, owner.kind)
    is_health = point.name.startswith("state_health")
    if not signs and point.quantity is Quantity.STATE and (point.kind is PointKind.ALARM or is_health):
        return [_make_general(model, owner, point)]
    return [
        AlarmRule(
            key=AlarmKey(model.site, owner.equipment_id, point.point_id, row.sign.value),
            condition=Condition.STATE,
            priority=row.priority,
            words=words_of(row.sign, point, owner.kind),
            on_delay_s=row.on_delay_s,
            off_delay_s=row.off_delay_s,
            is_latching=row.is_latching,
            role=row.role,
            title_ko=row.ko,
            title_en=row.en,
            source=_VALUES,
        )
        for row in _STATES
        if row.sign in signs
    ]


def _make_general(model: SiteModel, owner: Equipment, point: Point) -> AlarmRule:
    """Return the rule of an alarm of the device's own, or of its health, that no sign stands for."""
    name = point.name.removeprefix("alarm_").removeprefix("state_").replace("_", " ")
    return AlarmRule(
        key=AlarmKey(model.site, owner.equipment_id, point.point_id, Condition.STATE.value),
        condition=Condition.STATE,
        priority=P.MEDIUM,
        words=_TROUBLE_WORDS,
        on_delay_s=5.0,
        off_delay_s=15.0,
        title_ko=f"장치 경보: {name}",
        title_en=f"device says: {name}",
        source=_VALUES,
    )


def _make_silence(model: SiteModel, owner: Equipment, point_id: str, condition: Condition) -> AlarmRule:
    is_comms = condition is Condition.COMMS_LOSS
    return AlarmRule(
        key=AlarmKey(model.site, owner.equipment_id, point_id, condition.value),
        condition=condition,
        priority=_SILENCE_PRIORITY.get(owner.kind, P.MEDIUM) if is_comms else P.LOW,
        role=R.SILENCE if is_comms else R.READING,
        title_ko="통신 두절" if is_comms else "측정값 없음",
        title_en="does not answer" if is_comms else "no usable reading",
        source=_VALUES,
    )


def _make_device_silences(model: SiteModel, owner: Equipment, devices: Mapping[str, str]) -> Iterator[AlarmRule]:
    """Yield a rule for each of several devices that read one piece of equipment; writing alone does not count."""
    by_device: dict[str, list[str]] = {}
    for point in model.points:
        is_read = point.kind not in (PointKind.COMMAND, PointKind.SETPOINT)
        if point.equipment_id == owner.equipment_id and is_read and point.point_id in devices:
            by_device.setdefault(devices[point.point_id], []).append(point.point_id)
    if len(by_device) < 2:
        return
    for device, points in by_device.items():
        yield AlarmRule(
            key=AlarmKey(model.site, owner.equipment_id, "", f"{Condition.COMMS_LOSS.value}:{device}"),
            condition=Condition.COMMS_LOSS,
            priority=_SILENCE_PRIORITY.get(owner.kind, P.MEDIUM),
            over=tuple(points),
            role=R.READING,
            title_ko=f"장치 {device} 통신 두절",
            title_en=f"its device {device} does not answer",
            source=_VALUES,
        )
