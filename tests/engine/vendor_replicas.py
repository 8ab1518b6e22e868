"""What tests of vendors' engines share: replicas of models that nobody compiled, and files for their twins."""

import json

from madang.core import ChipId, ReplicaId, ServiceName
from madang.engine.settings import EngineRuntime
from madang.model import Artifact, ArtifactFile, ReplicaSpec, Task

FURIOSA_HERE = EngineRuntime(version="2026.4.0")
VLLM_HERE = EngineRuntime(version="0.30.0+cpu", sdk_version="0.12.0")
COMPILED = {"batch_size": 4, "max_seq_len": 4096, "num_devices": 2, "kvcache_block_size": 4096}


def make_spec(engine, kind, names, *, task=Task.CHAT, sdk="", parallelism="", slots=4, context=4096, **fields):
    """Return a replica of a made-up artifact of that engine."""
    artifact = Artifact(
        artifact_id="a",
        engine=engine,
        chip_kinds=(kind,),
        files=tuple(ArtifactFile(name=name, size_bytes=1, sha256="0" * 64) for name in names),
        memory_bytes=1 << 30,
        context_tokens_max=8192,
        sdk=sdk,
        parallelism=parallelism,
    )
    return ReplicaSpec(
        replica_id=ReplicaId("r-1"),
        service=ServiceName("a-service"),
        model="a-model",
        task=task,
        artifact=artifact,
        chip_ids=(ChipId(f"{kind}0"),),
        context_tokens=context,
        slots=slots,
        **fields,
    )


MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
FURIOSA = make_spec(
    "furiosa_llm", "furiosa", (*MODEL_FILES, "qwen.fxb"), sdk="furiosa-2026.4", parallelism="tp8", slots=8
)
FURIOSA_OLD = make_spec("furiosa_llm", "furiosa", ("artifact.json", "binary_bundle.zip"), sdk="furiosa-2026.2")
CUDA = make_spec("vllm", "nvidia", MODEL_FILES)
CPU = make_spec("vllm", "cpu", MODEL_FILES)
EMBED = make_spec("vllm", "cpu", MODEL_FILES, task=Task.EMBEDDING)
RBLN = make_spec("vllm", "rebellions", ("config.json", "rbln_config.json", "prefill.rbln"), sdk="rebellions-0.12")
OCR = make_spec("tesseract", "cpu", ("kor.traineddata", "eng.traineddata"), task=Task.INFER, slots=2, context=0)
EXTERNAL = make_spec("external", "cpu", ())


def make_files(folder, spec, **behaviour):
    """Return files for a twin by name; each holds its behaviour, but for what the driver reads."""
    files = {}
    for file in spec.artifact.files:
        path = files[file.name] = folder / f"file-{file.name}"
        path.write_text(json.dumps(COMPILED if file.name == "rbln_config.json" else behaviour), encoding="utf-8")
    return files
