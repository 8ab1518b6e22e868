"""`madang chip probe` shows what drivers find here, and records it so that tests can play it."""

import json

import msgspec

from madang.chip.furiosa.twin import FuriosaTwin
from madang.chip.rebellions.twin import RebellionsTwin
from madang.chip.recording import Recording


def test_this_machine_has_processors_at_least(madang):
    answer = madang("chip", "probe", "--kind", "cpu", "--json")
    assert answer.exit_code == 0, answer.output
    (chip,) = json.loads(answer.stdout)["chips"]
    assert (chip["kind"], chip["is_simulated"]) == ("cpu", False)


def test_cards_are_shown_and_recorded(madang, tmp_path):
    FuriosaTwin(tmp_path / "machine", cards=2).throttle(1)
    RebellionsTwin(tmp_path / "machine", cards=1, product="RBLN-CA25")
    answer = madang("chip", "probe", "--root", str(tmp_path / "machine"), "--record", str(tmp_path / "new"))
    assert answer.exit_code == 0, answer.output
    for shown in ("RNGD", "RBLN-CA25", "throttled:", "app_power_cap", "칩", "전력", "225"):
        assert shown in " ".join(answer.stdout.split())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["furiosa.json", "rebellions.json"]
    for path in (tmp_path / "new").iterdir():
        recording = msgspec.json.decode(path.read_bytes(), type=Recording)
        assert recording.origin == "simulated: read from a twin"
        assert len(recording.chips) == {"furiosa": 2, "rebellions": 4}[recording.kind]


def test_an_unknown_driver_and_an_unknown_folder_are_refused(madang, tmp_path):
    answer = madang("chip", "probe", "--kind", "gpu")
    assert (answer.exit_code, "no chip driver 'gpu'" in answer.stderr) == (1, True)
    answer = madang("chip", "probe", "--root", str(tmp_path / "none"))
    assert (answer.exit_code, "not a folder" in answer.stderr) == (1, True)
