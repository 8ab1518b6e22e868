"""The tariff book as it lies in files: the tables that come with the program, and those of a site.

Owns the reading. Refuses to know what is in them (`madang.policy.facility.tariff` does). Called by the site program,
by the hub for the tables that sites send, and by tests.
"""

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from madang.core import Rejected
from madang.policy.facility.tariff import Adder, EnergyTariff, TariffBook, parse_book


def load_tariff_book(files: Iterable[Path] = ()) -> TariffBook:
    """Return the book that comes with the program, with the tables of more files over it, the last one on top.

    Raises Rejected naming file, place and what is expected.
    """
    return make_tariff_book(read_tables(files))


def read_tables(files: Iterable[Path]) -> dict[str, str]:
    """Return tariff files as they are written, by path; raises Rejected naming the one that cannot be read."""
    texts = {}
    for path in files:
        try:
            texts[str(path)] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Rejected(f"the tariff file {path} cannot be read: {error}") from error
    return texts


def make_tariff_book(texts: Mapping[str, str]) -> TariffBook:
    """Return the book that comes with the program, with the tables of some texts over it, the last one on top.

    Raises Rejected naming text, place and what is expected.
    """
    tariffs: list[EnergyTariff] = []
    adders: list[Adder] = []
    folder = resources.files("madang.policy.facility") / "tariffs"
    own = [
        (entry.name, entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda one: one.name)
        if entry.name.endswith(".toml")
    ]
    for name, text in (*own, *texts.items()):
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Rejected(f"the tariff file {name} is not TOML: {error}") from error
        more_tariffs, more_adders = parse_book(raw, name)
        tariffs += more_tariffs
        adders += more_adders
    return TariffBook(tariffs, adders)
