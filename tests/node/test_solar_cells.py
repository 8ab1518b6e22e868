"""The recipe of the defect model: exact learning, and a graph that measures as the learning did."""

import importlib.util
import zipfile
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected

np = pytest.importorskip("numpy")
from madang.node import solar_cells  # noqa: E402 - needs numpy

HAS_RUNTIME = importlib.util.find_spec("onnxruntime") is not None


def pictures(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, solar_cells.SIDE, solar_cells.SIDE), dtype=np.uint8)


@pytest.mark.skipif(not HAS_RUNTIME, reason="the extra `onnx` is not installed")
def test_the_graph_scores_as_the_exact_rule_does():
    import onnxruntime as ort

    cells = pictures(4, 1)
    cells[1] //= 2
    cells[2, 100:103] = 0
    cells[3] = 128
    measures = solar_cells.measure(cells)
    weights, offset = solar_cells.learn(measures, np.array([True, False, True, False]))
    exact = [sum((w * int(m) for w, m in zip(weights, row, strict=True)), offset) for row in measures]
    session = ort.InferenceSession(solar_cells.write_model(weights, offset), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": cells})
    assert scores.shape == (4,)
    expected = [1 / (1 + np.exp(-4.0 * float(one))) for one in exact]
    assert np.allclose(scores, expected, atol=2e-3)
    assert (scores > 0.5).tolist() == [True, False, True, False], "it was trained on these"


def test_the_same_pictures_give_the_same_bytes():
    made = [
        solar_cells.write_model(*solar_cells.learn(solar_cells.measure(pictures(6, 2)), np.arange(6) % 2 == 0))
        for _ in range(2)
    ]
    assert made[0] == made[1]


@given(st.lists(st.lists(st.integers(-50, 50), min_size=3, max_size=3), min_size=3, max_size=3), st.data())
def test_equations_are_solved_exactly(rows, data):
    matrix = np.array(rows) @ np.array(rows).T + np.eye(3, dtype=int)
    wanted = [Fraction(data.draw(st.integers(-9, 9)), data.draw(st.integers(1, 9))) for _ in range(3)]
    right = [sum((int(a) * b for a, b in zip(row, wanted, strict=True)), Fraction(0)) for row in matrix]
    equations = [[*(Fraction(int(a)) for a in row), goal] for row, goal in zip(matrix, right, strict=True)]
    assert solar_cells.solve(equations) == wanted


def test_another_archive_is_named(tmp_path):
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/labels.csv", "only two\n")
    with pytest.raises(Rejected, match=r"expected data/labels\.csv of ELPV"):
        solar_cells.make_model([(path, "data")], lambda: None)
