"""`madang facility …` and `madang alarm …` on a site's own admin API: what they send and print, and how they fail."""

import json

import pytest
from tests.cli.site_with_plant import FACILITY, action, alarm, lead_to

from madang.cli import facility_views
from madang.model import PriorityClass

POINT = {
    "point": "cooling_1.temperature_supply",
    "equipment": "cooling_1",
    "kind": "sensor",
    "unit": "Cel",
    "value": 18.5,
    "text": "",
    "quality": "good",
    "reason": "",
    "age_s": 0.4,
    "is_simulated": True,
}
LOST = {**POINT, "point": "cooling_2.state_running", "value": None, "quality": "bad", "reason": "it did not answer"}
DEVICE = {
    "device": "server",
    "driver": "redfish",
    "address": "http://127.0.0.1:7765",
    "profile": "bmc",
    "equipment": "server",
    "is_answering": False,
    "trouble": "the device did not answer within 2 s",
    "polls": 9,
    "failures": 4,
    "took_s": 2.0,
    "is_simulated": True,
}


@pytest.fixture
def site(hub, madang, tmp_path):
    """Run commands against a fake site with power and cooling; its hub is not there."""
    lead_to(hub, tmp_path / "state")
    hub.answers["GET", "/api/v1/facility"] = (200, FACILITY)
    hub.run = lambda *words: madang(*words, "--site", "daegu")
    return hub


def shown(answer):
    assert answer.exit_code == 0, answer.output
    return " ".join(answer.stdout.split())


def answered(site, path, value, *words):
    site.answers["GET", path] = (200, value)
    text = shown(site.run(*words))
    assert json.loads(site.run(*words, "--json").stdout) == value
    return text


def test_an_operator_on_the_spot_names_site_and_token_without_a_state_folder(hub, madang):
    hub.answers["GET", "/api/v1/facility"] = (200, FACILITY)
    words = ("facility", "show", "--site", "daegu", "--json")
    by_option = madang(*words, "--site-url", hub.url, "--token", hub.token)
    by_environment = madang(*words, env={"MADANG_SITE_URL": hub.url, "MADANG_ADMIN_TOKEN": hub.token})
    assert json.loads(by_option.stdout) == json.loads(by_environment.stdout) == FACILITY
    without = madang(*words, "--site-url", hub.url)
    assert without.exit_code == 1
    assert "asks for its own admin token" in without.stderr
    assert "MADANG_ADMIN_TOKEN" in without.stderr
    assert "--site-url" in madang(*words).stderr, "who has neither is told both ways"


# What is shown


def test_show_says_value_quality_age_and_reason_and_that_it_is_simulated(site):
    text = shown(site.run("facility", "show"))
    for part in (
        "대구 캐비닛 · simulated / 모의",
        "PUE 전력효율 1.33 good 0.5s -",
        "headroom 전력 여유 1,840 W uncertain 2.0s name plate of the switch",
        "battery runtime 배터리 지속 10m40s good",
        "thermal margin 온도 여유 - bad - nothing was derived yet",
        "time to limit 한계까지 ∞ good",
        "headroom 전력 여유: cabinet 815 W good",
        "degraded, refuses batch and less urgent requests, peers come first, takes no new replicas, at most 1,800 W",
        "holds for 9 s",
        "because / 원인: daegu/ups/ups.state_source/on_battery",
        "because / 원인: cause 4 … and 2 more",
        "daegu-1 drain 900.0 the grid is lost",
        "6 of 7 answer",
        "2 active, 1 unacknowledged, worst high; see: madang alarm list --site daegu",
    ):
        assert part in text
    assert "daegu-2" not in text
    assert json.loads(site.run("facility", "show", "--json").stdout) == FACILITY


