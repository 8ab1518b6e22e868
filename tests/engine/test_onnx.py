"""The onnx engine: its texts and its queue in unit tests, real models on inputs that nobody here wrote."""

import asyncio
import contextlib
import importlib.util
import json
import math
import socket
import threading
import time
import wave
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.engine_replicas import CHAT, FILES, VOICE, fetched
from tests.engine.test_whisper import RECORDING

from madang.core import Rejected
from madang.engine import oip_tensors
from madang.engine.contract import Verdict
from madang.engine.onnx import codec
from madang.engine.onnx.batcher import Batcher, Bounds, Job
from madang.engine.onnx.driver import OnnxDriver
from madang.model import ArtifactFile, IndexWheelsSource, WheelPart
from madang.testing.engine_contract import KEY, make_request, run_engine
from madang.wire import oip
from madang.wire.openai_errors import ApiError, ErrorCode

HAS_RUNTIME = importlib.util.find_spec("onnxruntime") is not None
needs_runtime = pytest.mark.skipif(not HAS_RUNTIME, reason="the extra `onnx` is not installed")
if HAS_RUNTIME:
    import numpy as np

    from madang.engine.onnx.tensors import DTYPES, to_array, to_tensor


def wheel_file(name, size_bytes, sha256, package, version, wheel_sha256, member):
    part = WheelPart(package=package, version=version, wheel_sha256=wheel_sha256, member=member)
    return ArtifactFile(name=name, size_bytes=size_bytes, sha256=sha256, sources=(IndexWheelsSource(parts=(part,)),))


# A slice of a computed tomography as a scanner wrote it, which a package for medical pictures ships for its tests.
TOMOGRAPHY = wheel_file(
    "CT_small.dcm",
    39_206,
    "3dd31e5cc835b3f2cdd46c9da1982f59251e78518fefa8163d914631c66437d6",
    "pydicom",
    "3.0.2",
    "abf971a5440f84dbaf42c4b6758e30e62480902584f8b270b9a5d146e278a07b",
    "pydicom/data/test_files/CT_small.dcm",
)
# What its kinds are called, in the model's order, by its makers.
KINDS = wheel_file(
    "config.min.json",
    2_141,
    "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
    "magika",
    "1.0.3",
    "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    "magika/models/standard_v3_3/config.min.json",
)
# Who speaks when in the recording, by people who listened to it.
SPEAKERS = wheel_file(
    "sample.rttm",
    596,
    "d78fe62c69d8e6dcbb42c26adfce83faccb374c5a1e6d987fe37f85f1c173c87",
    "pyannote-audio",
    "3.4.0",
    "36e38f058059f46da3478dda581cda53d9d85a21173a3e70bbdbc3ba93b5e1b7",
    "pyannote/audio/sample/sample.rttm",
)
SIGNATURE = oip_tensors.Signature(
    (oip_tensors.Port("x", "FP32", (-1, 2)), oip_tensors.Port("words", "BYTES", (2,))),
    (oip_tensors.Port("y", "FP32", (-1, 1)),),
)


def make_tensor(name, datatype, shape, *, data=None, binary=None):
    text = b"" if data is None else json.dumps(data).encode()
    return oip.Tensor(name, datatype, tuple(shape), {}, text, None if binary is None else memoryview(binary))


def make_infer(*inputs, outputs=()):
    wanted = tuple(oip.WantedOutput(name, {}) for name in outputs)
    return oip.InferRequest("", {}, tuple(inputs), wanted, memoryview(b""))


GOOD = (
    make_tensor("x", "FP32", [3, 2], data=[0] * 6),
    make_tensor("words", "BYTES", [2], data=["a", "b"]),
)


# --- codec


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        (GOOD[:1], (), "'words'"),
        ((*GOOD, make_tensor("z", "FP32", [1], data=[1])), (), "'z'"),
        ((GOOD[0]._replace(datatype="FP64"), GOOD[1]), (), "datatype FP32, found FP64"),
        ((GOOD[0]._replace(shape=(3, 3)), GOOD[1]), (), r"shape \[-1, 2\]"),
        ((GOOD[0]._replace(shape=(6,)), GOOD[1]), (), r"shape \[-1, 2\]"),
        (GOOD, ("z",), "outputs y, found 'z'"),
    ],
)
def test_a_request_that_is_not_the_models_is_told_what_is(inputs, outputs, told):
    with pytest.raises(ApiError, match=told):
        oip_tensors.check_request(make_infer(*inputs, outputs=outputs), SIGNATURE)
    oip_tensors.check_request(make_infer(*GOOD, outputs=("y",)), SIGNATURE)


