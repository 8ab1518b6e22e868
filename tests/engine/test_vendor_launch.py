"""Launch plans of vendors' engines: golden command lines for each range of versions, and what is refused beforehand."""

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.vendor_replicas import (
    COMPILED,
    CPU,
    CUDA,
    EMBED,
    FURIOSA,
    FURIOSA_HERE,
    FURIOSA_OLD,
    OCR,
    RBLN,
    VLLM_HERE,
    make_files,
    make_spec,
)

from madang.core import Rejected
from madang.engine.embed.driver import EmbedDriver
from madang.engine.furiosa_llm import codec as furiosa_codec
from madang.engine.furiosa_llm.driver import FuriosaLlmDriver
from madang.engine.llama_cpp.driver import LlamaCppDriver
from madang.engine.manifest import load_manifest, parse_version
from madang.engine.onnx.driver import OnnxDriver
from madang.engine.prometheus import first_count, sum_samples
from madang.engine.settings import EngineRuntime, RuntimeKind, check_runtime
from madang.engine.tesseract.driver import TesseractDriver
from madang.engine.vllm import codec as vllm_codec
from madang.engine.vllm.driver import VllmDriver
from madang.engine.whisper.driver import WhisperDriver
from madang.model import Task
from madang.node.drivers import make_engine_drivers
from madang.testing.engine_contract import make_request

ENGINES = Path(vllm_codec.__file__).parents[1]
NPU = ("npu:0",)


def plan_of(driver, spec, folder, devices):
    """Return the launch plan, the vendor's own arguments in it, and what `vendor_start` is told."""
    driver.check(spec)
    request = make_request(spec, make_files(folder, spec), folder / "key", 20000, devices)
    plan = driver.plan_launch(request)
    split = plan.argv.index("--")
    shown = [argument.replace(str(folder), "F") for argument in plan.argv]
    return plan, shown[split + 1 :], shown[:split]


def installed(folder, **packages):
    """Return a runtime whose virtual environment has these packages, as far as a driver looks."""
    site = folder / "venv" / "lib" / "python3.11" / "site-packages"
    for name, version in packages.items():
        (site / f"{name}-{version}.dist-info").mkdir(parents=True)
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return EngineRuntime(python=python)


def test_furiosa_2026_4(tmp_path):
    runtime = installed(tmp_path, furiosa_llm="2026.4.0", furiosa_llm_native="2026.4.0")
    plan, arguments, own = plan_of(FuriosaLlmDriver(runtime), FURIOSA, tmp_path, NPU)
    assert arguments == [
        *("serve", "F/model", "--fxb", "F/model/qwen.fxb", "--devices", "npu:0"),
        *("--host", "127.0.0.1", "--port", "20000", "--served-model-name", "a-service"),
        *("--max-model-len", "4096", "--max-concurrency", "8", "--no-enable-prefix-caching"),
    ]
    assert own == [
        *("F/venv/bin/python", "-I", str(ENGINES / "vendor_start.py"), "--key-file=F/key", "--folder=F/model"),
        *("--key-flag=--api-key", "--link=config.json=F/file-config.json"),
        *("--link=model.safetensors=F/file-model.safetensors", "--link=qwen.fxb=F/file-qwen.fxb"),
        *("--link=tokenizer.json=F/file-tokenizer.json", "--script=furiosa-llm"),
    ]
    assert plan.env == {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def test_furiosa_2026_2_has_no_bundle(tmp_path):
    driver = FuriosaLlmDriver(installed(tmp_path, furiosa_llm="2026.2.1"))
    spec = msgspec.structs.replace(FURIOSA_OLD, has_prefix_cache=True)
    _, arguments, _ = plan_of(driver, spec, tmp_path, ("npu:0", "npu:1:0-3"))
    assert arguments == [
        *("serve", "F/model", "--devices", "npu:0,npu:1:0-3", "--host", "127.0.0.1", "--port", "20000"),
        *("--served-model-name", "a-service", "--max-model-len", "4096", "--max-concurrency", "4"),
        "--enable-prefix-caching",
    ]


@pytest.mark.parametrize(
    ("changes", "version", "words"),
    [
        ({"sdk": "furiosa-2026.3"}, "2026.4.0", r"compiled with furiosa-2026\.3; this node has furiosa-llm 2026\.4\.0"),
        ({"sdk": ""}, "2026.4.0", "does not say which SDK"),
        ({"sdk": "furiosa-2025.3"}, "2025.3.0", "known: 2026.4 to the newest, 2026.2 to 2026.4"),
        ({"sdk": "furiosa-2026.2"}, "2026.2.0", "expects artifact.json"),
        ({"parallelism": "all"}, "2026.4.0", "expected tpN"),
        ({"files": ()}, "2026.4.0", "config.json and one .fxb"),
    ],
)
def test_furiosa_refuses_what_cannot_run(tmp_path, changes, version, words):
    spec = msgspec.structs.replace(FURIOSA, artifact=msgspec.structs.replace(FURIOSA.artifact, **changes))
    with pytest.raises(Rejected, match=words):
        FuriosaLlmDriver(installed(tmp_path, furiosa_llm=version)).check(spec)


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ((), "0 were granted"),
        (("npu:0", "npu:1"), "compiled for 8 PEs .tp8., and 16 were granted"),
        (("npu:0:0-3",), "4 were granted"),
        (("cpu0",), "expected devices npu:N"),
        (("npu:0", "npu:0:4-7"), "each once"),
    ],
)
def test_furiosa_takes_exactly_the_granted_pes(tmp_path, devices, words):
    driver = FuriosaLlmDriver(FURIOSA_HERE, "madang.engine.furiosa_llm.twin")
    with pytest.raises(Rejected, match=words):
        plan_of(driver, FURIOSA, tmp_path, devices)