def test_an_envelope_that_ran_out_or_never_came_is_said(site):
    late = {**FACILITY["envelope"], "holds_for_s": -3.0}
    site.answers["GET", "/api/v1/facility"] = (200, {**FACILITY, "envelope": late})
    assert "HAS RUN OUT" in shown(site.run("facility", "show"))
    site.answers["GET", "/api/v1/facility"] = (200, {**FACILITY, "envelope": None})
    assert "nothing was decided yet" in shown(site.run("facility", "show"))


def test_points_are_of_one_equipment_where_asked_and_a_lost_one_has_no_number(site):
    text = answered(site, "/api/v1/facility/points", [POINT, LOST], "facility", "points")
    assert "points / 점 (simulated / 모의)" in text
    assert "cooling_1.temperature_supply 18.5 °C good 0.4s sensor -" in text
    assert "cooling_2.state_running - bad" in text
    assert "it did not answer" in text
    site.run("facility", "points", "--equipment", "cooling_1")
    assert site.calls[-1][1:3] == ("/api/v1/facility/points", "equipment=cooling_1")


def test_devices_that_do_not_answer_say_why(site):
    text = answered(site, "/api/v1/facility/devices", [DEVICE], "facility", "devices")
    assert "server server redfish bmc http://127.0.0.1:7765 down 4/9" in text
    assert "server: the device did not answer within 2 s" in text


def test_headroom_has_the_tightest_first_and_says_a_doubt_once(site):
    def row(place, what, limit, headroom):
        facts = [
            {"value": value, "quality": "uncertain", "age_s": 0.1, "reason": "a name plate"}
            for value in (limit - headroom, headroom)
        ]
        return {
            "place": place,
            "what": what,
            "phase": "L1" if what == "phase" else "",
            "limit": limit,
            "load": facts[0],
            "headroom": facts[1],
            "after_loss_of": "cooling_1" if what == "cooling" else "",
        }

    rows = [row("ups", "apparent", 3000.0, 1042.0), row("pdu", "phase", 2000.0, 100.0)]
    rows.append(row("cooling", "cooling", 3500.0, 1640.0))
    text = answered(site, "/api/v1/facility/headroom", rows, "facility", "headroom")
    assert "pdu phase L1 2,000 W 1,900 W 100 W - uncertain" in text
    assert "ups apparent 3,000 VA 1,958 VA 1,042 VA" in text
    assert "3,500 W 1,860 W 1,640 W cooling_1" in text
    assert text.index("pdu phase") < text.index("ups apparent") < text.index("cooling cooling")
    assert text.count("a name plate") == 1


def test_meters_show_what_came_since_the_last_reading_and_nothing_over_a_gap(site):
    def reading(point, at_s, value):
        return {"point_id": point, "at_s": at_s, "value_wh": value, "quality": "good", "is_simulated": True}

    rows = [reading("meter.energy", 900, 1_000_000.0), reading("meter.energy", 1800, 1_000_600.0)]
    rows += [reading("meter.energy", 2700, None), reading("meter.energy", 3600, 1_001_900.0)]
    rows += [reading("other.energy", 900, 5000.0)]
    text = answered(site, "/api/v1/facility/meters", rows, "facility", "meters", "--since", "1970-01-01")
    assert "since_s=0.0" in site.calls[-1][2]
    assert "1,000.600 0.600 good" in text
    assert "1,001.900 - good" in text
    assert "5.000 - good" in text


def test_a_site_without_a_facility_or_an_unknown_site_says_what_to_do(site, madang):
    why = site.error("not_found", "site daegu has no facility: its settings name no site file", "set facility_file")
    site.answers["GET", "/api/v1/facility"] = (404, why)
    answer = site.run("facility", "show")
    assert answer.exit_code == 1
    assert "its settings name no site file" in answer.stderr
    assert "try: set facility_file" in answer.stderr
    answer = madang("facility", "show", "--site", "busan")
    assert answer.exit_code == 1
    assert "choose one of national, daegu" in answer.stderr


# What is said to it


