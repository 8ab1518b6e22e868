"""Who may stand in for whom: bounds, refusals, and that placement keeps a service to one kind until then."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.test_placement import GIB, make_chip, make_node, make_service, plan

from madang.core import Rejected
from madang.model import Artifact, CatalogEntry, Task
from madang.policy.equivalence import (
    Measured,
    find_lead,
    judge_pair,
    keep_standing,
    score_texts,
    score_vectors,
)
from madang.policy.pinned_set import name_set, prompts_of

NPU = Artifact(
    artifact_id="npu",
    engine="furiosa_llm",
    chip_kinds=("furiosa",),
    files=(),
    memory_bytes=GIB,
    context_tokens_max=4096,
    tokenizer_sha256="aa" * 32,
    template_sha256="bb" * 32,
)
CPU = msgspec.structs.replace(NPU, artifact_id="cpu", engine="llama_cpp", chip_kinds=("cpu",))
GPU = msgspec.structs.replace(NPU, artifact_id="gpu", engine="vllm", chip_kinds=("nvidia",))
ENTRY = CatalogEntry(name="qwen", task=Task.CHAT, title="x", licence="x", artifacts=(NPU, CPU, GPU))


def measured(scores=(1.0,) * 16, counts=None):
    return Measured(set_sha256="s", scores=tuple(scores), prompt_tokens=tuple(counts or [(9, 9)] * len(scores)))


def test_the_same_everywhere_may_stand_in():
    assert judge_pair(Task.CHAT, NPU, CPU, measured()) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer_sha256": "cc" * 32}, "tokenizers differ"),
        ({"template_sha256": "cc" * 32}, "chat templates differ"),
        ({"tokenizer_sha256": ""}, "the tokenizer is not known of both"),
        ({"context_tokens_max": 2048}, "takes 2048 tokens, the reference 4096"),
    ],
)
def test_what_the_catalog_says_must_fit(changes, words):
    (reason,) = judge_pair(Task.CHAT, NPU, msgspec.structs.replace(CPU, **changes), measured())
    assert words in reason


def test_answers_must_agree_on_average_and_none_may_be_another_answer():
    late = (0.75,) * 4 + (1.0,) * 12
    assert judge_pair(Task.CHAT, NPU, CPU, measured(late)) == ()
    (reason,) = judge_pair(Task.CHAT, NPU, CPU, measured((0.8,) * 16))
    assert "0.8000 on average" in reason
    (reason,) = judge_pair(Task.CHAT, NPU, CPU, measured((1.0,) * 15 + (0.0,)))
    assert "prompt 16 agrees to 0.0000" in reason
    (reason,) = judge_pair(Task.CHAT, NPU, CPU, measured(counts=[(9, 9)] * 15 + [(9, 10)]))
    assert "prompt 16 has another number of tokens" in reason


def test_embeddings_have_bounds_of_their_own_and_need_no_template():
    bare = msgspec.structs.replace(CPU, template_sha256="")
    assert judge_pair(Task.EMBEDDING, NPU, bare, measured((0.9995,) * 16)) == ()
    assert len(judge_pair(Task.EMBEDDING, NPU, bare, measured((0.99,) * 16))) == 2


@pytest.mark.parametrize(
    "wrong",
    [measured((1.0,) * 7), measured((1.0,) * 8, [(1, 1)]), measured((float("nan"),) * 8), measured((1.1,) * 8)],
)
def test_what_is_no_measurement_is_refused(wrong):
    with pytest.raises(Rejected):
        judge_pair(Task.CHAT, NPU, CPU, wrong)
    with pytest.raises(Rejected, match="task infer"):
        judge_pair(Task.INFER, NPU, CPU, measured())


@given(st.text(max_size=40), st.text(max_size=40))
def test_texts_agree_as_far_as_their_beginning(one, other):
    assert 0.0 <= score_texts(one, other) == score_texts(other, one) <= 1.0
    assert score_texts(one, one) == 1.0
    assert (score_texts(one, other) == 1.0) == (one == other)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), st.floats(0.01, 100))
def test_vectors_agree_by_direction(vector, factor):
    score = score_vectors(vector, [value * factor for value in vector])
    assert score == pytest.approx(1.0) or sum(value * value for value in vector) < 1e-150
    assert score_vectors(vector, [-value for value in vector]) == 0.0
    assert score_vectors(vector, [*vector, 1.0]) == 0.0


def ids(entry, **service):
    return [one.artifact_id for one in keep_standing(entry, make_service(**service)).artifacts]


def test_a_service_keeps_to_the_first_artifact_or_the_one_it_names():
    assert ids(ENTRY) == ["npu"]
    assert ids(ENTRY, artifact="cpu") == ["cpu"]
    assert ids(ENTRY, artifact="gone") == []
    assert find_lead(ENTRY, make_service()) is NPU


def test_equivalence_holds_both_ways_and_does_not_carry_over():
    entry = msgspec.structs.replace(ENTRY, equivalents=(("npu", "cpu"), ("cpu", "gpu")))
    assert ids(entry) == ["npu", "cpu"]
    assert ids(entry, artifact="cpu") == ["npu", "cpu", "gpu"]
    assert ids(entry, artifact="gpu") == ["cpu", "gpu"]


def test_placement_never_mixes_kinds_that_were_not_found_equivalent():
    node = make_node("n1", make_chip(engines_max=4), make_chip(name="f0", kind="furiosa", engines_max=1))
    placement = plan({"chat": 3}, [node], models={"qwen": ENTRY})
    assert {spec.artifact.artifact_id for spec in placement.replicas["n1"]} == {"npu"}
    assert len(placement.unplaced) == 2
    shown = msgspec.structs.replace(ENTRY, equivalents=(("npu", "cpu"),))
    placement = plan({"chat": 3}, [node], models={"qwen": shown})
    assert [spec.artifact.artifact_id for spec in placement.replicas["n1"]] == ["npu", "cpu", "cpu"]


def test_the_set_is_fixed():
    assert len(prompts_of(Task.CHAT)) == 16
    assert name_set(Task.CHAT) != name_set(Task.EMBEDDING)
    assert prompts_of(Task.INFER) == ()
