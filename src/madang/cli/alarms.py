"""`madang alarm …`: what is wrong at a site, and what its operator does about it.

Owns nothing; asks the site's own admin API, which answers with the hub and the WAN away.
"""

import getpass
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from madang.cli.access import Access, command
from madang.cli.terminal import Row, field, print_json, print_table, render_duration, say
from madang.cli.values import parse_duration_s, render_clock
from madang.core import Rejected

Site = Annotated[str, typer.Option("--site", metavar="SITE", help="The site; its own admin API is asked.")]
Name = Annotated[
    str,
    typer.Argument(metavar="ALARM", help="As `madang alarm list` shows it: POINT/CONDITION, EQUIPMENT/-/CONDITION."),
]
Who = Annotated[
    str | None, typer.Option("--who", help="Who you are, for journal and audit.", show_default="your login")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the journal.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="Alarms of a site's power, cooling and security.", rich_markup_mode=None
    )
    app.add_typer(group, name="alarm")
    command(group, "list")(_list)
    command(group, "journal")(_journal)
    command(group, "acknowledge")(_acknowledge)
    command(group, "reset")(_reset)
    command(group, "shelve")(_shelve)
    command(group, "unshelve")(_unshelve)
    command(group, "take-out")(_take_out)
    command(group, "put-back")(_put_back)


def _list(access: Access, site: Site) -> None:
    """List what is not normal: root causes first, their consequences below them."""
    with access.site(site) as api:
        found = api.get("/api/v1/alarms")
    if access.is_json:
        print_json(found)
        return
    if found["is_flood"]:
        say("more alarms than a person can read: look at the first ones / 경보 폭주: 위의 것부터 보십시오")
    if not found["alarms"]:
        say(f"{site}: nothing is wrong / 이상 없음")
        return
    now_s = _now_s()
    columns = (
        ("ALARM\n경보", lambda row: f"└ {_words(row['key'])}" if row["is_below"] else _name(row)),
        ("PRIORITY\n우선순위", field("priority")),
        ("STATE\n상태", field("state")),
        ("SINCE\n경과", lambda row: "-" if row["t_raise_s"] is None else render_duration(now_s - row["t_raise_s"])),
        ("WHAT\n내용", _what),
    )
    print_table("alarms / 경보", columns, list(_below_causes(found["alarms"])))
    if any(row["state"] == "unacknowledged" for row in found["alarms"]):
        say(f"say that you have seen one: madang alarm acknowledge ALARM --site {site}")


def _below_causes(alarms: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield alarms in the site's order, what has its cause in the list below that cause."""
    listed = {_name(row) for row in alarms}
    below: dict[str, list[dict[str, Any]]] = {}
    roots = []
    for row in alarms:
        cause = _short(row["cause"]) if row["cause"] else ""
        if cause in listed and cause != _name(row):
            below.setdefault(cause, []).append(row)
        else:
            roots.append(row)
    # A consequence may have consequences; whoever is not reached (a loop of causes) is still listed, at the end.
    shown: set[str] = set()
    waiting = [(row, False) for row in reversed(alarms)] + [(row, False) for row in reversed(roots)]
    while waiting:
        row, is_below = waiting.pop()
        if _name(row) in shown:
            continue
        shown.add(_name(row))
        yield {**row, "is_below": is_below}
        waiting += [(one, True) for one in reversed(below.get(_name(row), ()))]


def _what(row: Row) -> str:
    texts = [row["title_ko"], row["title_en"] or row["key"]["condition"]]
    flags = ["chattering"] if row["is_chattering"] else []
    if not row["is_known"]:
        flags.append("not read now")
    return "\n".join(filter(None, (*texts, *flags)))


def _journal(access: Access, site: Site, limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50) -> None:
    """List transitions of alarms, newest first."""
    with access.site(site) as api:
        rows = api.get("/api/v1/alarms/journal", {"limit": limit})
    if access.is_json:
        print_json(rows)
        return
    columns = (
        ("AT\n시각", lambda row: render_clock(row["at_s"])),
        ("ALARM\n경보", lambda row: _words(row["key"])),
        ("WHAT\n사건", field("what")),
        ("NOW\n이후", field("now")),
        ("WHO AND WHY\n누가, 사유", lambda row: ": ".join(filter(None, (row["who"], row["reason"])))),
    )
    print_table("journal of alarms / 경보 이력", columns, rows)


def _acknowledge(access: Access, name: Name, site: Site, who: Who = None) -> None:
    """Say that you have seen it."""
    _say(access, site, "acknowledge", name, who)


def _reset(access: Access, name: Name, site: Site, who: Who = None) -> None:
    """Say that what a latching alarm stood for is over."""
    _say(access, site, "reset", name, who)


def _shelve(
    access: Access,
    name: Name,
    site: Site,
    duration: Annotated[str, typer.Option("--for", help="Such as 2h; one shift at most.")],
    reason: Reason,
    who: Who = None,
) -> None:
    """Do not hear of it for a while."""
    _say(access, site, "shelve", name, who, for_s=parse_duration_s(duration), reason=reason)


def _unshelve(access: Access, name: Name, site: Site, who: Who = None) -> None:
    """Hear of it again."""
    _say(access, site, "unshelve", name, who)


def _take_out(access: Access, name: Name, site: Site, reason: Reason, who: Who = None) -> None:
    """Take it out of service while somebody works on it."""
    _say(access, site, "take_out", name, who, reason=reason)


def _put_back(access: Access, name: Name, site: Site, who: Who = None) -> None:
    """Put it back into service."""
    _say(access, site, "put_back", name, who)


def _say(access: Access, site: str, verb: str, name: str, who: str | None, **more: Any) -> None:
    parts = name.split("/")
    if len(parts) == 2 and "." in parts[0]:  # a point carries its equipment's name in front
        parts = [parts[0].partition(".")[0], *parts]
    if len(parts) == 4:  # as notices and causes have it, with the site in front
        parts = parts[1:]
    if len(parts) != 3:
        raise Rejected(
            f"{name!r} names no alarm",
            next_step="expected POINT/CONDITION or EQUIPMENT/-/CONDITION; see madang alarm list",
        )
    equipment, point, condition = parts
    body = {"equipment": equipment, "point": "" if point == "-" else point, "condition": condition}
    with access.site(site) as api:
        found = api.call("POST", f"/api/v1/alarms/{verb}", {**body, "who": who or getpass.getuser(), **more})
    if access.is_json:
        print_json(found)
    else:
        say(f"{name}: {found['state']}")


def _name(row: Row) -> str:
    return _short(row["key"])


def _short(key: dict[str, Any]) -> str:
    """Return the shortest name that `_say` takes back."""
    if key["point"].partition(".")[0] == key["equipment"]:
        return f"{key['point']}/{key['condition']}"
    return f"{key['equipment']}/{key['point'] or '-'}/{key['condition']}"


def _words(key: dict[str, Any]) -> str:
    """Return an alarm in fewer letters, for where nobody copies its name; points carry their equipment's name."""
    return f"{key['point'] or key['equipment']} {key['condition']}"


def _now_s() -> float:
    from madang.runtime.clock import SystemClock

    return SystemClock().wall_s()
