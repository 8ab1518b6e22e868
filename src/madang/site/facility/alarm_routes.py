"""Admin routes over alarms: what stands, the journal, and what a person does about one. Owns nothing.

An alarm is named by its equipment, point and condition. Who acts is written into journal and audit log.
"""

from typing import Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from madang.core import Clock, Rejected, SiteId
from madang.machine.alarm_events import Acknowledge, Event, PutBack, Reset, Shelve, TakeOut, Unshelve
from madang.model import Alarm, AlarmKey
from madang.runtime.admin_http import json_response, read_body, takes
from madang.site.facility.alarm_desk import ROWS_PER_PAGE_MAX, AlarmDesk

VERBS = ("acknowledge", "reset", "shelve", "unshelve", "take_out", "put_back")


class AlarmWord(msgspec.Struct, frozen=True, kw_only=True):
    """What a person says to one alarm.

    Attributes:
        who: the person, for journal and audit; the credential alone names nobody.
        for_s: of `shelve`: how long.
        reason: of `shelve` and `take_out`.
    """

    equipment: str
    condition: str
    point: str = ""
    who: str = "admin"
    for_s: float = 0.0
    reason: str = ""


def add_alarm_routes(router: APIRouter, site: SiteId, desk: AlarmDesk, clock: Clock) -> None:
    """Add the routes to the site's admin API."""

    @router.get("/alarms", tags=["alarms"])
    async def list_alarms() -> Response:
        """Return what is not normal, root causes first."""
        return json_response(
            {"site": site, "is_flood": desk.is_flood, "alarms": [show_alarm(one) for one in desk.list_alarms()]}
        )

    @router.get("/alarms/journal", tags=["alarms"])
    async def list_journal(
        before: int = Query(default=0, ge=0), limit: int = Query(default=100, ge=1, le=ROWS_PER_PAGE_MAX)
    ) -> Response:
        """Return transitions, newest first."""
        return json_response(await desk.read_journal(before=before, limit=limit))

    @router.post("/alarms/{verb}", tags=["alarms"], openapi_extra=takes(AlarmWord))
    async def say(verb: str, request: Request) -> Response:
        """Acknowledge, reset, shelve, unshelve, take out of service or put back one alarm."""
        word = await read_body(request, AlarmWord)
        key = AlarmKey(site, word.equipment, word.point, word.condition)
        await desk.say(_event(verb, key, word, clock.wall_s()), key, word.who, verb)
        found = [show_alarm(one) for one in desk.list_alarms() if one.key == key]
        return json_response(found[0] if found else {"key": msgspec.to_builtins(key), "state": "normal"})


def show_alarm(alarm: Alarm) -> dict[str, Any]:
    """Return an alarm as a row, with the words by which it is named."""
    row: dict[str, Any] = msgspec.to_builtins(alarm)
    return {**row, "alarm": str(alarm.key)}


def _event(verb: str, key: AlarmKey, word: AlarmWord, now_s: float) -> Event:
    match verb:
        case "acknowledge":
            return Acknowledge(key, word.who)
        case "reset":
            return Reset(key, word.who)
        case "shelve":
            return Shelve(key, word.who, now_s + word.for_s, word.reason)
        case "unshelve":
            return Unshelve(key, word.who)
        case "take_out":
            return TakeOut(key, word.who, word.reason)
        case "put_back":
            return PutBack(key, word.who)
        case _:
            raise Rejected(f"{verb!r} cannot be done to an alarm; expected {', '.join(VERBS)}")
