"""Admin routes over the facility: facts, points, devices, envelope, actions, actuators, requests. Owns nothing.

They answer with the hub and the WAN away. A site without a site file answers 404 and says why.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from madang.core import Clock, Entropy, Rejected
from madang.model import Envelope, Fact, Verb
from madang.model import Request as Asked
from madang.policy.power.state import POLICIES, Approve
from madang.runtime.admin_http import NotFound, json_response, read_body, takes
from madang.site.facility.facility import Facility
from madang.site.facility.pue_interval import show_pue

TTL_S_DEFAULT = 300.0


class ArmBody(msgspec.Struct, frozen=True, kw_only=True):
    """Why an actuator is armed or disarmed, and by whom."""

    reason: str
    who: str = "admin"


class AskBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asks of the authority; as `madang.model.Request`."""

    verb: Verb
    target: str
    reason: str
    value: float | None = None
    ttl_s: float = TTL_S_DEFAULT
    who: str = "admin"


class ApproveBody(msgspec.Struct, frozen=True, kw_only=True):
    """Who agrees to another person's request."""

    who: str


def add_facility_routes(
    router: APIRouter, site: str, facility: Facility | None, clock: Clock, entropy: Entropy
) -> None:
    """Add the routes to the site's admin API."""
    _add_views(router, site, facility, clock)
    _add_words(router, site, facility, entropy)


def _need(site: str, facility: Facility | None) -> Facility:
    if facility is None:
        raise NotFound(
            f"site {site} has no facility: its settings name no site file",
            next_step="set facility_file; examples/site-cabinet.toml shows one",
        )
    return facility


def _add_views(router: APIRouter, site: str, facility: Facility | None, clock: Clock) -> None:
    @router.get("/facility", tags=["facility"])
    async def show() -> Response:
        """Return derived facts with quality and age, the envelope, and what is wrong."""
        return json_response(show_facility(_need(site, facility), clock.wall_s()))

    @router.get("/facility/points", tags=["facility"])
    async def list_points(equipment: str = "") -> Response:
        """Return what every point reads."""
        return json_response(list(point_rows(_need(site, facility), clock.wall_s(), equipment)))

    @router.get("/facility/devices", tags=["facility"])
    async def list_devices() -> Response:
        """Return every device and whether it answers."""
        return json_response(device_rows(_need(site, facility)))

    @router.get("/facility/headroom", tags=["facility"])
    async def list_headroom() -> Response:
        """Return the headroom of each thing that has a limit, after the worst single loss."""
        facts = _need(site, facility).mind.world.facts
        return json_response([] if facts is None else [msgspec.to_builtins(one) for one in facts.headrooms])

    @router.get("/facility/actuators", tags=["facility"])
    async def list_actuators() -> Response:
        """Return every actuator: armed, or observing."""
        return json_response(_need(site, facility).mind.list_actuators())

    @router.get("/facility/actions", tags=["facility"])
    async def list_actions() -> Response:
        """Return what was ordered and refused since the start, newest first, and what waits for a second person."""
        mind = _need(site, facility).mind
        return json_response(
            {
                "actions": [msgspec.to_builtins(one) for one in reversed(mind.actions)],
                "awaiting": [msgspec.to_builtins(one) for one in mind.list_awaiting()],
            }
        )

    @router.get("/facility/meters", tags=["facility"])
    async def list_meters(
        since_s: float = Query(default=0.0, ge=0.0), until_s: float | None = None, point: str = ""
    ) -> Response:
        """Return what energy meters read at each quarter of an hour."""
        until = clock.wall_s() if until_s is None else until_s
        log = _need(site, facility).meters
        return json_response(await log.read(since_s=since_s, until_s=until, point_id=point))

    @router.get("/facility/pue", tags=["facility"])
    async def pue(since_s: float = Query(ge=0.0), until_s: float | None = None) -> Response:
        """Return interim PUE, kWh over kWh, between the first and the last stored reading of a span."""
        found = _need(site, facility)
        until = clock.wall_s() if until_s is None else until_s
        return json_response(await show_pue(found.meters, found.mind.world.graph, found.file.plan.pue, since_s, until))


