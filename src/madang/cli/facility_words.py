"""What a person may say to a site's power and cooling: arm an actuator, ask the authority, agree to another's request.

Owns the words. Refuses to decide: the site's one authority does, and says why. Asks the site's own admin API, which
answers with the hub and the WAN away. Every word carries who and why, for the site's audit.
"""

import getpass
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madang.cli.access import Access, command
from madang.cli.facility_views import SiteOption
from madang.cli.terminal import Column, Row, field, print_json, print_table, say
from madang.cli.values import parse_duration_s, render_clock
from madang.core import Rejected
from madang.model import PriorityClass, Verb

if TYPE_CHECKING:
    from madang.runtime.admin_client import AdminClient

VERDICT_WAIT_S = 4.0
"""The authority looks once a second; a machine under load may need more."""
_LOOK_S = 0.25
_WANTS_VALUE = {
    Verb.CAP: "--value WATTS",
    Verb.SHED: "--value CLASS, such as batch: it and less urgent ones are refused",
    Verb.SETPOINT: "--value NUMBER, in the point's unit",
}
WhoOption = Annotated[
    str | None, typer.Option("--who", help="Who you are, for the audit.", show_default="your login", metavar="NAME")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit.", metavar="TEXT")]
Actuator = Annotated[str, typer.Argument(metavar="NAME", help="As `madang facility actuators` shows it.")]


def register(group: typer.Typer) -> None:
    """Add the commands."""
    command(group, "actuators")(_actuators)
    command(group, "arm")(_arm)
    command(group, "observe")(_observe)
    command(group, "request")(_request)
    command(group, "approve")(_approve)
    command(group, "actions")(_actions)


def _actuators(access: Access, site: SiteOption) -> None:
    """List what could be driven, and whether it is armed or only observed."""
    with access.site(site) as api:
        rows = api.get("/api/v1/facility/actuators")
    if access.is_json:
        print_json(rows)
        return
    armed_by = {"site": "site file or settings / 사이트 설정", "hand": "hand / 사람"}
    columns = (
        ("ACTUATOR\n구동기", field("actuator")),
        ("MODE\n모드", field("mode")),
        ("ARMED BY\n무장 주체", lambda row: armed_by.get(row["by"])),
    )
    print_table("actuators / 구동기", columns, rows)
    say("what only observes is written down and not done / observe: 기록만 하고 실행하지 않음")


def _arm(access: Access, name: Actuator, site: SiteOption, reason: ReasonOption, who: WhoOption = None) -> None:
    """Let the site drive an actuator from now on, also after a restart."""
    _set_mode(access, site, name, "arm", reason, who)


def _observe(access: Access, name: Actuator, site: SiteOption, reason: ReasonOption, who: WhoOption = None) -> None:
    """Let an actuator only observe: what would be done is written down."""
    _set_mode(access, site, name, "observe", reason, who)


def _set_mode(access: Access, site: str, name: str, verb: str, reason: str, who: str | None) -> None:
    body = {"reason": reason, "who": who or getpass.getuser()}
    with access.site(site) as api:
        found = api.call("POST", f"/api/v1/facility/actuators/{name}/{verb}", body)
    if access.is_json:
        print_json(found)
    else:
        say(f"{name}: {found['mode']}")


def _request(
    access: Access,
    verb: Annotated[Verb, typer.Argument(metavar="VERB", help=", ".join(Verb))],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Node, equipment, set point, or the site's name.")],
    site: SiteOption,
    reason: ReasonOption,
    value: Annotated[
        str | None, typer.Option("--value", help="Watts of a cap, class of a shed, number of a set point.")
    ] = None,
    duration: Annotated[str, typer.Option("--for", help="When it lapses, such as 30m.")] = "5m",
    who: WhoOption = None,
) -> None:
    """Ask the site's authority for something, and say what it made of it. Isolation wants a second person."""
    body = {
        "verb": verb.value,
        "target": target,
        "value": _parse_value(verb, value),
        "ttl_s": parse_duration_s(duration),
        "reason": reason,
        "who": who or getpass.getuser(),
    }
    with access.site(site) as api:
        request_id = api.call("POST", "/api/v1/facility/requests", body)["request_id"]
        verdict = _await_verdict(api, request_id)
    if access.is_json:
        print_json({"request_id": request_id, **verdict})
        return
    why = f": {verdict['reason']}" if verdict["reason"] not in ("", reason) else ""
    say(f"{request_id}: {verdict['state'] or 'not judged yet; see: madang facility actions --site ' + site}{why}")
    if verdict["state"] == "awaiting":
        say(f"a second person agrees with: madang facility approve {request_id} --site {site} --who NAME")


def _parse_value(verb: Verb, text: str | None) -> float | None:
    if text is None:
        if verb in _WANTS_VALUE:
            raise Rejected(f"{verb} wants a value", next_step=_WANTS_VALUE[verb])
        return None
    if verb is Verb.SHED and text in list(PriorityClass):
        return float(PriorityClass(text).rank)
    try:
        return float(text)
    except ValueError:
        expected = f"one of {', '.join(PriorityClass)}" if verb is Verb.SHED else "a number"
        raise Rejected(f"value {text!r} of {verb} is not valid: expected {expected}") from None


def _await_verdict(api: "AdminClient", request_id: str) -> dict[str, Any]:
    """Return state and reason of what became of a request; empty when it was not judged in time."""
    deadline_ns = time.monotonic_ns() + int(VERDICT_WAIT_S * 1e9)
    while True:
        found = api.get("/api/v1/facility/actions")
        for action in found["actions"]:
            if action["request"]["request_id"] == request_id:
                return {"state": action["state"], "reason": action["reason"]}
        if any(one["request_id"] == request_id for one in found["awaiting"]):
            return {"state": "awaiting", "reason": ""}
        if time.monotonic_ns() >= deadline_ns:
            return {"state": "", "reason": ""}
        time.sleep(_LOOK_S)


def _approve(
    access: Access,
    request_id: Annotated[str, typer.Argument(metavar="ID", help="As `madang facility actions` shows it.")],
    site: SiteOption,
    who: WhoOption = None,
) -> None:
    """Agree to what another person asked for, such as an isolation."""
    with access.site(site) as api:
        found = api.call("POST", f"/api/v1/facility/requests/{request_id}/approve", {"who": who or getpass.getuser()})
    if access.is_json:
        print_json(found)
    else:
        say(f"{request_id}: approved; see what became of it: madang facility actions --site {site}")


def _actions(access: Access, site: SiteOption) -> None:
    """List what was ordered, confirmed and refused since the site program started, newest first."""
    with access.site(site) as api:
        found = api.get("/api/v1/facility/actions")
    if access.is_json:
        print_json(found)
        return
    if found["awaiting"]:
        waiting: tuple[Column, ...] = (
            ("REQUEST\n요청", field("request_id")),
            ("VERB\n동작", field("verb")),
            ("TARGET\n대상", field("target")),
            ("BY\n요청자", field("requester")),
            ("WHY\n사유", field("reason")),
        )
        print_table("waiting for a second person / 두 번째 사람의 동의 대기", waiting, found["awaiting"])
    columns = (
        ("AT\n시각", lambda row: render_clock(row["at_s"])),
        ("VERB\n동작", lambda row: row["request"]["verb"]),
        ("TARGET\n대상", lambda row: row["request"]["target"]),
        ("VALUE\n값", _value),
        ("STATE\n상태", field("state")),
        ("BY\n요청자", lambda row: row["request"]["requester"]),
        ("WHY\n사유", lambda row: row["reason"] or row["request"]["reason"]),
    )
    print_table("actions / 조치", columns, found["actions"])


def _value(row: Row) -> str | None:
    value = row["request"]["value"]
    if value is None:
        return None
    if row["request"]["verb"] == Verb.SHED:
        return next((one.value for one in PriorityClass if one.rank == value), f"{value:g}")
    return f"{value:,.0f} W" if row["request"]["verb"] == Verb.CAP else f"{value:g}"
