"""What the check of a site says, in English and Korean, and how grave each thing is.

Owns the words. Refuses to look at sites. `{…}` are filled by the rule that finds it.
"""

from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """How grave a finding is: with an error the site may not be run as the file says."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """0 for the gravest."""
        return list(Severity).index(self)


class RuleText(msgspec.Struct, frozen=True):
    """One rule: its gravity, why it matters and what to do, in both languages."""

    severity: Severity
    why_en: str
    why_ko: str
    next_en: str
    next_ko: str


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

TEXTS: dict[str, RuleText] = {
    "unknown_equipment": RuleText(
        _E,
        "an edge names {other}, which is not there",
        "연결이 없는 장비 {other}를 가리킵니다",
        "add the equipment or take the edge out",
        "장비를 추가하거나 연결을 지우세요",
    ),
    "feed_loop": RuleText(
        _E,
        "it feeds itself through {other}: no power can come from there",
        "{other}를 거쳐 자기 자신에게 급전합니다",
        "turn one of these feeds round",
        "급전 방향 하나를 바로잡으세요",
    ),
    "not_fed": RuleText(
        _E,
        "no utility, generator or UPS reaches it",
        "수전, 발전기, UPS 어디에서도 전원이 오지 않습니다",
        "name what it is plugged into: fed_by",
        "fed_by에 전원을 적으세요",
    ),
    "phase_missing": RuleText(
        _E,
        "single-phase, on the three-phase {other}, and its phase is not named",
        "3상 {other}에 물린 단상 장비인데 상이 없습니다",
        "write the phase: fed_by = ['{other} L1']",
        "상을 적으세요: fed_by = ['{other} L1']",
    ),
    "phase_too_few": RuleText(
        _E,
        "three-phase, but {other} gives one phase only",
        "3상 장비인데 {other}는 단상만 공급합니다",
        "feed it from three phases, or correct `phases`",
        "3상으로 급전하거나 phases 값을 고치세요",
    ),
    "phase_not_there": RuleText(
        _E,
        "named on {phase}, but {other} is itself on {has}",
        "{phase}로 적혔으나 {other}는 {has}에 있습니다",
        "name the phase that {other} hangs on",
        "{other}의 상에 맞추세요",
    ),
    "voltage_differs": RuleText(
        _E,
        "made for {own} V, {other} gives {has} V between phase and neutral",
        "정격 {own} V인데 {other}는 상전압 {has} V입니다",
        "check both name plates; voltage_v is phase to neutral",
        "명판을 확인하세요(voltage_v는 상전압)",
    ),
    "feed_twice": RuleText(
        _E,
        "the same feed from {other} is written twice: it would be counted twice",
        "{other}로부터의 같은 급전이 두 번 적혀 중복 계산됩니다",
        "take one out, or name the second source",
        "하나를 지우거나 두 번째 전원을 적으세요",
    ),
    "shares_wrong": RuleText(
        _E,
        "the shares of its feeds add up to {sum}, not to 1",
        "급전 분담의 합이 1이 아니라 {sum}입니다",
        "give every feed a share, or none",
        "모두 적거나 모두 비우세요",
    ),
    "meter_twice": RuleText(
        _E,
        "{point} and {other} both count the draw of {what}",
        "{point}와 {other}가 {what}의 전력을 함께 셉니다",
        "keep one of them in this list; put the other into it_check",
        "하나만 남기고 다른 것은 it_check에 적으세요",
    ),
    "meters_overlap": RuleText(
        _W,
        "{point} and {other} both measure it",
        "{point}와 {other}가 같은 것을 계측합니다",
        "say in the titles which one counts; nothing adds them up",
        "어느 계량기를 쓸지 title에 적으세요",
    ),
    "same_feed": RuleText(
        _E,
        "both cords hang on {other}: with it everything is gone",
        "두 코드가 모두 {other}에 물려 있어 함께 꺼집니다",
        "move one cord to the other feed",
        "한 코드를 다른 계통으로 옮기세요",
    ),
    "same_label": RuleText(
        _E,
        "all of its cords are on feed {other}",
        "모든 코드가 {other} 계통에 있습니다",
        "move one cord to the other feed, or correct its label",
        "한 코드를 다른 계통으로 옮기거나 표기를 고치세요",
    ),
    "single_cord": RuleText(
        _W,
        "critical, with one cord only",
        "중요 장비인데 전원 코드가 하나입니다",
        "feed it from A and B, or through a transfer switch",
        "A·B 이중으로 급전하거나 절체기를 쓰세요",
    ),
    "group_short": RuleText(
        _E,
        "group {group} has {count} and needs {needed}",
        "{group} 그룹에 {count}대뿐이며 {needed}대가 필요합니다",
        "add units or correct redundancy_needed",
        "장비를 늘리거나 redundancy_needed를 고치세요",
    ),
    "group_no_spare": RuleText(
        _W,
        "group {group} needs all {count} of its units: there is no spare",
        "{group} 그룹은 {count}대 모두 필요하여 예비가 없습니다",
        "add a unit; until then one failure takes the load down",
        "예비 장비를 추가하세요",
    ),
    "no_group": RuleText(
        _W,
        "nothing stands in for it: redundancy_group is empty",
        "대신할 장비가 없습니다(redundancy_group 없음)",
        "name its group, or accept that its loss stops the site",
        "이중화 그룹을 적거나 단일 고장을 감수하세요",
    ),
    "overloaded": RuleText(
        _E,
        "planned with {load} of at most {limit} continuously",
        "계획 부하 {load}가 연속 한도 {limit}를 넘습니다",
        "move load away or take a larger one; breakers carry 80 % for hours",
        "부하를 옮기거나 용량을 키우세요(연속 부하는 차단기 정격의 80 %)",
    ),
    "overloaded_phase": RuleText(
        _E,
        "{phase} is planned with {load} of at most {limit} continuously",
        "{phase}상 계획 부하 {load}가 한도 {limit}를 넘습니다",
        "move single-phase loads to another phase",
        "단상 부하를 다른 상으로 옮기세요",
    ),
    "overloaded_after_loss": RuleText(
        _E,
        "after the loss of {other} it has {load} of at most {limit}",
        "{other} 상실 시 부하 {load}가 한도 {limit}를 넘습니다",
        "the survivor carries everything double-corded: reduce the load, or cap it",
        "이중 급전 부하는 남은 쪽이 전부 부담합니다. 부하를 줄이거나 상한을 두세요",
    ),
    "not_cooled": RuleText(
        _E,
        "nothing cools it, its rack or its room",
        "장비, 랙, 실 어디에도 냉각이 없습니다",
        "name the units: cooled_by",
        "cooled_by에 냉각 장비를 적으세요",
    ),
    "cooling_short": RuleText(
        _E,
        "{load} of heat, {limit} of cooling after the loss of the largest unit",
        "발열 {load}, 최대 1대 상실 후 냉각 {limit}",
        "add cooling or lower the planned load",
        "냉각을 늘리거나 계획 부하를 낮추세요",
    ),
    "cooling_unrated": RuleText(
        _W,
        "its cooling capacity is not written",
        "냉각 용량이 적혀 있지 않습니다",
        "write cooling_w from its name plate, sensible, at the design outdoor temperature",
        "명판의 현열 냉각 용량을 cooling_w에 적으세요",
    ),
    "not_rated": RuleText(
        _W,
        "no rating: it cannot be seen when it is overloaded",
        "정격이 없어 과부하를 알 수 없습니다",
        "write what its name plate says",
        "명판 값을 적으세요",
    ),
    "not_measured": RuleText(
        _W,
        "nothing reads it",
        "아무것도 계측하지 않습니다",
        "add its device, or a meter that measures it",
        "장치나 계량기를 추가하세요",
    ),
    "no_inlet": RuleText(
        _E,
        "no temperature is read in it",
        "온도를 읽는 점이 없습니다",
        "add a temperature sensor at an inlet",
        "흡입구 온도 센서를 추가하세요",
    ),
    "no_zone": RuleText(
        _W,
        "no [zone] says what it warms up with: its time to a limit cannot be said",
        "[zone]이 없어 한계까지 남은 시간을 계산할 수 없습니다",
        "add [zone.{place}] with mass_j_k and air_j_k",
        "[zone.{place}]을 추가하세요",
    ),
    "no_battery": RuleText(
        _W,
        "no [battery] describes it: its runtime is the device's word only, which is often wrong",
        "[battery]가 없어 장비가 말하는 시간만 남는데 자주 틀립니다",
        "add [battery.{place}] with energy_wh",
        "[battery.{place}]를 추가하세요",
    ),
    "battery_slow": RuleText(
        _W,
        "its charge may be {what} s old before anybody notices; batteries are watched every 10 s",
        "충전 상태가 {what}초까지 오래될 수 있습니다. 배터리는 10초마다 살펴야 합니다",
        "poll its device every 10 s or more often",
        "장치의 poll_s를 10 이하로 하세요",
    ),
    "no_detector": RuleText(
        _N,
        "the site has no {other}",
        "{other} 감지기가 없습니다",
        "fit one, also in a single cabinet",
        "캐비닛 하나라도 설치를 권합니다",
    ),
    "unknown_point": RuleText(
        _E,
        "names the point {point}, which no device gives",
        "어느 장치에도 없는 점 {point}를 가리킵니다",
        "correct the name; points are EQUIPMENT.NAME as the profile calls them",
        "점 이름을 고치세요(장비.프로파일 이름)",
    ),
    "unknown_target": RuleText(
        _E,
        "names {other}, which is no {what} here",
        "{other}는 이 사이트의 {what}가 아닙니다",
        "correct the name",
        "이름을 고치세요",
    ),
    "not_commanded": RuleText(
        _E,
        "{point} is a {what}: it cannot be commanded",
        "{point}는 {what}라서 제어할 수 없습니다",
        "name a setpoint or a command",
        "setpoint 또는 command 점을 적으세요",
    ),
    "no_readback": RuleText(
        _W,
        "nothing shows whether it acted: it may not be armed",
        "동작을 확인할 점이 없어 무장할 수 없습니다",
        "name the point that shows it: readback_id",
        "readback_id를 적으세요",
    ),
    "no_release": RuleText(
        _W,
        "isolates, and names no value that ends it: somebody has to go there",
        "격리를 해제할 값이 없어 현장에서 직접 해제해야 합니다",
        "name value_rest, or accept that a hand ends it",
        "value_rest를 적거나 현장 해제를 감수하세요",
    ),
    "armed_blind": RuleText(
        _E,
        "armed without a read-back",
        "확인 점 없이 무장되었습니다",
        "name readback_id, or set mode = 'observe'",
        "readback_id를 적거나 mode를 observe로 바꾸세요",
    ),
    "two_actuators": RuleText(
        _E,
        "{other} commands the same point",
        "{other}가 같은 점을 제어합니다",
        "keep one of them",
        "하나만 남기세요",
    ),
    "fire_is_read": RuleText(
        _E,
        "fire suppression is read, never driven",
        "소화 설비는 읽기만 하며 제어하지 않습니다",
        "take this actuator out",
        "이 제어 항목을 지우세요",
    ),
    "unit_misfit": RuleText(
        _E,
        "{point} reads {has}; expected is {expected}",
        "{point}의 단위는 {has}인데 {expected}여야 합니다",
        "name a point of that unit",
        "단위가 맞는 점을 적으세요",
    ),
    "odd_point": RuleText(
        _W,
        "{point} is a {has} of a {what}: is the profile on the right equipment?",
        "{what} 장비의 {has} 점 {point}는 이상합니다",
        "check `equipment` and `parts` of its device",
        "장치의 equipment와 parts를 확인하세요",
    ),
    "range_wrong": RuleText(
        _E,
        "{what}",
        "값의 범위가 맞지 않습니다: {what}",
        "correct the figures",
        "값을 고치세요",
    ),
    "no_match": RuleText(
        _W,
        "{point} matches no point",
        "{point}에 맞는 점이 없습니다",
        "correct the pattern, or take the rule out",
        "패턴을 고치거나 규칙을 지우세요",
    ),
}
