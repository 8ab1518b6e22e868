"""A chip driver's manifest as its driver reads it: which cards there are, and which versions go together.

Owns the shape of the tables that code uses; the rest of the file is for people (`docs/hardware`) and is not read
here. Refuses to know vendors. Called by drivers when they are made.
"""

import tomllib
from importlib import resources

import msgspec

from madang.chip.compatibility import VersionRule


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One product.

    Attributes:
        product: the vendor's name for it.
        pci: its PCI ids, `vendor:device` in lower-case hexadecimal.
        cores: parts that may be given apart.
        core_sets: which sets of them; empty: the whole chip only.
        memory_bytes: what the vendor states, for where the card cannot be asked.
        power_w_tdp: what the vendor states; never a limit to plan with.
        throttle_c: from this temperature on its driver throttles; None where the vendor does not say.
    """

    product: str
    pci: tuple[str, ...] = ()
    cores: int = 1
    core_sets: tuple[tuple[int, ...], ...] = ()
    memory_bytes: int = 0
    power_w_tdp: float | None = None
    throttle_c: float | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What code reads of a manifest."""

    name: str
    verified_on: str
    cards: tuple[Card, ...] = ()
    compatibility: tuple[VersionRule, ...] = ()

    def find_card(self, pci_id: str, *names: str) -> Card | None:
        """Return the card with this PCI id, else the one whose product is among `names`, else None."""
        wanted = {name.lower() for name in names}
        by_id = [card for card in self.cards if pci_id and pci_id in card.pci]
        by_name = [card for card in self.cards if card.product.lower() in wanted]
        return next(iter(by_id + by_name), None)


def load_manifest(package: str) -> Manifest:
    """Return the manifest of a driver's package."""
    text = (resources.files(package) / "manifest.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Manifest)