def test_values_may_be_nested_or_flat():
    nested = make_tensor("x", "FP32", [2, 1, 2], data=[[[1, 2]], [[3, 4]]])
    flat = make_tensor("x", "FP32", [2, 1, 2], data=[1, 2, 3, 4])
    assert oip_tensors.flat_values(nested) == oip_tensors.flat_values(flat) == [1, 2, 3, 4]
    for data in ([1, 2, 3], [[1, 2], [3, 4, 5]], {"a": 1}, 7, []):
        with pytest.raises(ApiError):
            oip_tensors.flat_values(make_tensor("x", "FP32", [2, 2], data=data))


@given(elements=st.lists(st.binary(max_size=6), max_size=5))
def test_elements_of_bytes_round_trip(elements):
    packed = oip_tensors.join_elements(elements)
    found = make_tensor("x", "BYTES", [len(elements)], binary=packed)
    assert oip_tensors.split_elements(found) == elements
    with pytest.raises(ApiError):
        oip_tensors.split_elements(found._replace(shape=(len(elements) + 1,)))
    with pytest.raises(ApiError):
        oip_tensors.split_elements(found._replace(binary=memoryview(packed + b"x")))


@given(packed=st.binary(max_size=40), size=st.integers(0, 2**70))
def test_no_bytes_make_the_splitter_fail_otherwise(packed, size):
    with contextlib.suppress(ApiError):
        assert len(oip_tensors.split_elements(make_tensor("x", "BYTES", [size], binary=packed))) == size


@given(
    alias=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    port=st.integers(1, 65535),
    threads=st.integers(1, 64),
    rows=st.integers(1, 99),
)
def test_command_lines_round_trip(alias, port, threads, rows):
    options = codec.ServeOptions(
        model=Path("m.onnx"),
        alias=alias,
        host="127.0.0.1",
        port=port,
        key_file=Path("k"),
        threads=threads,
        batch_rows=rows,
    )
    assert codec.ServeOptions.from_argv(list(options.to_argv())) == options


def test_a_model_of_another_task_or_shape_is_refused():
    with pytest.raises(Rejected, match="infer"):
        OnnxDriver().check(CHAT)
    other = FILES.artifact.files[0].__class__(name="weights.bin", size_bytes=1, sha256="0" * 64)
    artifact = FILES.artifact.__class__(
        artifact_id="a", engine="onnx", chip_kinds=("cpu",), files=(other,), memory_bytes=1
    )
    spec = FILES.__class__(
        **{name: getattr(FILES, name) for name in FILES.__struct_fields__ if name != "artifact"}, artifact=artifact
    )
    with pytest.raises(Rejected, match=r"NAME\.onnx"):
        OnnxDriver().check(spec)


def test_batches_are_never_larger_than_what_gateways_send_at_a_time(tmp_path):
    plan = OnnxDriver().plan_launch(make_request(FILES, tmp_path / "m", tmp_path / "key", 1))
    assert f"--batch-rows={FILES.slots}" in plan.argv


# --- numpy's side


@needs_runtime
@given(data=st.data(), shape=st.lists(st.integers(0, 3), max_size=3))
def test_every_datatype_round_trips_in_binary(data, shape):
    datatype = data.draw(st.sampled_from(sorted(oip.ITEM_BYTES.keys() - {"BF16", "BOOL"})))
    size = math.prod(shape) * oip.ITEM_BYTES[datatype]
    shift = data.draw(st.integers(0, 3))
    packed = memoryview(bytes(shift) + data.draw(st.binary(min_size=size, max_size=size)))[shift:]
    array = to_array(make_tensor("x", datatype, shape, binary=packed))
    assert array.shape == tuple(shape)
    assert array.flags.aligned
    again = to_tensor("x", array, is_binary=True)
    assert (again.datatype, again.shape, bytes(again.binary)) == (datatype, tuple(shape), bytes(packed))