def test_actuators_are_listed_armed_and_let_observe_with_who_and_why(site):
    rows = [
        {"actuator": "daegu.shed", "mode": "armed", "by": "site"},
        {"actuator": "x.cap", "mode": "observe", "by": ""},
    ]
    text = answered(site, "/api/v1/facility/actuators", rows, "facility", "actuators")
    assert "daegu.shed armed site file or settings / 사이트 설정" in text
    assert "x.cap observe -" in text
    for verb, mode in (("arm", "armed"), ("observe", "observe")):
        path = f"/api/v1/facility/actuators/x.cap/{verb}"
        site.answers["POST", path] = (200, {"actuator": "x.cap", "mode": mode, "by": "hand"})
        assert shown(site.run("facility", verb, "x.cap", "--reason", "tried", "--who", "kim")) == f"x.cap: {mode}"
        assert site.calls[-1] == ("POST", path, "", {"reason": "tried", "who": "kim"})


def test_a_request_carries_a_class_as_its_rank_and_says_what_became_of_it(site):
    site.answers["POST", "/api/v1/facility/requests"] = (202, {"request_id": "kim-1"})
    refused = action("refused", "shed", "kim-1", reason="a door is open")
    site.answers["GET", "/api/v1/facility/actions"] = (200, {"actions": [refused], "awaiting": []})
    words = [
        "facility",
        "request",
        "shed",
        "daegu",
        "--value",
        "batch",
        "--for",
        "30m",
        "--reason",
        "heat",
        "--who",
        "kim",
    ]
    assert shown(site.run(*words)) == "kim-1: refused: a door is open"
    sent = next(call[3] for call in site.calls if call[0] == "POST")
    assert sent == {
        "verb": "shed",
        "target": "daegu",
        "value": float(PriorityClass.BATCH.rank),
        "ttl_s": 1800.0,
        "reason": "heat",
        "who": "kim",
    }