@pytest.mark.parametrize("device", ["npu:3:0-3", "npu:3:4-7"])
def test_furiosa_takes_part_of_a_card_for_what_was_compiled_for_it(tmp_path, device):
    spec = msgspec.structs.replace(FURIOSA, artifact=msgspec.structs.replace(FURIOSA.artifact, parallelism="tp4"))
    driver = FuriosaLlmDriver(FURIOSA_HERE, "madang.engine.furiosa_llm.twin")
    _, arguments, _ = plan_of(driver, spec, tmp_path, (device,))
    assert arguments[arguments.index("--devices") + 1] == device


def test_furiosa_never_starts_without_devices(tmp_path):
    spec = msgspec.structs.replace(FURIOSA, artifact=msgspec.structs.replace(FURIOSA.artifact, parallelism=""))
    with pytest.raises(Rejected, match="no device was granted"):
        plan_of(FuriosaLlmDriver(FURIOSA_HERE, "madang.engine.furiosa_llm.twin"), spec, tmp_path, ())


VLLM_HEAD = ["serve", "F/model", "--host", "127.0.0.1", "--port", "20000", "--served-model-name", "a-service"]
VLLM_TAIL = ["--max-model-len", "4096", "--max-num-seqs", "4", "--disable-uvicorn-access-log"]


