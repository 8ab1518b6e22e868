"""What is missing where, line by line."""

import msgspec
import pytest

from madang.model import Artifact, ArtifactFile, ArtifactKey, CatalogEntry, HttpSource, Task
from madang.model.build import Build, BuildRequest, BuildState
from madang.policy.coverage import ChipGroup, CoverageState, cover, fits_sdk

OWN = ArtifactFile(name="own.fxb", size_bytes=5, sha256="aa" * 32)
PUBLIC = ArtifactFile(name="q4.gguf", size_bytes=7, sha256="bb" * 32, sources=(HttpSource(url="https://x/q4"),))
NPU = Artifact(
    artifact_id="npu", engine="furiosa_llm", chip_kinds=("furiosa",), files=(OWN,), memory_bytes=1, sdk="furiosa-2026.3"
)
CPU = Artifact(artifact_id="cpu", engine="llama_cpp", chip_kinds=("cpu",), files=(PUBLIC,), memory_bytes=1)
ENTRY = CatalogEntry(name="qwen", task=Task.CHAT, title="x", licence="x", artifacts=(NPU, CPU))
KEY = ArtifactKey(model="qwen", chip_kind="rebellions", sdk="rbln-0.8")


def one(kind="furiosa", sdk="2026.3.1", *, held=(), standing=("npu", "cpu"), builds=()):
    (row,) = cover(ENTRY, standing, [ChipGroup(site="daegu", chip_kind=kind, sdk_version=sdk)], held, builds)
    return row


def build(state, **changes):
    request = BuildRequest(key=KEY, artifact_id="x", engine="vllm", memory_bytes=1)
    return Build(build_id=KEY.key_id, request=request, state=state, **changes)


@pytest.mark.parametrize(
    ("artifact", "chip", "is_fitting"),
    [
        ("", "1.2", True),
        ("furiosa-2026.3", "", True),
        ("furiosa-2026.3", "2026.3", True),
        ("furiosa-2026.3", "2026.3.1", True),
        ("furiosa-2026.3", "2026.30", False),
        ("furiosa-2026.3", "2026.1", False),
    ],
)
def test_an_artifact_fits_its_sdk_and_what_refines_it(artifact, chip, is_fitting):
    assert fits_sdk(artifact, chip) is is_fitting


def test_what_is_in_the_store_is_ready():
    assert (one(held={OWN.sha256}).state, one(held={OWN.sha256}).text) == (CoverageState.READY, "")


def test_a_file_that_only_its_publisher_has_is_named_with_its_size():
    row = one("cpu", "")
    assert (row.state, row.artifact_id) == (CoverageState.FETCHABLE, "cpu")
    assert "7 bytes" in row.text
    assert "q4.gguf" in row.text


def test_a_file_that_nobody_has_is_named_by_its_hash():
    row = one()
    assert row.state is CoverageState.NO_FILES
    assert OWN.sha256 in row.text
    assert row.next_step.endswith(f"madang model import FILE --sha256 {OWN.sha256}")


def test_an_artifact_of_another_sdk_does_not_count_and_is_named():
    row = one(sdk="2026.1")
    assert row.state is CoverageState.NO_ARTIFACT
    assert "there is one for furiosa-2026.3" in row.text
    # Everything that can be known stands in the command already.
    assert row.next_step == (
        "madang model build qwen --chip furiosa --sdk furiosa-2026.1 --engine furiosa_llm --memory-bytes 1"
    )


def test_a_chip_that_nothing_was_ever_built_for_gets_a_command_with_blanks():
    row = one("rebellions", "0.9")
    assert row.text == "no artifact for rebellions 0.9"
    assert (
        row.next_step
        == "madang model build qwen --chip rebellions --sdk rebellions-0.9 --engine ENGINE --memory-bytes BYTES"
    )


def test_chips_that_are_too_few_are_counted():
    entry = msgspec.structs.replace(ENTRY, artifacts=(msgspec.structs.replace(NPU, chips=8),))
    group = ChipGroup(site="daegu", chip_kind="furiosa", sdk_version="2026.3", chips=4)
    (row,) = cover(entry, ("npu",), [group], {OWN.sha256}, ())
    assert (row.state, row.text) == (CoverageState.TOO_FEW_CHIPS, "npu needs 8 chips, and 4 are there")


def test_what_is_there_needs_nothing_done_and_all_else_does():
    assert one(held={OWN.sha256}).next_step == ""
    assert one("cpu", "").next_step == "", "it comes by itself"
    rows = [one(), one(sdk="2026.1"), one("cpu", "", standing=("npu",)), one("rebellions", "0.9")]
    rows += [one("rebellions", "0.8", builds=(build(state),)) for state in (BuildState.QUEUED, BuildState.FAILED)]
    assert all("madang " in row.next_step for row in rows)


def test_an_artifact_that_is_not_equivalent_says_how_to_show_it():
    row = one("cpu", "", standing=("npu",))
    assert (row.state, row.artifact_id) == (CoverageState.NOT_EQUIVALENT, "cpu")
    assert "madang model compare qwen" in row.next_step


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ((), CoverageState.NO_ARTIFACT),
        ((build(BuildState.QUEUED),), CoverageState.BUILDING),
        ((build(BuildState.BUILDING, worker="w1"),), CoverageState.BUILDING),
        ((build(BuildState.FAILED),), CoverageState.BUILD_FAILED),
        ((build(BuildState.CANCELLED),), CoverageState.NO_ARTIFACT),
    ],
)
def test_builds_are_told(found, state):
    assert one("rebellions", "0.8.2", builds=found).state is state
    assert one("rebellions", "0.9", builds=found).state is CoverageState.NO_ARTIFACT


def test_a_build_that_failed_says_its_last_words_and_one_that_waits_that_nobody_has_it():
    failed = one("rebellions", "0.8.2", builds=(build(BuildState.FAILED, attempt=3, log="much\nout of memory\n"),))
    assert failed.text.endswith("failed after 3 attempts, its last words: out of memory")
    assert failed.next_step == f"madang model builds {KEY.key_id}, then with --retry"
    assert one("rebellions", "0.8.2", builds=(build(BuildState.QUEUED),)).text.endswith("no worker has taken it")


def test_rows_come_by_site_and_kind_and_a_bare_site_is_told():
    groups = [
        ChipGroup(site="gumi", chip_kind="cpu"),
        ChipGroup(site="daegu", chip_kind="furiosa", chips=4),
        ChipGroup(site="daegu", chip_kind="cpu"),
        ChipGroup(site="pohang", chip_kind="", chips=0),
    ]
    rows = cover(ENTRY, ("npu", "cpu"), groups, (), ())
    assert [(row.site, row.chip_kind) for row in rows] == [
        ("daegu", "cpu"),
        ("daegu", "furiosa"),
        ("gumi", "cpu"),
        ("pohang", ""),
    ]
    assert rows[-1].state is CoverageState.NO_CHIP
    assert msgspec.to_builtins(rows[1])["chips"] == 4
