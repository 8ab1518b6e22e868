"""Columns of chips that `madang chip list` and `madang chip probe` share.

Owns the words. Refuses to know where rows come from.
"""

from madang.cli.terminal import Column, Row, field, render


def _place(row: Row) -> str | None:
    place, numa = row.get("pci_address"), row.get("numa_node")
    return f"{place} ({numa})" if place and numa is not None else place


def _whole(name: str) -> Column:
    heads = {"clock_mhz": "MHz", "power_w_max": "LIMIT W"}

    def value(row: Row) -> str | None:
        number = row.get(name)
        return f"{number:.0f}" if isinstance(number, int | float) else None

    return heads[name], value


def _why(row: Row) -> list[str]:
    """Return why it is not well, and why its versions do not go together."""
    return [render(text) for text in (row.get("reason"), row.get("incompatibility")) if text]


CARD_COLUMNS: tuple[Column, ...] = (
    _whole("power_w_max"),
    _whole("clock_mhz"),
    ("PCI (NUMA)", _place),
    ("CARD", lambda row: row.get("group") or row.get("serial")),
    ("DRIVER", field("driver_version")),
    ("FIRMWARE", field("firmware_version")),
    ("WHY", _why),
)
"""What a card adds to the readings that every chip has."""
