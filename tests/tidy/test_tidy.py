"""What linters cannot see: folder shapes, lengths, and that what exists is documented."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "madang"
MODULES = sorted(SOURCE.rglob("*.py"))
DRIVER_FILES = {"manifest.toml", "codec.py", "driver.py", "twin.py"}


def driver_folders():
    for family in ("chip", "engine", "facility"):
        for folder in sorted((SOURCE / family).glob("*/")):
            if folder.name != "__pycache__":
                yield folder


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_says_what_it_owns_and_fits_a_head(path):
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= 800, f"{lines} lines; files stop at 800"
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_function_fits_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            docstring = ast.get_docstring(node, clean=False)
            body = length - (docstring.count("\n") + 1 if docstring else 0)
            assert body <= 60, f"{node.name} has {body} lines; the limit is 60"


@pytest.mark.parametrize("folder", list(driver_folders()), ids=relative)
def test_a_driver_folder_has_the_four_files_and_a_full_manifest(folder):
    assert {path.name for path in folder.iterdir()} >= DRIVER_FILES
    manifest = tomllib.loads((folder / "manifest.toml").read_text(encoding="utf-8"))
    for key in ("name", "title", "owner", "verified_on"):
        assert manifest.get(key), f"manifest.toml lacks {key}"
    assert manifest["name"] == folder.name


def test_every_driver_of_hardware_says_what_it_reads_and_what_was_verified():
    for folder in driver_folders():
        if folder.parent.name == "engine":
            continue
        manifest = tomllib.loads((folder / "manifest.toml").read_text(encoding="utf-8"))
        assert manifest["reads"], f"{relative(folder)}: no [[reads]]"
        assert all(one["what"] and one["where"] and one["unit"] for one in manifest["reads"])
        for rule in manifest.get("compatibility", ()):
            assert rule["source"], f"{relative(folder)}: a rule on versions without a source"
        # Nothing is called verified without the hardware, or the words that say that there was none.
        assert "twin only" in manifest["verified_on"] or re.search(r"\d{4}-\d\d-\d\d", manifest["verified_on"])


def test_drivers_never_import_each_other():
    for folder in driver_folders():
        family, name = folder.parent.name, folder.name
        for path in folder.rglob("*.py"):
            for match in re.finditer(rf"madang\.{family}\.(\w+)", path.read_text(encoding="utf-8")):
                other = SOURCE / family / match[1]
                assert match[1] == name or not other.is_dir(), f"{relative(path)} imports {match[0]}"


def test_every_decision_record_is_in_the_index_and_complete():
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    records = sorted(path for path in folder.glob("[0-9]*.md"))
    assert records
    for path in records:
        assert f"({path.name})" in index, f"{path.name} is not in docs/adr/README.md"
        text = path.read_text(encoding="utf-8")
        for heading in ("## Context", "## Decision", "## Consequences"):
            assert heading in text, f"{path.name} lacks {heading}"


def settings_classes():
    for path in sorted(SOURCE.glob("*/*settings.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(k.arg == "forbid_unknown_fields" for k in node.keywords):
                yield path, node


def test_every_setting_is_explained_in_its_docstring():
    for path, node in settings_classes():
        docstring = ast.get_docstring(node) or ""
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                name = item.target.id
                assert re.search(rf"\b{name}\b", docstring), f"{relative(path)}: {name} is not in the docstring"


def test_what_is_generated_under_docs_is_what_the_code_says():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "make-docs", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_make_targets_that_the_readme_names_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z][a-z-]*)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"up", "test"} <= named <= targets


def test_relative_links_in_the_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{relative(path)} links to {target}, which is not there"


def test_no_large_or_binary_file_is_committed():
    for pattern in ("*.gguf", "*.whl", "*.onnx", "*.safetensors", "*.bin"):
        inside = [p for p in ROOT.rglob(pattern) if not set(p.parts) & {".venv", ".madang", ".git", ".hypothesis"}]
        assert not inside, inside
