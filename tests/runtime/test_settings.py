from pathlib import Path

import msgspec
import pytest

from madang.core import Rejected
from madang.runtime.settings import load_settings


class Cupboard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table within the settings."""

    door: Path | None = None


class Kitchen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a test sets."""

    port: int = 1
    ratio: float = 0.5
    folder: Path = Path("/nowhere")
    words: tuple[str, ...] = ()
    cupboards: dict[str, Cupboard] = {}
    drawers: tuple[Path, ...] = ()
    is_open: bool = False


def load(path=None, environ=None, **flags):
    return load_settings(Kitchen, path, env_prefix="MADANG_KITCHEN_", environ=environ or {}, flags=flags)


def test_file_then_environment_then_flags(tmp_path):
    path = tmp_path / "kitchen.toml"
    path.write_text('port = 2\nratio = 0.25\nwords = ["a"]\n')
    environ = {"MADANG_KITCHEN_RATIO": "0.75", "MADANG_KITCHEN_PORT": "3", "MADANG_KITCHEN_IS_OPEN": "true"}
    assert load(path, environ, port=4, folder=None) == Kitchen(port=4, ratio=0.75, words=("a",), is_open=True)


def test_a_list_in_the_environment_is_written_as_in_toml():
    assert load(environ={"MADANG_KITCHEN_WORDS": '["llama_cpp", "embed"]'}).words == ("llama_cpp", "embed")


def test_paths_may_stand_in_lists_and_tables_of_the_environment():
    environ = {"MADANG_KITCHEN_CUPBOARDS": '{left = {door = "/a"}}', "MADANG_KITCHEN_DRAWERS": '["/b", "/c"]'}
    found = load(environ=environ)
    assert found.cupboards == {"left": Cupboard(door=Path("/a"))}
    assert found.drawers == (Path("/b"), Path("/c"))


@pytest.mark.parametrize(
    ("text", "named"),
    [("prot = 1\n", ["prot", "known keys", "port"]), ('port = "x"\n', ["key port", "expected `int`"]), ("port = ", [])],
)
def test_a_wrong_file_names_file_key_and_what_was_expected(tmp_path, text, named):
    path = tmp_path / "kitchen.toml"
    path.write_text(text)
    with pytest.raises(Rejected) as caught:
        load(path)
    for word in [str(path), *named]:
        assert word in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("PORT", "many"), ("WORDS", "[1"), ("WORDS", "[1]")])
def test_a_wrong_variable_is_named(name, text):
    with pytest.raises(Rejected, match=f"MADANG_KITCHEN_{name}"):
        load(environ={f"MADANG_KITCHEN_{name}": text})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Rejected, match="does not exist"):
        load(tmp_path / "none.toml")