@needs_runtime
@given(values=st.lists(st.integers(-128, 127), min_size=1, max_size=6))
def test_numbers_and_text_round_trip_in_json(values):
    for datatype in ("INT8", "INT16", "INT64", "FP32", "FP64"):
        array = to_array(make_tensor("x", datatype, [len(values)], data=values))
        assert json.loads(to_tensor("x", array, is_binary=False).data) == values
    words = [str(value) for value in values]
    text = to_array(make_tensor("x", "BYTES", [len(values)], data=words))
    assert json.loads(to_tensor("x", text, is_binary=False).data) == words
    packed = to_tensor("x", text, is_binary=True)
    assert to_array(packed).tolist() == words


@needs_runtime
@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("UINT8", [-1]),
        ("UINT8", [256]),
        ("INT32", [1.5]),
        ("INT32", [True]),
        ("FP32", ["1"]),
        ("FP32", [1e300]),
        ("FP32", [None]),
        ("FP32", [10**400]),
        ("BOOL", [1]),
        ("BYTES", [1]),
        ("BF16", [1]),
    ],
)
def test_values_that_are_not_of_their_datatype_are_refused(datatype, data):
    with pytest.raises(ApiError) as refused:
        to_array(make_tensor("x", datatype, [1], data=data))
    assert (refused.value.status, refused.value.param) == (400, "x")


@needs_runtime
def test_what_json_cannot_say_must_be_asked_for_in_binary():
    for array in (np.array([math.nan]), np.array([math.inf], dtype=np.float32), np.array([1], dtype=np.float16)):
        with pytest.raises(ApiError, match="binary_data"):
            to_tensor("y", array, is_binary=False)
        assert to_tensor("y", array, is_binary=True).binary is not None
    assert set(DTYPES) == {*oip.ITEM_BYTES, "BYTES"} - {"BF16"}


@needs_runtime
def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ApiError, match="UTF-8"):
        to_array(make_tensor("x", "BYTES", [1], binary=oip_tensors.join_elements([b"\xff"])))


# --- the queue


class Bench:
    """A batcher whose computations wait until they are let go, in the order they came."""

    def __init__(self, **bounds):
        self.batches = []
        self.gate = threading.Semaphore(0)
        self.failing = set()
        defaults = {"rows_max": 4, "wait_s": 0.0, "requests_max": 8, "bytes_max": 1000}
        self.abandoned = 0
        self.batcher = Batcher(self.compute, Bounds(**{**defaults, **bounds}), self.abandon)

    def abandon(self):
        self.abandoned += 1
        self.gate.release()

    def compute(self, several):
        self.batches.append(list(several))
        assert self.gate.acquire(timeout=10)
        if self.failing & set(several):
            raise ApiError(ErrorCode.INVALID_REQUEST, "cannot be computed")
        return [one * 2 for one in several]

    def submit(self, value, *, rows=1, key="k", size_bytes=1, is_gone=lambda: False):
        return asyncio.ensure_future(self.batcher.submit(Job(value, rows, size_bytes, key, is_gone)))

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  the batcher tells nobody when it begins
                await asyncio.sleep(0)

    def play(self, work):
        async def main():
            life = asyncio.create_task(self.batcher.run())
            try:
                await work()
            finally:
                for _ in range(50):
                    self.gate.release()
                life.cancel()
                await asyncio.wait([life])

        asyncio.run(main())


def test_what_queued_meanwhile_is_computed_together_up_to_the_bound():
    bench = Bench()

    async def work():
        first = bench.submit(0)
        await bench.until(lambda: bench.batches)
        others = [bench.submit(number) for number in range(1, 7)]
        await bench.until(lambda: bench.batcher.waiting == 6)
        assert bench.batcher.running == 1
        for _ in range(3):
            bench.gate.release()
        assert await asyncio.gather(first, *others) == [number * 2 for number in range(7)]

    bench.play(work)
    assert bench.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_only_the_same_key_joins_and_nobody_is_passed_over_for_ever():
    bench = Bench()

    async def work():
        first = bench.submit("-")
        await bench.until(lambda: bench.batches)
        later = [
            bench.submit(value, key=key) for value, key in (("a", 1), ("b", 2), ("c", 1), ("d", None), ("e", None))
        ]
        await bench.until(lambda: bench.batcher.waiting == 5)
        for _ in range(5):
            bench.gate.release()
        await asyncio.gather(first, *later)

    bench.play(work)
    assert bench.batches == [["-"], ["a", "c"], ["b"], ["d"], ["e"]]