def test_vllm_on_two_gpus(tmp_path):
    driver = VllmDriver(installed(tmp_path, vllm="0.32.0"))
    plan, arguments, own = plan_of(driver, CUDA, tmp_path, ("GPU-1", "GPU-2"))
    assert arguments == [*VLLM_HEAD, *VLLM_TAIL, "--no-enable-prefix-caching", "--tensor-parallel-size", "2"]
    assert {"--key-variable=VLLM_API_KEY", "--script=vllm"} < set(own)
    assert plan.env["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert plan.env["VLLM_PLUGINS"] == ""
    assert plan.env["HF_HUB_OFFLINE"] == "1"


def test_vllm_on_processors_sees_no_accelerator(tmp_path):
    plan, arguments, _ = plan_of(VllmDriver(VLLM_HERE, "madang.engine.vllm.twin"), EMBED, tmp_path, ("cpu0",))
    assert arguments == [*VLLM_HEAD, *VLLM_TAIL, "--no-enable-prefix-caching", "--runner", "pooling"]
    assert (plan.env["CUDA_VISIBLE_DEVICES"], plan.env["VLLM_PLUGINS"], plan.env["OMP_NUM_THREADS"]) == ("", "", "2")


def test_vllm_on_rebellions_takes_the_compiled_shape_and_both_names_of_the_variable(tmp_path):
    driver = VllmDriver(installed(tmp_path, vllm="0.30.0+cpu", rebel_compiler="0.12.0"))
    spec = msgspec.structs.replace(RBLN, slots=3, context_tokens=1000)
    plan, arguments, _ = plan_of(driver, spec, tmp_path, ("rbln2", "rbln3"))
    assert arguments == [*VLLM_HEAD, *VLLM_TAIL, "--no-enable-prefix-caching"]
    assert plan.env["RBLN_VISIBLE_DEVICES"] == plan.env["RBLN_DEVICES"] == "2,3"
    assert plan.env["VLLM_PLUGINS"].split(",")[0] == "rbln"


def test_tesseract(tmp_path):
    driver = TesseractDriver(EngineRuntime(program=Path("/opt/t/tesseract"), env={"LD_LIBRARY_PATH": "/opt/t"}))
    plan = driver.plan_launch(make_request(OCR, make_files(tmp_path, OCR), tmp_path / "key", 20000))
    shown = [argument.replace(str(tmp_path), "F") for argument in plan.argv]
    assert shown[1:] == [
        *("-P", "-m", "madang.engine.tesseract.serve"),
        *("--alias=a-service", "--host=127.0.0.1", "--port=20000", "--key-file=F/key"),
        *("--program=/opt/t/tesseract", "--files=kor.traineddata=F/file-kor.traineddata"),
        *("--files=eng.traineddata=F/file-eng.traineddata", "--slots=2", "--threads=1"),
    ]
    assert plan.env == {"LD_LIBRARY_PATH": "/opt/t"}
    values = {"tessdata": "D", "languages": "kor+eng", "page_segmentation": 6}
    assert driver.manifest.command_for("5.3.0").render(values) == (
        *("stdin", "stdout", "--tessdata-dir", "D", "-l", "kor+eng", "--psm", "6", "-c", "tessedit_create_tsv=1"),
    )


@pytest.mark.parametrize(
    ("changes", "devices", "words"),
    [
        ({"slots": 5}, ("rbln0", "rbln1"), "slots is 5; it was compiled for at most 4"),
        ({"context_tokens": 4097}, ("rbln0", "rbln1"), "context_tokens is 4097; it was compiled for at most 4096"),
        ({}, ("rbln0",), "compiled for 2 devices, and 1 were granted"),
        ({}, ("gpu0", "gpu1"), "expected devices named rblnN"),
    ],
)
def test_vllm_refuses_more_than_was_compiled(tmp_path, changes, devices, words):
    with pytest.raises(Rejected, match=words):
        plan_of(
            VllmDriver(VLLM_HERE, "madang.engine.vllm.twin"),
            msgspec.structs.replace(RBLN, **changes),
            tmp_path,
            devices,
        )


def test_vllm_refuses_another_compiler_than_the_artifacts(tmp_path):
    with pytest.raises(Rejected, match=r"compiled with rebellions-0\.12; this node has rebel-compiler 0\.10\.3"):
        VllmDriver(installed(tmp_path, vllm="0.30.0", rebel_compiler="0.10.3")).check(RBLN)


def test_an_engine_that_is_not_installed_says_what_to_do(tmp_path):
    for driver, spec in ((VllmDriver(), CPU), (FuriosaLlmDriver(), FURIOSA)):
        with pytest.raises(Rejected, match="is not in its settings") as caught:
            driver.check(spec)
        assert "virtual environment" in caught.value.next_step
    with pytest.raises(Rejected, match="there is no"):
        VllmDriver(EngineRuntime(python=tmp_path / "nothing", version="0.32.0")).check(CPU)
    with pytest.raises(Rejected, match="is not known on this node"):
        VllmDriver(installed(tmp_path)).check(CPU)
    with pytest.raises(Rejected, match=r"apt-get install|there is no"):
        TesseractDriver(EngineRuntime(program=tmp_path / "nothing")).check(OCR)


def test_a_stated_version_must_be_the_installed_one(tmp_path):
    runtime = msgspec.structs.replace(installed(tmp_path, vllm="0.32.0"), version="0.30.0")
    with pytest.raises(Rejected, match=r"is 0\.30\.0, and vllm 0\.32\.0 is installed"):
        VllmDriver(runtime).check(CPU)


def test_other_tasks_and_kinds_are_refused():
    for driver in (VllmDriver(VLLM_HERE), FuriosaLlmDriver(FURIOSA_HERE), TesseractDriver()):
        with pytest.raises(Rejected, match="serves"):
            driver.capabilities_for(make_spec(driver.name, "cpu", (), task=Task.TRANSCRIPTION))
    with pytest.raises(Rejected, match="one kind of chip"):
        VllmDriver(VLLM_HERE, "madang.engine.vllm.twin").check(make_spec("vllm", "furiosa", ("config.json",)))


def test_a_container_needs_a_pinned_image_and_paths_are_absolute():
    with pytest.raises(Rejected, match="expected NAME@sha256:DIGEST"):
        check_runtime("vllm", EngineRuntime(kind=RuntimeKind.CONTAINER, image="vllm:latest"))
    with pytest.raises(Rejected, match="absolute path"):
        check_runtime("vllm", EngineRuntime(python=Path("bin/python")))
    with pytest.raises(Rejected, match="seccomp"):
        check_runtime("vllm", EngineRuntime(seccomp="none"))
    with pytest.raises(Rejected, match="has no runtime to choose"):
        make_engine_drivers((), {"llama_cpp": EngineRuntime()})


# Manifests


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in ENGINES.glob("*/manifest.toml")), ids=lambda p: p.name
)
def test_driver_and_manifest_agree(folder):
    driver = make_engine_drivers(())[folder.name]
    manifest = load_manifest(folder)
    assert manifest.name == driver.name == folder.name
    assert manifest.times == driver.times
    for engine in (LlamaCppDriver, EmbedDriver, WhisperDriver, OnnxDriver):
        if engine.name == folder.name:
            assert list(manifest.tasks.values()) == [driver.capabilities]
    raw = tomllib.loads((folder / "manifest.toml").read_text(encoding="utf-8"))
    assert set(raw) >= {"cannot", "stop", "secret", "health", "tasks", "times"}