def test_a_request_that_wants_a_second_person_says_how_to_agree(site):
    site.answers["POST", "/api/v1/facility/requests"] = (202, {"request_id": "kim-2"})
    waiting = {"request_id": "kim-2", "verb": "isolate_liquid", "target": "cdu", "requester": "kim", "reason": "wet"}
    site.answers["GET", "/api/v1/facility/actions"] = (200, {"actions": [], "awaiting": [waiting]})
    words = ["facility", "request", "isolate_liquid", "cdu", "--reason", "wet", "--who", "kim"]
    assert "madang facility approve kim-2 --site daegu --who NAME" in shown(site.run(*words))
    found = json.loads(site.run(*words, "--json").stdout)
    assert found == {"request_id": "kim-2", "state": "awaiting", "reason": ""}
    site.answers["POST", "/api/v1/facility/requests/kim-2/approve"] = (202, {"request_id": "kim-2"})
    assert shown(site.run("facility", "approve", "kim-2", "--who", "lee")).startswith("kim-2: approved")
    assert site.calls[-1][3] == {"who": "lee"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cap", "daegu-1"], "--value WATTS"),
        (["shed", "daegu", "--value", "all"], "expected one of clinical, interactive, batch"),
        (["cap", "daegu-1", "--value", "much"], "expected a number"),
        (["cap", "daegu-1", "--value", "9", "--for", "soon"], "duration 'soon' is not valid"),
        (["explode", "daegu-1"], "isolate_liquid"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(site, words, said):
    answer = site.run("facility", "request", *words, "--reason", "r")
    assert answer.exit_code != 0
    assert said in " ".join(answer.output.replace("│", " ").split())
    assert not site.calls


def test_actions_have_units_and_what_waits_is_listed_first(site):
    waiting = {"request_id": "kim-2", "verb": "isolate_liquid", "target": "cdu", "requester": "kim", "reason": "wet"}
    rows = [action("confirmed"), action("observed", "shed", value=float(PriorityClass.BATCH.rank))]
    found = {"actions": rows, "awaiting": [waiting]}
    text = answered(site, "/api/v1/facility/actions", found, "facility", "actions")
    assert "cap daegu-1 1,800 W confirmed authority a breaker" in text
    assert "shed daegu-1 batch observed authority" in text
    assert text.index("kim-2") < text.index("confirmed")


# Alarms


def test_consequences_stand_below_their_cause_and_none_is_left_out(site):
    root = alarm("server", "", "comms_loss", priority="medium")
    low = {"cause": root["key"], "state": "suppressed"}
    ring = [alarm("ring", "ring.a", "high"), alarm("ring", "ring.b", "high")]
    ring[0]["cause"], ring[1]["cause"] = ring[1]["key"], ring[0]["key"]
    other = alarm("fan", "fan.state", "failed", is_known=False, value=3.25)
    rows = [alarm("server", "server.leak", "reading_lost", **low), root, other, *ring]
    found = {"site": "daegu", "is_flood": True, "alarms": rows}
    text = answered(site, "/api/v1/alarms", found, "alarm", "list")
    assert "경보 폭주" in text
    assert text.index("server/-/comms_loss medium unacknowledged") < text.index("└ server.leak reading_lost")
    assert text.index("└ server.leak") < text.index("fan.state/failed")
    for part in ("not read now", "ring.a", "ring.b", "madang alarm acknowledge ALARM --site daegu"):
        assert part in text


def test_an_alarm_is_acknowledged_and_shelved_by_its_name(site):
    site.answers["POST", "/api/v1/alarms/acknowledge"] = (200, {"state": "acknowledged"})
    said = shown(site.run("alarm", "acknowledge", "server/-/comms_loss", "--who", "kim"))
    assert said == "server/-/comms_loss: acknowledged"
    assert site.calls[-1][3] == {"equipment": "server", "point": "", "condition": "comms_loss", "who": "kim"}
    site.answers["POST", "/api/v1/alarms/shelve"] = (200, {"state": "shelved"})
    for name in ("daegu/ups/ups.charge/low", "ups/ups.charge/low", "ups.charge/low"):
        shown(site.run("alarm", "shelve", name, "--for", "2h", "--reason", "known", "--who", "kim"))
        key = {"equipment": "ups", "point": "ups.charge", "condition": "low"}
        assert site.calls[-1][3] == {**key, "for_s": 7200.0, "reason": "known", "who": "kim"}
    answer = site.run("alarm", "reset", "ups")
    assert answer.exit_code == 1
    assert "expected POINT/CONDITION or EQUIPMENT/-/CONDITION" in answer.stderr


def test_the_journal_says_who_and_why(site):
    key = alarm("ups", "ups.charge", "low")["key"]
    row = {"sequence": 3, "at_s": 0.0, "key": key, "what": "shelved", "was": "unacknowledged", "now": "shelved"}
    rows = [{**row, "who": "kim", "reason": "battery on order"}]
    text = answered(site, "/api/v1/alarms/journal", rows, "alarm", "journal", "--limit", "7")
    assert "ups.charge low shelved shelved kim: battery on order" in text
    assert site.calls[-1][2] == "limit=7"


def test_nothing_wrong_is_said_too(site):
    site.answers["GET", "/api/v1/alarms"] = (200, {"site": "daegu", "is_flood": False, "alarms": []})
    assert "nothing is wrong / 이상 없음" in shown(site.run("alarm", "list"))


# The line of `madang status`


def test_status_has_a_line_for_each_site_with_power_and_cooling(capsys):
    facility_views.print_facilities({"daegu": FACILITY, "gumi": None})
    text = " ".join(capsys.readouterr().out.split())
    assert "power and cooling (simulated / 모의)" in text
    assert "daegu degraded 1.33 1,840 W 10m40s - ∞ 6 of 7 2 (high)" in text
    assert "gumi" not in text
    facility_views.print_facilities({"gumi": None})
    assert capsys.readouterr().out == ""
