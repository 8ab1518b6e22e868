"""One model in ONNX Runtime: what it takes and gives, whether its rows are independent, and running it.

Owns the session. Refuses to know requests and queues. The only module of ours that imports onnxruntime; called by
`serve`, in its computing thread.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states

from madang.core import Rejected
from madang.engine.oip_tensors import Port, Signature, check_signature
from madang.engine.onnx.tensors import DTYPES, Array
from madang.wire.oip import BYTES
from madang.wire.openai_errors import ApiError, ErrorCode

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}
_FAILURES = (states.Fail, states.RuntimeException, states.NotImplemented)
_TRIAL_SCALES = (1.0, 100.0, 0.01)
"""Company of another size gives a model away that scales a whole batch by its largest value."""
_SAME = 1e-4
"""Relative to the largest output, between batches of one size: what mixes rows is far off."""
_ABOUT_SAME = 5e-2
"""Between a row alone and in company: Magika, whose rows are independent, differs by 6e-3 here (onnxruntime 1.32)."""
_WORDS_MAX = 500

Feeds = Mapping[str, Array]


class OnnxModel:
    """A loaded model.

    Args:
        path: its file.
        threads: CPU threads of one computation.

    Raises:
        Rejected: the file is no model, or one with inputs or outputs that the protocol cannot carry.
    """

    def __init__(self, path: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin for one another cost a busy machine several times what they gain an idle one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (*_FAILURES, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf) as error:
            raise Rejected(f"{path.name} is no model that ONNX Runtime loads: {str(error)[:_WORDS_MAX]}") from error
        self._run_options: ort.RunOptions | None = None
        self._is_stopped = False
        self.signature = Signature(
            tuple(_port(one, path.name) for one in self._session.get_inputs()),
            tuple(_port(one, path.name) for one in self._session.get_outputs()),
        )
        check_signature(self.signature, path.name)
        self.has_independent_rows = self._is_batchable() and self._try_rows()

    def abandon(self) -> None:
        """End the computation under way, if there is one, with an error; called from another thread."""
        options = self._run_options
        if options is not None:
            options.terminate = True

    def stop(self) -> None:
        """End the computation under way, and every later one, with an error; called from another thread."""
        self._is_stopped = True
        self.abandon()

    def run(self, feeds: Feeds) -> list[Array]:
        """Return all outputs in the model's order; raises ApiError 422 for values with which it fails.

        On processors a model fails for what it was given: lengths that do not fit one another, an index out of range,
        shapes that need more memory than there is. So a failure is the request's, which is not tried elsewhere, and
        no other tenant's requests leave this engine for it.
        """
        options = self._run_options = ort.RunOptions()
        options.terminate = self._is_stopped
        try:
            outputs: list[Array] = self._session.run(None, dict(feeds), options)
        except (*_FAILURES, states.InvalidArgument) as error:
            message = f"the model cannot compute these inputs: {str(error)[:_WORDS_MAX]}"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, param="inputs", status=422) from error
        finally:
            self._run_options = None
        return outputs

    def run_together(self, several: Sequence[Feeds]) -> list[list[Array]]:
        """Return the outputs of each of several feeds, computed as one; only for a model with independent rows."""
        if len(several) == 1:
            return [self.run(several[0])]
        names = [port.name for port in self.signature.inputs]
        joined = self.run({name: np.concatenate([feeds[name] for feeds in several]) for name in names})
        ends = np.cumsum([len(feeds[names[0]]) for feeds in several])
        if any(len(output) != ends[-1] for output in joined):
            raise ApiError(ErrorCode.UPSTREAM_FAILED, "the model gave another number of rows", status=500)
        parts = [np.split(output, ends[:-1]) for output in joined]
        return [[part[number] for part in parts] for number in range(len(several))]

    def _is_batchable(self) -> bool:
        """Return whether the shapes allow batches: a free first axis everywhere, and no other free length to try."""
        ports = (*self.signature.inputs, *self.signature.outputs)
        is_free = all(port.shape and port.shape[0] == -1 for port in ports)
        return is_free and all(-1 not in port.shape[1:] and port.datatype != BYTES for port in self.signature.inputs)

    def _try_rows(self) -> bool:
        """Return whether a row comes out the same in any company; a free first axis alone does not promise that.

        It may as well be time or a sequence, and some models look at a whole batch: to compute requests of different
        tenants together would then mix them up. Kernels differ with the size of a batch, so that a row alone is
        only asked to come out about the same.
        """
        chance = np.random.default_rng(0)
        row, large, small = (
            {port.name: _draw(port, scale, chance) for port in self.signature.inputs} for scale in _TRIAL_SCALES
        )
        try:
            alone = self.run(row)
            if any(len(output) != 1 for output in alone):
                return False
            before = [self.run_together([row, other])[0] for other in (large, small)]
            after = [self.run_together([other, row])[1] for other in (large, small)]
        except ApiError:
            return False
        is_same = all(_are_alike(before[0], other, _SAME) for other in (before[1], *after))
        return is_same and _are_alike(alone, before[0], _ABOUT_SAME)


def _port(argument: ort.NodeArg, where: str) -> Port:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        expected = "tensors of numbers or text; export the model without maps and sequences, such as ZipMap's"
        raise Rejected(f"{where}: {argument.name} is a {argument.type}; expected {expected}")
    shape = tuple(length if isinstance(length, int) and length >= 0 else -1 for length in argument.shape)
    return Port(argument.name, datatype, shape)


def _draw(port: Port, scale: float, chance: np.random.Generator) -> Array:
    shape, dtype = (1, *port.shape[1:]), DTYPES[port.datatype]
    if dtype.kind == "f":
        return (chance.uniform(-1.0, 1.0, shape) * scale).astype(dtype)
    return chance.integers(0, 2, shape).astype(dtype)  # small enough for an index into anything


def _are_alike(one: Sequence[Array], other: Sequence[Array], tolerance: float) -> bool:
    return all(_is_alike(first, second, tolerance) for first, second in zip(one, other, strict=True))


def _is_alike(one: Array, other: Array, tolerance: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        # A choice between two that are nearly alike may fall otherwise in a batch of another size.
        return tolerance == _ABOUT_SAME or bool(np.array_equal(one, other))
    largest = float(np.max(np.abs(one), initial=0.0))
    return bool(np.allclose(one, other, rtol=0.0, atol=tolerance * largest))