def test_every_engine_with_a_manifest_is_known_to_nodes():
    assert {path.parent.name for path in ENGINES.glob("*/manifest.toml")} == set(make_engine_drivers(()))


def test_versions_are_compared_by_their_numbers():
    assert parse_version("2026.4.0b13") < parse_version("2026.4.1")
    assert parse_version("0.30.0+cpu") == (0, 30, 0)
    assert parse_version("") == ()


def test_a_command_line_has_every_value_or_none():
    line = load_manifest(ENGINES / "vllm").command_for("0.32.0")
    with pytest.raises(KeyError):
        line.render({"model": "m"})
    assert "--tensor-parallel-size" in line.flags


# Texts from outside


@given(st.binary(max_size=400))
def test_no_bytes_make_the_compiled_shape_lie(data):
    try:
        shape = vllm_codec.parse_rbln_config(data)
    except Rejected:
        return
    assert min(shape.batch, shape.context_tokens, shape.devices) > 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (COMPILED, (4, 4096, 2)),
        ({"batch_size": 1, "max_seq_len": 9, "tensor_parallel_size": 4}, (1, 9, 4)),
        ({"language_model": {"batch_size": 2, "max_seq_len": 8}, "num_devices": 8}, (2, 8, 8)),
        ({"batch_size": 1, "dec_max_seq_len": 448}, (1, 448, 1)),
    ],
)
def test_compiled_shapes_of_several_kinds_of_models(value, expected):
    shape = vllm_codec.parse_rbln_config(msgspec.json.encode(value))
    assert (shape.batch, shape.context_tokens, shape.devices) == expected


@pytest.mark.parametrize("value", [[], {}, {"batch_size": 0, "max_seq_len": 1}, {"batch_size": True, "max_seq_len": 1}])
def test_what_says_no_shape_is_refused(value):
    with pytest.raises(Rejected, match=r"rbln_config\.json"):
        vllm_codec.parse_rbln_config(msgspec.json.encode(value))


@given(st.lists(st.text(max_size=12), max_size=4).map(tuple))
def test_no_names_of_devices_are_taken_for_what_they_are_not(devices):
    for parse in (vllm_codec.rbln_numbers, furiosa_codec.join_devices):
        try:
            shown = parse(devices)
        except Rejected:
            continue
        assert shown.count(",") == len(devices) - 1


@given(st.binary(max_size=600))
def test_no_bytes_make_metrics_lie(body):
    samples = sum_samples(body)
    for name in samples:
        count = first_count(samples, (name,))
        assert count is None or count >= 0


def test_metrics_are_summed_over_engines_and_old_names_count_too():
    text = b"""# HELP vllm:num_requests_running x
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 2.0
vllm:num_requests_running{engine="1",model_name="a"} 1.0
vllm:gpu_cache_usage_perc 0.5
vllm:bad NaN
"""
    samples = sum_samples(text)
    assert first_count(samples, ("vllm:num_requests_running",)) == 3
    assert samples["vllm:gpu_cache_usage_perc"] == 0.5
    assert first_count(samples, ("vllm:nothing", "vllm:gpu_cache_usage_perc")) == 0
    assert first_count(samples, ("vllm:bad",)) is None
