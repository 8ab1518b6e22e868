"""The alarms that a host's disks, file systems, links, memory and clock have without anybody writing any.

Owns the starting values. Refuses to know how they are read: a point's context says what it is about, the beginning of
its name which fact. Called by `madang.machine.alarm_defaults`.

What grows for years and begins anew with the machine (errors of a link, of a disk, of memory) is judged by its rise in
a minute, never by its height.
"""

import msgspec

from madang.model import AlarmKey, AlarmPriority, AlarmRole, AlarmRule, Condition, Point, Quantity, SiteModel

P = AlarmPriority
C = Condition

_VALUES = "engineering value"
_NVME = "NVM Express Base Specification, SMART / Health Information log"
_KERNEL = "engineering value; Linux says 'unsynchronised' only at 16 s, nine hours after the last correction"


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm of the points of a context whose names begin so; STATE is over words, all else over the limit."""

    context: str
    name: str
    condition: Condition
    limit: float = 0.0
    words: tuple[str, ...] = ("active",)
    is_rise: bool = False
    deadband: float = 0.0
    on_delay_s: float = 0.0
    off_delay_s: float = 60.0
    priority: AlarmPriority
    is_latching: bool = False
    ko: str
    en: str
    source: str = _VALUES


_ROWS = (
    _Row(
        context="filesystem", name="level_", condition=C.HIGH, limit=90.0, deadband=2.0, on_delay_s=60.0,
        priority=P.MEDIUM, ko="저장 공간 부족 (10 % 미만)", en="file system nearly full",
    ),
    _Row(
        context="filesystem", name="level_", condition=C.HIGH_HIGH, limit=97.0, deadband=1.0, on_delay_s=10.0,
        priority=P.CRITICAL, ko="저장 공간 거의 없음 (3 % 미만)", en="file system full",
    ),
    _Row(
        context="filesystem", name="alarm_read_only_", condition=C.STATE, on_delay_s=2.0, priority=P.CRITICAL,
        ko="파일 시스템이 읽기 전용이 됨", en="file system became read only",
    ),
    _Row(
        context="filesystem", name="alarm_lost_", condition=C.STATE, on_delay_s=10.0, priority=P.HIGH,
        ko="파일 시스템 응답 없음", en="file system does not answer",
    ),
    _Row(
        context="drive", name="health_", condition=C.LOW, limit=20.0, deadband=1.0, on_delay_s=60.0,
        priority=P.MEDIUM, ko="디스크 수명 80 % 사용", en="drive worn by 80 %",
    ),
    _Row(
        context="drive", name="health_", condition=C.LOW_LOW, limit=5.0, deadband=1.0, on_delay_s=60.0,
        priority=P.HIGH, ko="디스크 수명 95 % 사용: 교체 필요", en="drive worn by 95 %: replace it",
    ),
    _Row(
        context="drive", name="alarm_spare_", condition=C.STATE, on_delay_s=5.0, priority=P.HIGH,
        ko="디스크 예비 영역이 한계 미만", en="drive's spare below its threshold", source=_NVME,
    ),
    _Row(
        context="drive", name="alarm_hot_", condition=C.STATE, on_delay_s=60.0, priority=P.MEDIUM,
        ko="디스크가 온도 한계를 벗어남", en="drive outside of its temperatures", source=_NVME,
    ),
    _Row(
        context="drive", name="alarm_degraded_", condition=C.STATE, on_delay_s=5.0, priority=P.HIGH,
        ko="디스크 신뢰도 저하", en="drive unreliable by its own word", source=_NVME,
    ),
    _Row(
        context="drive", name="alarm_read_only_", condition=C.STATE, on_delay_s=2.0, priority=P.CRITICAL,
        ko="디스크가 읽기 전용이 됨", en="drive became read only", source=_NVME,
    ),
    _Row(
        context="drive", name="alarm_smart_", condition=C.STATE, on_delay_s=5.0, priority=P.HIGH,
        ko="SMART 판정 실패: 디스크 교체 필요", en="SMART says failed: replace the drive",
    ),
    _Row(
        context="drive", name="errors_", condition=C.RATE, is_rise=True, is_latching=True, priority=P.HIGH,
        ko="디스크 매체 오류 새로 발생", en="new media errors of a drive",
    ),
    _Row(
        context="drive", name="temperature_", condition=C.HIGH, limit=70.0, deadband=2.0, on_delay_s=60.0,
        priority=P.MEDIUM, ko="디스크 온도 높음", en="drive hot",
    ),
    _Row(
        context="link", name="state_link_", condition=C.STATE, words=("down",), on_delay_s=5.0, off_delay_s=15.0,
        priority=P.HIGH, ko="네트워크 링크 끊김", en="link down",
    ),
    _Row(
        context="link", name="errors_", condition=C.RATE, limit=10.0, is_rise=True, deadband=5.0,
        priority=P.MEDIUM, ko="네트워크 링크 오류 증가", en="errors on a link",
    ),
    _Row(
        context="memory", name="load_", condition=C.HIGH, limit=95.0, deadband=2.0, on_delay_s=300.0,
        priority=P.MEDIUM, ko="메모리 부족", en="memory nearly used up",
    ),
    _Row(
        context="memory", name="errors_corrected", condition=C.RATE, limit=10.0, is_rise=True, deadband=5.0,
        priority=P.MEDIUM, ko="메모리 ECC 정정 오류 증가", en="memory corrects many errors",
    ),
    _Row(
        context="memory", name="errors_uncorrected", condition=C.RATE, is_rise=True, is_latching=True,
        priority=P.CRITICAL, ko="메모리 ECC 정정 불가 오류", en="memory error that could not be corrected",
    ),
    _Row(
        context="clock", name="state_clock", condition=C.STATE, words=("unsynchronised",), on_delay_s=300.0,
        priority=P.HIGH, ko="시각 동기 안 됨: 장부 시각을 믿을 수 없음",
        en="clock not synchronised: times in ledgers cannot be relied upon",
    ),
    _Row(
        context="clock", name="duration_clock_error", condition=C.HIGH, limit=1.0, deadband=0.2, on_delay_s=60.0,
        priority=P.MEDIUM, ko="시각 오차가 1초를 넘을 수 있음", en="clock may be wrong by more than a second",
        source=_KERNEL,
    ),
    # What its exporter no longer lists while it answers is gone: unmounted, unplugged, dead. No more urgent than the
    # exporter's own silence, which explains it.
    _Row(
        context="filesystem", name="level_", condition=C.READING_LOST, off_delay_s=0.0, priority=P.MEDIUM,
        ko="파일 시스템 없음: 마운트 해제 또는 측정 불가", en="file system gone or not read",
    ),
    _Row(
        context="drive", name="health_", condition=C.READING_LOST, off_delay_s=0.0, priority=P.MEDIUM,
        ko="디스크 없음 또는 측정 불가", en="drive gone or not read",
    ),
    _Row(
        context="drive", name="alarm_smart_", condition=C.READING_LOST, off_delay_s=0.0, priority=P.MEDIUM,
        ko="디스크 없음 또는 측정 불가", en="drive gone or not read",
    ),
    _Row(
        context="link", name="state_link_", condition=C.READING_LOST, off_delay_s=0.0, priority=P.MEDIUM,
        ko="네트워크 장치 없음 또는 측정 불가", en="link gone or not read",
    ),
)  # fmt: skip
_CONTEXTS = frozenset(row.context for row in _ROWS)


def make_host_rules(model: SiteModel, point: Point) -> list[AlarmRule]:
    """Return the rules of one point, in the order above; none for what is not about a host."""
    return [
        AlarmRule(
            key=AlarmKey(model.site, point.equipment_id, point.point_id, row.condition.value),
            condition=row.condition,
            priority=row.priority,
            limit=row.limit,
            words=row.words if row.condition is C.STATE else (),
            is_rise=row.is_rise,
            deadband=row.deadband,
            on_delay_s=row.on_delay_s,
            off_delay_s=row.off_delay_s,
            is_latching=row.is_latching,
            role=AlarmRole.READING if row.condition is C.READING_LOST else AlarmRole.NONE,
            title_ko=row.ko,
            title_en=row.en,
            source=row.source,
        )
        for row in _ROWS
        if point.context == row.context and point.name.startswith(row.name)
    ]


def is_host_state(point: Point) -> bool:
    """Return whether a state is about a host: no sign of power, cooling or safety stands for it."""
    return point.quantity is Quantity.STATE and point.context in _CONTEXTS
