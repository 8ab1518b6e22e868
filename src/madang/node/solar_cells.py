"""The recipe of `solar-cell-defects`: learns from pictures of solar cells under current which of them have defects.

Owns what is measured on a picture, the learning, and the graph that does the same in ONNX. Data: ELPV (Buerhop-Lutz et
al. 2018; Deitsch et al. 2019), 2,624 cells of 44 modules, 300 x 300 pixels, each with a chance of a defect, licence
CC BY-NC-SA 4.0: weights made from it stay on the node that made them. Called by the node's recipes.

A picture is cut into blocks of 20 x 20 pixels. Of each kind of measure (brightness; change over three pixels across and
down) the blocks' values are sorted, and eight of them from the least to the largest are kept: where in the cell a dark
or torn block lies does not matter. A linear rule on these 24 numbers is the exact solution of regularised least
squares: sums are whole numbers, the equations are solved in fractions, so every machine finds the same weights. Trained
on the cells outside the held-out groups; measured on those, see the test of this module.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from madang.core import Rejected
from madang.node.grey_png import Pixels, read_greys
from madang.node.onnx_file import Constant, Node, Port, encode_model
from madang.node.recipes import Wheels

SIDE = 300
_BLOCK = 20
_REACH = 3
"""Pixels over which a change is measured: cracks are two to five wide."""
KEPT = 8
_PICTURES_AT_ONCE = 512
"""Bounds memory: 300 MB at this many."""
_RIDGE = 16
"""Each weight is held back by this part of its own measure's variance; 1/10 to 1/100 judge alike."""
_STEEPNESS = 4.0
"""Of the score around one half; it ranks, it is no probability."""
GROUP_CELLS = 60
"""A module has 36 to 72 cells, which stand together; held-out cells come in whole groups of about a module."""
_HELD_OUT_OF_TEN = 3

Whole = NDArray[np.int64]


def is_held_out(number: int) -> bool:
    """Return whether the cell at that place of the list (from 0) is kept from learning."""
    return number // GROUP_CELLS % 10 < _HELD_OUT_OF_TEN


def read_labels(archive: zipfile.ZipFile, folder: str) -> list[tuple[str, str]]:
    """Return (picture's path, chance of a defect as it is written) of every cell, in the list's order."""
    try:
        text = archive.read(f"{folder}/labels.csv").decode("ascii")
        return [(f"{folder}/{name}", chance) for name, chance, _ in map(str.split, filter(str.strip, text.split("\n")))]
    except (KeyError, ValueError) as error:
        raise Rejected(f"{archive.filename}: expected {folder}/labels.csv of ELPV: {error}") from error


def make_model(wheels: Wheels, check_wanted: Callable[[], None]) -> bytes:
    """Return the model's file; some 20 s of one core and 300 MB of memory."""
    ((wheel, folder),) = wheels
    with zipfile.ZipFile(wheel) as archive:
        cells = [
            (path, chance)
            for number, (path, chance) in enumerate(read_labels(archive, folder))
            if not is_held_out(number) and chance.rstrip("0") in ("0.", "1.")
        ]
        is_defect = np.array([chance.startswith("1") for _, chance in cells])
        found = [
            measure(
                read_greys([archive.read(path) for path, _ in cells[start : start + _PICTURES_AT_ONCE]], check_wanted)
            )
            for start in range(0, len(cells), _PICTURES_AT_ONCE)
        ]
    return write_model(*learn(np.concatenate(found), is_defect))


def measure(pixels: Pixels) -> Whole:
    """Return the measures (picture, measure) of pictures, as sums over blocks."""
    values = pixels.astype(np.int16)
    across = abs(values[:, :, _REACH:] - values[:, :, :-_REACH])
    down = abs(values[:, _REACH:] - values[:, :-_REACH])
    kept = []
    for kind in (values, across, down):
        sums = np.sort(_sum_blocks(kind), axis=1)
        kept.append(sums[:, list(_places(sums.shape[1]))])
    return np.concatenate(kept, axis=1)


def _sum_blocks(values: NDArray[np.int16]) -> Whole:
    count, height, width = len(values), values.shape[1] // _BLOCK, values.shape[2] // _BLOCK
    whole = values[:, : height * _BLOCK, : width * _BLOCK]
    blocks = whole.reshape(count, height, _BLOCK, width, _BLOCK)
    sums: Whole = blocks.sum(axis=(2, 4), dtype=np.int64)
    return sums.reshape(count, height * width)


