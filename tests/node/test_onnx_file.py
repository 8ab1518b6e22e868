"""Models that are written by hand load in ONNX Runtime and compute what their graph says."""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.node.onnx_file import Constant, Node, Port, encode_model

HAS_RUNTIME = importlib.util.find_spec("onnxruntime") is not None
pytestmark = pytest.mark.skipif(not HAS_RUNTIME, reason="the extra `onnx` is not installed")
if HAS_RUNTIME:
    import numpy as np
    import onnxruntime as ort


def scaled_sums(weights):
    """Return a model that gives, for each row, the weighted sum of its last axis, and keeps that axis."""
    nodes = (
        Node("Mul", ("x", "weights"), ("weighted",)),
        Node("ReduceSum", ("weighted", "axes"), ("y",), (("keepdims", 1),)),
    )
    constants = (
        Constant("weights", (len(weights),), weights),
        Constant("axes", (1,), (-1,), is_whole=True),
    )
    ports = Port("x", "FP32", ("rows", len(weights))), Port("y", "FP32", ("rows", 1))
    return encode_model("sums", nodes, constants, ports[:1], ports[1:])


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200), st.integers(1, 5))
def test_a_model_computes_what_its_graph_says(weights, rows):
    data = scaled_sums(weights)
    assert data == scaled_sums(weights), "the same graph has the same bytes"
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("x", "tensor(float)", ["rows", len(weights)])
    values = np.linspace(-1, 1, rows * len(weights), dtype=np.float32).reshape(rows, -1)
    (found,) = session.run(None, {"x": values})
    expected = (values.astype(float) * np.array(weights, dtype=np.float32)).sum(axis=-1, keepdims=True)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-2)
