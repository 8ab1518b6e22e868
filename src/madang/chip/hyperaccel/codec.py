"""Names in sysfs, to places of LPU cards.

Owns the convention: function 0 of a card belongs to xclmgmt, function 1 does the work (Backend.AI's plugin for these
cards). Refuses to open anything and to raise. Called by the hyperaccel driver.
"""

import re

from madang.chip.values import parse_pci_address


def parse_cards(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses of management functions among the names in a driver's folder, sorted."""
    found = {parse_pci_address(name) for name in names}
    return tuple(sorted(address for address in found if address.endswith(".0")))


def work_function(address: str) -> str:
    """Return the address of the function that does the work of a card."""
    return f"{address.removesuffix('.0')}.1"


def parse_render_node(names: tuple[str, ...]) -> str:
    """Return the one render node among the names below a function, or empty."""
    return next((name for name in names if re.match(r"renderD\d{1,4}\Z", name)), "")
