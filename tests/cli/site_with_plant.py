"""A fake site with power and cooling: the answers of its admin API, and the state folder that leads there."""

import json

FACT = {"value": None, "quality": "bad", "age_s": 0.0, "reason": "nothing was derived yet"}
FACILITY = {
    "site": "daegu",
    "title": "대구 캐비닛",
    "is_simulated": True,
    "pue": {"value": 1.3263, "quality": "good", "age_s": 0.5, "reason": ""},
    "headroom_w": {"value": 1840.0, "quality": "uncertain", "age_s": 2.0, "reason": "name plate of the switch"},
    "runtime_s": {"value": 640.0, "quality": "good", "age_s": 1.0, "reason": ""},
    "thermal_margin_k": FACT,
    "time_to_limit_s": {"value": None, "quality": "good", "age_s": 0.0, "reason": "it gets no warmer"},
    "rack_headrooms_w": {"cabinet": {"value": 815.2, "quality": "good", "age_s": 1.0, "reason": ""}},
    "envelope": {
        "safety": "degraded",
        "shed_from": "batch",
        "is_spilling": True,
        "accepts_placements": False,
        "power_w_max": 1800.0,
        "nodes": [
            {"node": "daegu-1", "state": "drain", "power_w_max": 900.0, "reason": "the grid is lost"},
            {"node": "daegu-2", "state": "run", "power_w_max": None, "reason": ""},
        ],
        "causes": ["daegu/ups/ups.state_source/on_battery", *(f"cause {number}" for number in range(1, 7))],
        "holds_for_s": 9.4,
    },
    "devices": {"all": 7, "answering": 6},
    "alarms": {"active": 2, "unacknowledged": 1, "worst": "high"},
}


def lead_to(site, folder):
    """Write the state folder of a federation whose site daegu is the fake one."""
    folder.mkdir()
    path = folder / "credentials.json"
    path.touch(mode=0o600)
    known = {"name": "daegu", "url": "http://127.0.0.1:1", "admin_url": site.url, "admin_token": site.token}
    path.write_text(json.dumps({"hub_url": "u", "national_url": "n", "admin_token": "t", "sites": [known]}))


def alarm(equipment, point, condition, **more):
    """An alarm as the site's admin API shows it."""
    return {
        "key": {"site": "daegu", "equipment": equipment, "point": point, "condition": condition},
        "priority": "low",
        "state": "unacknowledged",
        "is_active": True,
        "is_known": True,
        "t_raise_s": 1_795_871_030.0,
        "cause": None,
        "is_chattering": False,
        "value": None,
        "title_ko": "통신 두절",
        "title_en": "does not answer",
        **more,
    }


def action(state, verb="cap", request_id="r1", value=1800.0, **more):
    """An action as the site's admin API shows it."""
    request = {"request_id": request_id, "requester": "authority", "verb": verb, "target": "daegu-1", "value": value}
    return {
        "request": {**request, "reason": "a breaker"},
        "state": state,
        "at_s": 1_795_871_030.0,
        "reason": "",
        **more,
    }