def _add_words(router: APIRouter, site: str, facility: Facility | None, entropy: Entropy) -> None:
    @router.post("/facility/actuators/{name}/{verb}", tags=["facility"], openapi_extra=takes(ArmBody))
    async def arm(name: str, verb: str, request: Request) -> Response:
        """Arm an actuator, or let it only observe."""
        if verb not in ("arm", "observe"):
            raise Rejected(f"{verb!r} cannot be done to an actuator; expected arm or observe")
        body = await read_body(request, ArmBody)
        mind = _need(site, facility).mind
        await mind.arm(name, is_armed=verb == "arm", who=body.who, reason=body.reason)
        return json_response(next(row for row in mind.list_actuators() if row["actuator"] == name))

    @router.post("/facility/requests", tags=["facility"], openapi_extra=takes(AskBody))
    async def ask(request: Request) -> Response:
        """Ask the authority for something; it is judged within a second."""
        body = await read_body(request, AskBody)
        if body.who in POLICIES or body.who == "authority":
            raise Rejected(f"{body.who!r} is a policy's name", next_step="say who you are")
        if not body.reason:
            raise Rejected("a request wants a reason, for the audit")
        asked = Asked(
            request_id=f"{body.who}-{entropy.token_bytes(6).hex()}",
            requester=body.who,
            verb=body.verb,
            target=body.target,
            value=body.value,
            ttl_s=body.ttl_s,
            reason=body.reason,
        )
        _need(site, facility).mind.ask(asked)
        return json_response({"request_id": asked.request_id}, 202)

    @router.post("/facility/requests/{request_id:path}/approve", tags=["facility"], openapi_extra=takes(ApproveBody))
    async def approve(request_id: str, request: Request) -> Response:
        """Agree to what another person asked for."""
        body = await read_body(request, ApproveBody)
        mind = _need(site, facility).mind
        if request_id not in {one.request_id for one in mind.list_awaiting()}:
            raise NotFound(f"no request {request_id!r} waits for a second person")
        mind.approve(Approve(request_id=request_id, who=body.who))
        return json_response({"request_id": request_id}, 202)


def show_fact(fact: Fact | None) -> dict[str, Any]:
    """Return a fact as people and programs read it."""
    if fact is None:
        return {"value": None, "quality": "bad", "age_s": 0.0, "reason": "nothing was derived yet"}
    return {
        "value": None if fact.value is None or abs(fact.value) == float("inf") else round(fact.value, 4),
        "quality": fact.quality.value,
        "age_s": round(fact.age_s, 3),
        "reason": fact.reason,
    }


def show_facility(facility: Facility, now_s: float) -> dict[str, Any]:
    """Return the whole of a site's facility in one object."""
    facts, envelope = facility.mind.world.facts, facility.allowed.envelope
    alarms = facility.alarms.list_alarms()
    active = [one for one in alarms if one.is_active]
    names = ("pue", "headroom_w", "runtime_s", "thermal_margin_k", "time_to_limit_s")
    return {
        "site": str(facility.file.model.site),
        "title": facility.file.title,
        "is_simulated": any(device.is_simulated for device in facility.file.devices),
        **{name: show_fact(getattr(facts, name, None)) for name in names},
        "rack_headrooms_w": {} if facts is None else {k: show_fact(v) for k, v in facts.rack_headrooms_w.items()},
        "envelope": show_envelope(envelope, now_s),
        "devices": {
            "all": len(facility.file.devices),
            "answering": sum(state.is_answering for state in facility.poller.states.values()),
        },
        "alarms": {
            "active": len(active),
            "unacknowledged": sum(one.state.value == "unacknowledged" for one in alarms),
            "worst": min((one.priority for one in active), key=lambda one: one.rank, default=None),
        },
    }


def show_envelope(envelope: Envelope | None, now_s: float) -> dict[str, Any] | None:
    """Return the envelope with how long it still holds; None before the first."""
    if envelope is None:
        return None
    row: dict[str, Any] = msgspec.to_builtins(envelope)
    for name in ("headroom_w", "runtime_s", "thermal_margin_k", "time_to_limit_s"):
        row[name] = show_fact(getattr(envelope, name))
    return {**row, "holds_for_s": round(envelope.valid_until_s - now_s, 3)}


def point_rows(facility: Facility, now_s: float, equipment: str = "") -> Iterable[dict[str, Any]]:
    """Yield what points read, of one piece of equipment or of all."""
    for point_id, sample in facility.book.samples(now_s).items():
        point = facility.book.points[point_id]
        if equipment and point.equipment_id != equipment:
            continue
        yield {
            "point": point_id,
            "equipment": point.equipment_id,
            "kind": point.kind.value,
            "quantity": point.quantity.value,
            "unit": point.unit,
            "context": point.context,
            "value": sample.value,
            "text": sample.text,
            "quality": sample.quality.value,
            "reason": sample.reason,
            "age_s": round(max(0.0, now_s - sample.observed_at_s), 3),
            "is_simulated": point.is_simulated,
        }


def device_rows(facility: Facility) -> list[dict[str, Any]]:
    """Return every device and whether it answers; never its secret."""
    return [
        {
            "device": device_id,
            "driver": state.device.driver,
            "address": state.device.address,
            "profile": state.device.profile,
            "equipment": state.device.equipment,
            "is_answering": state.is_answering,
            "trouble": state.trouble,
            "polls": state.polls,
            "failures": state.failures,
            "took_s": round(state.took_s, 4),
            "is_simulated": state.device.is_simulated,
        }
        for device_id, state in sorted(facility.poller.states.items())
    ]