def _places(count: int) -> Iterator[int]:
    """Yield which of so many sorted values are kept: the least, the largest, and some evenly between."""
    return (number * (count - 1) // (KEPT - 1) for number in range(KEPT))


def learn(measures: Whole, is_defect: NDArray[np.bool_]) -> tuple[list[Fraction], Fraction]:
    """Return weights and offset: above nothing nearer to defective cells, below it to sound ones."""
    centre = measures.sum(axis=0) // len(measures)
    spread = measures - centre
    wanted = np.where(is_defect, 1, -1) * len(measures) - (2 * int(is_defect.sum()) - len(measures))
    products = spread.T @ spread
    products += np.diag(np.diag(products) // _RIDGE + 1)
    goals = spread.T @ wanted
    rows = [[Fraction(int(value)) for value in (*row, goal)] for row, goal in zip(products, goals, strict=True)]
    weights = [weight / len(measures) for weight in solve(rows)]
    return weights, -(_mean_of(weights, measures[is_defect]) + _mean_of(weights, measures[~is_defect])) / 2


def _mean_of(weights: Sequence[Fraction], measures: Whole) -> Fraction:
    """Return the mean of what weights make of pictures."""
    sums = (int(one) for one in measures.sum(axis=0))
    return sum((weight * one for weight, one in zip(weights, sums, strict=True)), Fraction(0)) / len(measures)


def solve(rows: list[list[Fraction]]) -> list[Fraction]:
    """Return the solution of equations whose last column is the right side; the matrix is positive definite."""
    for pivot, row in enumerate(rows):
        for other in rows[pivot + 1 :]:
            factor = other[pivot] / row[pivot]
            for column in range(pivot, len(row)):
                other[column] -= factor * row[column]
    solved: list[Fraction] = []
    for row in reversed(rows):
        place = len(rows) - 1 - len(solved)
        known = sum((a * b for a, b in zip(row[place + 1 : -1], reversed(solved), strict=True)), Fraction(0))
        solved.append((row[-1] - known) / row[place])
    return solved[::-1]


def write_model(weights: Sequence[Fraction], offset: Fraction) -> bytes:
    """Return the graph: pictures (row, 300, 300) of bytes in, a score for each row out."""
    blocks = (SIDE // _BLOCK) ** 2
    fewer = SIDE // _BLOCK * ((SIDE - _REACH) // _BLOCK)
    pooling = (("kernel_shape", (_BLOCK, _BLOCK)), ("strides", (_BLOCK, _BLOCK)))
    nodes = [Node("Cast", ("image",), ("bytes",), (("to", 1),)), Node("Reshape", ("bytes", "picture"), ("grey",))]
    for axis, name in (("column", "across"), ("line", "down")):
        nodes += [
            Node("Slice", ("grey", "reach", "end", axis), (f"{name}_late",)),
            Node("Slice", ("grey", "begin", "end_early", axis), (f"{name}_early",)),
            Node("Sub", (f"{name}_late", f"{name}_early"), (f"{name}_change",)),
            Node("Abs", (f"{name}_change",), (f"{name}_size",)),
        ]
    for source, name, count in (
        ("grey", "light", blocks),
        ("across_size", "across", fewer),
        ("down_size", "down", fewer),
    ):
        nodes += [
            Node("AveragePool", (source,), (f"{name}_pooled",), pooling),
            Node("Reshape", (f"{name}_pooled", f"row_of_{count}"), (f"{name}_row",)),
            Node(
                "TopK",
                (f"{name}_row", f"all_{count}"),
                (f"{name}_sorted", f"{name}_order"),
                (("axis", 1), ("largest", 0)),
            ),
            Node("Gather", (f"{name}_sorted", f"places_{count}"), (f"{name}_kept",), (("axis", 1),)),
        ]
    nodes += [
        Node("Concat", ("light_kept", "across_kept", "down_kept"), ("measures",), (("axis", 1),)),
        Node("MatMul", ("measures", "weights"), ("weighted",)),
        Node("Add", ("weighted", "offset"), ("distance",)),
        Node("Sigmoid", ("distance",), ("scores",)),
        Node("Reshape", ("scores", "flat"), ("score",)),
    ]
    area = _BLOCK * _BLOCK  # weights are of sums, the graph has means
    constants = [
        _whole("picture", -1, 1, SIDE, SIDE),
        _whole("reach", _REACH),
        _whole("end", SIDE),
        _whole("begin", 0),
        _whole("end_early", SIDE - _REACH),
        _whole("line", 2),
        _whole("column", 3),
        _whole("flat", -1),
        Constant("weights", (len(weights), 1), [float(weight * area) * _STEEPNESS for weight in weights]),
        Constant("offset", (1,), [float(offset) * _STEEPNESS]),
    ]
    for count in (blocks, fewer):
        constants += [
            _whole(f"row_of_{count}", -1, count),
            _whole(f"all_{count}", count),
            _whole(f"places_{count}", *_places(count)),
        ]
    image, score = Port("image", "UINT8", ("rows", SIDE, SIDE)), Port("score", "FP32", ("rows",))
    return encode_model("solar-cell-defects", nodes, constants, (image,), (score,))


def _whole(name: str, *values: int) -> Constant:
    return Constant(name, (len(values),), values, is_whole=True)
