"""What engine tests share: replicas of the built-in catalog, and the real weights if they are here or small."""

import os

import pytest

from madang.core import ChipId, ReplicaId, ServiceName, Unavailable
from madang.federation.catalog import (
    CHAT_MODEL,
    EMBEDDING_MODEL,
    FILES_MODEL,
    SPEECH_MODEL,
    VOICE_MODEL,
    builtin_catalog,
    find_entry,
)
from madang.model import ReplicaSpec
from madang.node.artifacts import ArtifactFetcher
from madang.node.cache import ArtifactCache, default_cache_dir


def replica_of(model):
    entry = find_entry(builtin_catalog(), model)
    return ReplicaSpec(
        replica_id=ReplicaId("r-1"),
        service=ServiceName("a-service"),
        model=entry.name,
        task=entry.task,
        artifact=entry.artifacts[0],
        chip_ids=(ChipId("cpu0"),),
        context_tokens=2048,
        slots=2,
    )


CHAT = replica_of(CHAT_MODEL)
SPEECH = replica_of(SPEECH_MODEL)
EMBEDDING = replica_of(EMBEDDING_MODEL)
VOICE = replica_of(VOICE_MODEL)
FILES = replica_of(FILES_MODEL)


def weights_of(spec):
    """Return the verified weights, or skip: these tests never download."""
    path = ArtifactCache(default_cache_dir(os.environ)).find(spec.artifact.files[0])
    if path is None:
        pytest.skip(f"{spec.artifact.files[0].name} is not in the cache; `make up` fetches it")
    return path


def fetched(file):
    """Return a verified file, fetched if need be; skips where no index is within reach."""
    try:
        return ArtifactFetcher(ArtifactCache(default_cache_dir(os.environ))).ensure(file)
    except Unavailable as error:
        pytest.skip(str(error))
