"""What `madang facility …` shows of a site: facts, points, devices, headroom, meters.

Owns the tables. Refuses to derive anything: the site does, and says how good each value is. Asks the site's own admin
API, which answers with the hub and the WAN away. `madang status` and `madang up` take their line of a site from here.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from madang.cli.access import Access, command
from madang.cli.terminal import Column, Row, field, print_json, print_table, render_duration, say
from madang.cli.values import parse_instant_s, render_clock

SiteOption = Annotated[
    str, typer.Option("--site", metavar="SITE", help="The site; its own admin API is asked, also while it is cut off.")
]
_FACTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("pue", "PUE 전력효율", lambda value: f"{value:.2f}"),
    ("headroom_w", "headroom 전력 여유", lambda value: f"{value:,.0f} W"),
    ("runtime_s", "battery runtime 배터리 지속", render_duration),
    ("thermal_margin_k", "thermal margin 온도 여유", lambda value: f"{value:.1f} K"),
    ("time_to_limit_s", "time to limit 한계까지", render_duration),
)
_CAUSES_SHOWN = 5
_SIMULATED = "simulated / 모의"
_UNITS = {"Cel": "°C", "1": ""}
"""What people write for codes of UCUM."""


def register(group: typer.Typer) -> None:
    """Add the commands."""
    command(group, "show")(_show)
    command(group, "points")(_points)
    command(group, "devices")(_devices)
    command(group, "headroom")(_headroom)
    command(group, "meters")(_meters)


def _show(access: Access, site: SiteOption) -> None:
    """Show what power and cooling of a site are like, how good each value is, and what they allow."""
    with access.site(site) as api:
        found = api.get("/api/v1/facility")
    if access.is_json:
        print_json(found)
        return
    say(" · ".join(filter(None, (found["title"] or found["site"], _SIMULATED if found["is_simulated"] else ""))))
    rows = [{"what": title, "fact": found[name], "text": text_of(name, found[name])} for name, title, _ in _FACTS]
    rows += [
        {"what": f"headroom 전력 여유: {rack}", "fact": fact, "text": text_of("headroom_w", fact)}
        for rack, fact in found["rack_headrooms_w"].items()
    ]
    print_table(
        "",
        (("FACT\n항목", field("what")), ("VALUE\n값", field("text")), *_worth("fact")),
        rows,
    )
    _say_envelope(found["envelope"])
    devices, alarms = found["devices"], found["alarms"]
    say(f"devices / 장치: {devices['answering']} of {devices['all']} answer / {devices['all']}대 중 응답")
    if alarms["active"] or alarms["unacknowledged"]:
        say(
            f"alarms / 경보: {alarms['active']} active, {alarms['unacknowledged']} unacknowledged, "
            f"worst {alarms['worst'] or '-'}; see: madang alarm list --site {site}"
        )
    else:
        say("alarms / 경보: none / 없음")


def _say_envelope(envelope: Mapping[str, Any] | None) -> None:
    """Print what the site may do now, and what is held back with its reason."""
    if envelope is None:
        say("envelope / 허용 범위: nothing was decided yet / 아직 없음")
        return
    words = [str(envelope["safety"])]
    if envelope["shed_from"]:
        words.append(f"refuses {envelope['shed_from']} and less urgent requests")
    if envelope["is_spilling"]:
        words.append("peers come first")
    if not envelope["accepts_placements"]:
        words.append("takes no new replicas")
    if envelope["power_w_max"] is not None:
        words.append(f"at most {envelope['power_w_max']:,.0f} W")
    left_s = envelope["holds_for_s"]
    words.append(f"holds for {left_s:.0f} s" if left_s > 0 else "HAS RUN OUT: batch is refused, nothing is placed")
    say(f"envelope / 허용 범위: {', '.join(words)}")
    for cause in envelope["causes"][:_CAUSES_SHOWN]:
        say(f"  because / 원인: {cause}")
    if len(envelope["causes"]) > _CAUSES_SHOWN:
        say(f"  … and {len(envelope['causes']) - _CAUSES_SHOWN} more")
    held = [node for node in envelope["nodes"] if node["state"] != "run" or node["reason"]]
    if held:
        columns: tuple[Column, ...] = (
            ("NODE\n노드", field("node")),
            ("STATE\n상태", field("state")),
            ("AT MOST W\n전력 제한", field("power_w_max")),
            ("WHY\n사유", field("reason")),
        )
        print_table("nodes held back / 제한된 노드", columns, held)


def _points(
    access: Access,
    site: SiteOption,
    equipment: Annotated[
        str, typer.Option("--equipment", metavar="EQUIPMENT", help="Of this alone.", show_default="all")
    ] = "",
) -> None:
    """List what every point reads, with quality and age."""
    with access.site(site) as api:
        rows = api.get("/api/v1/facility/points", {"equipment": equipment} if equipment else {})
    if access.is_json:
        print_json(rows)
        return
    columns = (
        ("POINT\n점", field("point")),
        ("VALUE\n값", _reading),
        ("QUALITY\n품질", field("quality")),
        ("AGE\n경과", lambda row: render_duration(row["age_s"])),
        ("KIND\n종류", field("kind")),
        ("WHY\n사유", field("reason")),
    )
    print_table(_title("points / 점", rows), columns, rows)


def _devices(access: Access, site: SiteOption) -> None:
    """List who answers for the equipment, and whether it does."""
    with access.site(site) as api:
        rows = api.get("/api/v1/facility/devices")
    if access.is_json:
        print_json(rows)
        return
    columns = (
        ("DEVICE\n장치", field("device")),
        ("EQUIPMENT\n장비", field("equipment")),
        ("DRIVER\n드라이버", lambda row: f"{row['driver']} {row['profile']}"),
        ("ADDRESS\n주소", field("address")),
        ("ANSWERS\n응답", lambda row: "ok" if row["is_answering"] else "down"),
        ("FAILED\n실패", lambda row: f"{row['failures']}/{row['polls']}"),
    )
    print_table(_title("devices / 장치", rows), columns, rows)
    for row in rows:
        if row["trouble"] and not row["is_answering"]:
            say(f"{row['device']}: {row['trouble']}")


def _headroom(access: Access, site: SiteOption) -> None:
    """List how much more each thing takes, after the worst single loss; the tightest first."""
    with access.site(site) as api:
        rows = api.get("/api/v1/facility/headroom")
    if access.is_json:
        print_json(rows)
        return
    columns = (
        ("PLACE\n위치", field("place")),
        ("WHAT\n종류", lambda row: f"{row['what']} {row['phase']}".strip()),
        ("LIMIT\n한계", lambda row: _amount(row["limit"], row)),
        ("LOAD\n부하", lambda row: _amount(row["load"]["value"], row)),
        ("HEADROOM\n여유", lambda row: _amount(row["headroom"]["value"], row)),
        ("AFTER LOSS OF\n상실 가정", field("after_loss_of")),
        ("QUALITY\n품질", lambda row: row["headroom"]["quality"]),
        ("AGE\n경과", lambda row: _age(row["headroom"])),
    )
    rows.sort(key=lambda row: (row["headroom"]["value"] is None, (row["headroom"]["value"] or 0.0) / row["limit"]))
    print_table("headroom after the worst single loss / 최악의 단일 상실 후 여유", columns, rows)
    # One doubt usually lies under many rows: it is said once.
    doubts: dict[str, list[str]] = {}
    for row in rows:
        if row["headroom"]["reason"]:
            doubts.setdefault(row["headroom"]["reason"], []).append(f"{row['place']} {row['what']}")
    for reason, places in doubts.items():
        say(f"{', '.join(dict.fromkeys(places))}: {reason}")


def _meters(
    access: Access,
    site: SiteOption,
    since: Annotated[str, typer.Option("--since", help="Such as 24h or 2026-11-01.")] = "24h",
    point: Annotated[str, typer.Option("--point", metavar="POINT", help="One meter.", show_default="all")] = "",
) -> None:
    """List what energy meters read at each quarter of an hour; a reading that is missing is shown as missing."""
    from madang.runtime.clock import SystemClock

    query: dict[str, Any] = {"since_s": parse_instant_s(since, SystemClock().wall_s(), is_past=True)}
    with access.site(site) as api:
        rows = api.get("/api/v1/facility/meters", {**query, "point": point} if point else query)
    if access.is_json:
        print_json(rows)
        return
    columns = (
        ("METER\n계량기", field("point_id")),
        ("AT\n시각", lambda row: render_clock(row["at_s"])),
        ("REGISTER kWh\n지침", lambda row: _kwh(row["value_wh"])),
        ("SINCE THE LAST\n증가", lambda row: _kwh(row["more_wh"])),
        ("QUALITY\n품질", field("quality")),
    )
    print_table(_title("meter readings / 검침", rows), columns, list(_with_steps(rows)))


def _with_steps(rows: Iterable[Row]) -> Iterable[Row]:
    """Yield readings with what came since the one before; none over a gap."""
    before: Row | None = None
    for row in rows:
        is_next = before is not None and before["point_id"] == row["point_id"]
        last = before["value_wh"] if is_next and before is not None else None
        now = row["value_wh"]
        yield {**row, "more_wh": now - last if last is not None and now is not None else None}
        before = row


def text_of(name: str, fact: Mapping[str, Any]) -> str:
    """Return a fact's value with its unit; `∞` where it is known that there is no end."""
    value = fact["value"]
    if value is None:
        return "-" if fact["quality"] == "bad" else "∞"
    return next(render for known, _, render in _FACTS if known == name)(value)


