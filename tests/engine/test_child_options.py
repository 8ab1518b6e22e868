"""Command lines of our own engines' children: what is wrong ends the child with words, before it opens anything."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from madang.engine.child_options import ChildOptions, many


@dataclass(frozen=True, kw_only=True)
class Options(ChildOptions):
    model: Path
    is_fast: bool
    sizes: tuple[int, ...] = field(metadata=many(int))
    spare: Path | None = None

    def __post_init__(self) -> None:
        if len(self.sizes) > 2:
            raise ValueError("--sizes: at most two")


WORDS = ("--alias=a", "--host=h", "--port=1", "--key-file=k", "--model=m", "--is-fast=on", "--sizes=3", "--sizes=4")
WHOLE = Options(alias="a", host="h", port=1, key_file=Path("k"), model=Path("m"), is_fast=True, sizes=(3, 4))


def test_each_field_stands_in_it_and_comes_back():
    assert WHOLE.to_argv() == WORDS
    assert Options.from_argv(list(WORDS)) == WHOLE
    assert Options.from_argv([*WORDS, "--spare=s"]).spare == Path("s")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (WORDS[1:], "--alias"),
        ((*WORDS[:2], "--port=x", *WORDS[3:]), "--port"),
        ((*WORDS[:5], "--is-fast=yes", *WORDS[6:]), "--is-fast"),
        ((*WORDS, "--more=1"), "--more"),
        ((*WORDS, "--spar=s"), "--spar"),
        ((*WORDS, "--sizes=5"), "--sizes: at most two"),
    ],
)
def test_what_is_wrong_is_named_and_ends_it(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        Options.from_argv(list(words))
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
