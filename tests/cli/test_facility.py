"""`madang facility check`: what it prints, and that errors end with 1."""

import json

PROFILE = """
name = "mine"
driver = "modbus"
title = "a meter"
points = [
  { name = "power", quantity = "power", kind = "meter", ref = "holding:0", context = "input" },
  { name = "temperature_inlet", quantity = "temperature", ref = "holding:2", context = "inlet" },
]
"""
SITE = """
[site]
name = "here"

[equipment.utility]
kind = "utility"
power_w = 900

[equipment.server]
kind = "server"
power_w = 800
fed_by = ["utility"]
cooled_by = ["fan"]

[equipment.fan]
kind = "cooling_unit"
power_w = 50
cooling_w = 2000
fed_by = ["utility"]

[device.meter]
driver = "modbus"
address = "127.0.0.1:502"
profile = "mine.toml"
equipment = "server"
"""


def write(tmp_path, text):
    (tmp_path / "mine.toml").write_text(PROFILE, encoding="utf-8")
    (tmp_path / "site.toml").write_text(text, encoding="utf-8")
    return str(tmp_path / "site.toml")


def test_warnings_let_a_site_pass_and_are_said_in_both_languages(madang, tmp_path):
    answer = madang("facility", "check", write(tmp_path, SITE))
    assert answer.exit_code == 0, answer.output
    shown = " ".join(answer.stdout.split())
    for text in ("warning 경고", "fan", "nothing stands in for it", "대신할 장비가 없습니다", "0 errors", "오류 0"):
        assert text in shown


def test_errors_end_with_1_and_json_has_all_of_them(madang, tmp_path):
    answer = madang("facility", "check", write(tmp_path, SITE.replace("power_w = 900", "power_w = 600")), "--json")
    assert answer.exit_code == 1
    found = json.loads(answer.stdout)
    assert (found["site"], found["equipment"], found["devices"], found["points"]) == ("here", 3, 1, 2)
    errors = [row for row in found["findings"] if row["severity"] == "error"]
    assert found["errors"] == len(errors) == 1
    assert (errors[0]["rule"], errors[0]["place"]) == ("overloaded", "utility")
    assert "0.85 kW of at most 0.60 kW" in errors[0]["why"]
    assert errors[0]["why_ko"]
    assert errors[0]["next_step"]


def test_a_file_that_is_wrong_is_refused_with_its_place(madang, tmp_path):
    answer = madang("facility", "check", write(tmp_path, SITE.replace("power_w = 800", "watts = 800")))
    assert answer.exit_code == 1
    assert "[equipment.server] has the unknown key 'watts'" in answer.stderr
    assert "power_w" in answer.stderr
