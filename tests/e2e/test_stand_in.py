"""`madang model compare` on engines that run: the same weights in another artifact may stand in, spoilt ones may not.

Deep: three engines with half a gigabyte each answer the pinned set, and both candidates are made here first.
"""

import msgspec
import pytest
from tests.e2e.embedded import wait_for
from tests.e2e.test_examples import is_known, is_ready
from tests.engine.engine_replicas import fetched
from tests.engine.requantise import requantise

from madang.federation.catalog import CHAT_MODEL, builtin_catalog, find_entry
from madang.model import ArtifactFile
from madang.node.cache import ArtifactCache, hash_file

pytestmark = [pytest.mark.federation, pytest.mark.model, pytest.mark.deep, pytest.mark.timeout(1800)]

TENANT, SITE = "gwangju-city", "gwangju"
MODEL = "qwen-three-ways"
SERVICES = {"reference": "q4_k_m", "as-good": "q8_of_q5", "spoilt": "two_bits"}
(REFERENCE,) = find_entry(builtin_catalog(), CHAT_MODEL).artifacts


def spoil(numbers):
    """Leave of five bits little more than the sign."""
    import numpy as np

    return np.where(numbers < 0, -8, 8)


@pytest.fixture(scope="module")
def candidates(federation):
    """Both candidates in the cache, as if they had been imported; they leave it again."""
    cache = ArtifactCache(federation.cache_dir)
    source = fetched(REFERENCE.files[0])
    made = {}
    try:
        for artifact_id, change in (("q8_of_q5", lambda numbers: numbers), ("two_bits", spoil)):
            part = cache.partial_folder / f"{artifact_id}.part"
            assert requantise(source, part, change) > 300_000_000, "most of the model"
            size_bytes, sha256 = part.stat().st_size, hash_file(part)
            cache.move_in(part, sha256)
            made[artifact_id] = ArtifactFile(name=f"{artifact_id}.gguf", size_bytes=size_bytes, sha256=sha256)
        yield made
    finally:
        for file in made.values():
            for path in cache.path_of(file.sha256).parent.glob(f"{file.sha256}*"):
                path.unlink()
            (cache.folder / ".manifests" / f"{file.sha256}.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def three_services(federation, candidates, tmp_path_factory):
    """One model in three artifacts, of which the catalog says neither tokenizer nor template, each run by a service."""
    bare = msgspec.structs.replace(REFERENCE, tokenizer_sha256="", template_sha256="")
    others = [msgspec.structs.replace(bare, artifact_id=name, files=(file,)) for name, file in candidates.items()]
    entry = msgspec.structs.replace(find_entry(builtin_catalog(), CHAT_MODEL), name=MODEL, artifacts=(bare, *others))
    service = {"model": MODEL, "sites": [SITE], "context_tokens": 1024, "slots": 1}
    services = [{**service, "name": name, "artifact": artifact_id} for name, artifact_id in SERVICES.items()]
    file = tmp_path_factory.mktemp("stand-in") / "services.json"
    file.write_bytes(msgspec.json.encode({"model": [entry], "service": services}))
    try:
        federation.madang("service", "apply", "-f", str(file))
        for name in SERVICES:
            wait_for(f"{name} to be ready", lambda at=name: is_ready(federation, SITE, at), 300, every_s=0.5)
            wait_for(f"{name} at the entry", lambda at=name: is_known(federation, TENANT, at), 60, every_s=0.5)
        yield federation
    finally:
        for name in SERVICES:
            federation.madang("service", "delete", name, is_ok=False)
        for name in SERVICES:
            wait_for(f"{name} to end", lambda at=name: not federation.engines(SITE, at), 60, every_s=0.5)
        federation.madang("model", "delete", MODEL, is_ok=False)


def compare(federation, candidate, *words):
    url, key = federation.url("national"), federation.key(TENANT)
    asked = ("model", "compare", MODEL, "--reference", "reference", "--candidate", candidate, "--url", url)
    return federation.madang(*asked, "--key", key, *words, is_ok=False, timeout_s=900)


def test_the_same_weights_may_stand_in_and_spoilt_ones_may_not(three_services):
    before = {name: three_services.engines(SITE, name)[0]["pid"] for name in SERVICES}
    good = compare(three_services, "as-good")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "q8_of_q5 for q4_k_m: may stand in" in good.stdout
    bad = compare(three_services, "spoilt", "--json")
    assert (bad.returncode, bad.stderr) == (1, "")
    verdict = msgspec.json.decode(bad.stdout)
    print(good.stdout, verdict)
    assert all("agree" in reason for reason in verdict["reasons"]), "same tokenizer, template, context and counts"
    assert verdict["mean"] < 0.9
    after = {name: three_services.engines(SITE, name)[0]["pid"] for name in SERVICES}
    assert after == before, "what was found out about files starts no engine anew"
    known = three_services.admin("GET", f"/api/v1/models/{MODEL}")
    assert known["equivalents"] == [["q4_k_m", "q8_of_q5"]]
    texts = {(one["tokenizer_sha256"], one["template_sha256"]) for one in known["artifacts"]}
    assert texts == {(REFERENCE.tokenizer_sha256, REFERENCE.template_sha256)}, "read in the files, not stated"