def print_facilities(found: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Print a line for each site that has power and cooling; nothing where none has."""
    rows = [{"site": site, **one} for site, one in found.items() if one is not None]
    if not rows:
        return
    columns = (
        ("SITE", field("site")),
        ("SAFETY", lambda row: (row["envelope"] or {}).get("safety")),
        ("PUE", lambda row: text_of("pue", row["pue"])),
        ("HEADROOM", lambda row: text_of("headroom_w", row["headroom_w"])),
        ("BATTERY", lambda row: text_of("runtime_s", row["runtime_s"])),
        ("MARGIN", lambda row: text_of("thermal_margin_k", row["thermal_margin_k"])),
        ("TO LIMIT", lambda row: text_of("time_to_limit_s", row["time_to_limit_s"])),
        ("DEVICES", lambda row: f"{row['devices']['answering']} of {row['devices']['all']}"),
        ("ALARMS", alarms_of),
    )
    print_table(_title("power and cooling", rows), columns, rows)


def alarms_of(row: Row) -> str:
    """Return how many alarms are active and how urgent the worst is."""
    alarms = row["alarms"]
    return f"{alarms['active']} ({alarms['worst']})" if alarms["active"] else "0"


def _worth(name: str) -> tuple[Column, ...]:
    return (
        ("QUALITY\n품질", lambda row: row[name]["quality"]),
        ("AGE\n경과", lambda row: _age(row[name])),
        ("WHY\n사유", lambda row: row[name]["reason"]),
    )


def _reading(row: Row) -> str:
    if row["text"]:
        return str(row["text"])
    if row["value"] is None:
        return "-"
    number = f"{row['value']:,.2f}".rstrip("0").rstrip(".")
    return f"{number} {_UNITS.get(row['unit'], row['unit'])}".rstrip()


def _age(fact: Mapping[str, Any]) -> str:
    return "-" if fact["quality"] == "bad" else render_duration(fact["age_s"])


def _amount(value: float | None, row: Row) -> str:
    return "-" if value is None else f"{value:,.0f} {'VA' if row['what'] == 'apparent' else 'W'}"


def _kwh(value: float | None) -> str:
    return "-" if value is None else f"{value / 1000:,.3f}"


def _title(text: str, rows: Iterable[Row]) -> str:
    return f"{text} ({_SIMULATED})" if any(row.get("is_simulated") for row in rows) else text