def test_of_a_batch_that_fails_each_is_computed_alone():
    bench = Bench()
    bench.failing = {2}

    async def work():
        first = bench.submit(0)
        await bench.until(lambda: bench.batches)
        others = [bench.submit(number) for number in (1, 2, 3)]
        await bench.until(lambda: bench.batcher.waiting == 3)
        for _ in range(5):
            bench.gate.release()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [one if isinstance(one, int) else type(one) for one in found] == [0, 2, ApiError, 6]

    bench.play(work)
    assert bench.batches == [[0], [1, 2, 3], [1], [2], [3]]


def test_the_queue_is_bounded_in_number_and_bytes():
    bench = Bench(requests_max=3, bytes_max=100)

    async def work():
        kept = [bench.submit(0, size_bytes=10)]
        await bench.until(lambda: bench.batches)
        kept.append(bench.submit(1, size_bytes=60))
        await bench.until(lambda: bench.batcher.waiting == 1)
        with pytest.raises(ApiError) as refused:
            await bench.submit(2, size_bytes=31)
        assert (refused.value.status, refused.value.code) == (503, ErrorCode.OVERLOADED)
        kept.append(bench.submit(3, size_bytes=30))
        await bench.until(lambda: bench.batcher.waiting == 2)
        with pytest.raises(ApiError, match="3 requests"):
            await bench.submit(4, size_bytes=0)
        bench.gate.release()
        bench.gate.release()
        assert await asyncio.gather(*kept) == [0, 2, 6]
        bench.gate.release()
        assert await bench.submit(5, size_bytes=100) == 10

    bench.play(work)


def test_who_left_is_not_computed():
    bench = Bench()

    async def work():
        first = bench.submit(0)
        await bench.until(lambda: bench.batches)
        gone, cancelled, kept = bench.submit(1, is_gone=lambda: True), bench.submit(2), bench.submit(3)
        await bench.until(lambda: bench.batcher.waiting == 3)
        cancelled.cancel()
        bench.gate.release()
        bench.gate.release()
        assert await asyncio.gather(first, kept) == [0, 6]
        with pytest.raises(ApiError, match="left"):
            await gone

    bench.play(work)
    assert bench.batches == [[0], [3]]


def test_a_computation_is_abandoned_when_everybody_has_left_it():
    bench = Bench()
    gone, looks = set(), []

    def leaver(number):
        def is_gone():
            looks.append(number)
            return number in gone

        return is_gone

    async def work():
        first = bench.submit(0)
        await bench.until(lambda: bench.batches)
        pair = [bench.submit(number, is_gone=leaver(number)) for number in (1, 2)]
        bench.gate.release()
        assert await first == 0
        await bench.until(lambda: len(bench.batches) == 2)
        gone.add(1)
        seen = looks.count(2)
        await bench.until(lambda: looks.count(2) >= seen + 2)
        assert bench.abandoned == 0
        gone.add(2)
        await asyncio.gather(*pair, return_exceptions=True)

    bench.play(work)
    assert bench.batches == [[0], [1, 2]]
    assert bench.abandoned == 1


def test_a_lone_request_waits_for_company():
    bench = Bench(wait_s=30.0, rows_max=2)

    async def work():
        first = bench.submit(1)
        await asyncio.sleep(0)
        second = bench.submit(2)
        bench.gate.release()
        assert await asyncio.gather(first, second) == [2, 4]

    bench.play(work)
    assert bench.batches == [[1, 2]]


# --- real models


