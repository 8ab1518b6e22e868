"""The page of models says what the code says where it repeats it."""

import importlib.util
from pathlib import Path

from madang.federation.catalog import builtin_catalog
from madang.model import UNITS_OF_TASK

ROOT = Path(__file__).resolve().parents[2]


def test_units_on_the_page_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("model_page", ROOT / "scripts" / "model_page.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert {task.value: units[0].value for task, units in UNITS_OF_TASK.items()} == script.UNITS


def test_every_model_stands_on_the_page_with_its_licence_and_its_warning():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for entry in builtin_catalog():
        rows = [line for line in page.splitlines() if line.startswith(f"| [{entry.name}]")]
        assert len(rows) == 1
        assert entry.licence in rows[0]
        assert entry.counted_in.value in rows[0]
        assert entry.warning in page