def binary_request(inputs, outputs=()):
    """Return httpx's arguments for tensors in binary: (name, array) each."""
    value = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": {"f": "FP32", "i": f"INT{array.itemsize * 8}"}[array.dtype.kind],
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in inputs.items()
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(value).encode()
    body = text + b"".join(array.tobytes() for array in inputs.values())
    return {"content": body, "headers": {"Inference-Header-Content-Length": str(len(text))}}


def arrays_of(answer):
    """Return the binary outputs of an answer by name."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    found, offset = {}, length
    for one in json.loads(answer.content[:length])["outputs"]:
        size = one["parameters"]["binary_data_size"]
        dtype = DTYPES[one["datatype"]]
        found[one["name"]] = np.frombuffer(answer.content[offset : offset + size], dtype).reshape(one["shape"])
        offset += size
    assert offset == len(answer.content)
    return found


def file_tokens(content):
    """Return what Magika wants to see of a file."""
    begin, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    tokens = [*begin, *[256] * (1024 - len(begin)), *[256] * (1024 - len(end)), *end]
    return np.array([tokens], dtype=np.int32)


real_model = pytest.mark.model


@needs_runtime
@real_model
@pytest.mark.peer
@pytest.mark.timeout(300)
def test_files_of_others_are_told_apart_alone_and_together(tmp_path):
    weights = fetched(FILES.artifact.files[0])
    kinds = json.loads(fetched(KINDS).read_bytes())["target_labels_space"]
    paths = {"dicom": fetched(TOMOGRAPHY), "wav": fetched(RECORDING), "python": Path(json.__file__)}
    tokens = {kind: file_tokens(path.read_bytes()) for kind, path in paths.items()}
    with run_engine(OnnxDriver(), FILES, weights, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 60)
        assert "batches" in (tmp_path / "engine.log").read_text()
        path = f"/v2/models/{FILES.service}/infer"
        alone = {}
        for kind, array in tokens.items():
            found = arrays_of(engine.client.post(path, **binary_request({"bytes": array})))["target_label"]
            alone[kind] = found[0]
            assert kinds[int(found[0].argmax())] == kind
            assert found[0].max() > 0.9
            said = engine.client.post(
                path,
                json={"inputs": [{"name": "bytes", "shape": [1, 2048], "datatype": "INT32", "data": array.tolist()}]},
            ).json()["outputs"][0]["data"]
            assert np.allclose(said, found[0])
        together = arrays_of(
            engine.client.post(path, **binary_request({"bytes": np.concatenate(list(tokens.values()))}))
        )
        for row, found in zip(together["target_label"], alone.values(), strict=True):
            assert np.allclose(row, found, atol=1e-4)


@needs_runtime
@real_model
@pytest.mark.peer
@pytest.mark.timeout(300)
def test_recorded_speech_is_heard_where_people_heard_it(tmp_path):
    """A model with a state, whose first axes are not all rows, so it is never batched."""
    weights = fetched(VOICE.artifact.files[0])
    with wave.open(str(fetched(RECORDING))) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2").astype(np.float32) / 32768
    turns = [line.split() for line in fetched(SPEAKERS).read_text().splitlines()]
    spans = [(float(turn[3]), float(turn[3]) + float(turn[4])) for turn in turns]
    with run_engine(OnnxDriver(), VOICE, weights, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 60)
        assert "one request at a time" in (tmp_path / "engine.log").read_text()
        path = f"/v2/models/{VOICE.service}/infer"
        state, context, likely = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32), []
        for begin in range(0, len(samples) - 511, 512):
            piece = np.concatenate([context, samples[None, begin : begin + 512]], axis=1)
            inputs = {"input": piece, "state": state, "sr": np.array(16_000, dtype=np.int64)}
            found = arrays_of(engine.client.post(path, **binary_request(inputs)))
            state, context = found["stateN"], piece[:, -64:]
            likely.append(float(found["output"][0, 0]))
        wide = np.zeros((2, 3, 128), np.float32)  # each shape may be, but not beside the other
        wrong = engine.client.post(path, **binary_request({**inputs, "state": wide}))
        assert (wrong.status_code, "cannot compute" in wrong.json()["error"]) == (422, True), wrong.text
        assert engine.probe().is_idle
    heard = np.array(likely) > 0.5
    middles_s = (np.arange(len(likely)) + 0.5) * 512 / 16_000
    spoken = np.array([any(begin <= middle < end for begin, end in spans) for middle in middles_s])
    assert 0.5 < spoken.mean() < 0.95
    agreement = float((heard == spoken).mean())
    assert agreement > 0.95, agreement
    assert heard[middles_s < 6.5].mean() < 0.1


@needs_runtime
@pytest.mark.peer
def test_a_file_that_is_no_model_ends_the_engine_with_a_reason(tmp_path):
    (tmp_path / "weights").write_bytes(b"no model")
    with run_engine(OnnxDriver(), FILES, tmp_path / "weights", tmp_path) as engine:
        assert engine.process.wait(60) == 1
    assert "no model that ONNX Runtime loads" in (tmp_path / "engine.log").read_text()


@needs_runtime
@real_model
@pytest.mark.timeout(300)
def test_rows_are_believed_independent_only_when_they_are():
    from madang.engine.onnx.model import OnnxModel

    files = OnnxModel(fetched(FILES.artifact.files[0]), 1)
    voice = OnnxModel(fetched(VOICE.artifact.files[0]), 1)
    assert (files.has_independent_rows, voice.has_independent_rows) == (True, False)

    class Mixed(OnnxModel):
        """The same model, and each row gets a little of its neighbours, as if the first axis were time."""

        def run(self, feeds):
            return [output + 0.01 * output.mean(axis=0, keepdims=True) for output in super().run(feeds)]

    class Causal(OnnxModel):
        """Each row gets a little of the one before it only."""

        def run(self, feeds):
            return [output + 0.01 * np.roll(output, 1, axis=0) * (len(output) > 1) for output in super().run(feeds)]

    for kind in (Mixed, Causal):
        assert not kind(fetched(FILES.artifact.files[0]), 1).has_independent_rows, kind


@needs_runtime
@real_model
@pytest.mark.timeout(300)
def test_a_computation_ends_early_when_it_is_abandoned():
    from madang.engine.onnx.model import OnnxModel

    model = OnnxModel(fetched(FILES.artifact.files[0]), 1)
    outcome = []

    def work():
        try:
            outcome.append(model.run({"bytes": np.zeros((500, 2048), np.int32)}))
        except ApiError as error:
            outcome.append(error)

    computing = threading.Thread(target=work)
    computing.start()
    while computing.is_alive():  # a computation that has not begun cannot be ended yet
        model.abandon()
        computing.join(0.01)
    assert isinstance(outcome[0], ApiError), "it computed to the end"
    assert "terminate" in outcome[0].message
    assert len(model.run({"bytes": np.zeros((1, 2048), np.int32)})[0]) == 1
    model.stop()
    with pytest.raises(ApiError, match="terminate"):
        model.run({"bytes": np.zeros((1, 2048), np.int32)})


@needs_runtime
@real_model
@pytest.mark.peer
@pytest.mark.timeout(300)
def test_who_leaves_frees_the_engine(tmp_path):
    weights = fetched(FILES.artifact.files[0])
    with run_engine(OnnxDriver(), FILES, weights, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 60)
        path = f"/v2/models/{FILES.service}/infer"
        with left_open(engine, path, binary_request({"bytes": np.zeros((500, 2048), np.int32)})):
            busy_until(engine, lambda reading: reading.running == 1)
            assert engine.client.get("/v2/health/live").status_code == 200
        busy_until(engine, lambda reading: reading.is_idle)
        assert engine.client.post(path, **binary_request({"bytes": np.zeros((1, 2048), np.int32)})).status_code == 200


@contextlib.contextmanager
def left_open(engine, path, request):
    """Send a request, and leave without its answer."""
    port = int(engine.endpoint.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        head += f"content-length: {len(request['content'])}\r\n"
        head += f"inference-header-content-length: {request['headers']['Inference-Header-Content-Length']}\r\n\r\n"
        client.sendall(head.encode() + request["content"])
        yield


def busy_until(engine, is_right):
    deadline_s = time.monotonic() + 60
    while not is_right(engine.probe()):
        assert time.monotonic() < deadline_s, engine.probe()
        time.sleep(0.02)
