"""The real models behind a real node: Korean questions, Korean sentences, and what they cost in memory."""

import math
import os
import threading

import msgspec
import pytest
from tests import loopback
from tests.node.node_lab import NodeLab, kill

from madang.core import ChipId, MadangError, ReplicaId, ServiceName
from madang.federation.catalog import CHAT_MODEL, EMBEDDING_MODEL, builtin_catalog, find_entry
from madang.model import ReplicaSpec
from madang.node.artifacts import ArtifactFetcher
from madang.node.cache import ArtifactCache, default_cache_dir

# Deep: the end-to-end tests already ask both models on every run; these look at one engine more closely.
pytestmark = [pytest.mark.deep, pytest.mark.model, pytest.mark.peer, pytest.mark.timeout(300)]


def replica_of(model, service):
    entry = find_entry(builtin_catalog(), model)
    return ReplicaSpec(
        replica_id=ReplicaId(f"daegu-{service}-0"),
        service=ServiceName(service),
        model=entry.name,
        task=entry.task,
        artifact=entry.artifacts[0],
        chip_ids=(ChipId("cpu0"),),
        context_tokens=4096,
        slots=4,
    )


SPECS = (replica_of(CHAT_MODEL, "chat"), replica_of(EMBEDDING_MODEL, "embed"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    cache = ArtifactCache(default_cache_dir(os.environ))
    for spec in SPECS:
        try:
            ArtifactFetcher(cache).ensure(spec.artifact.files[0])
        except MadangError as error:
            pytest.skip(f"the weights are neither in {cache.folder} nor to be fetched: {error}")
    lab = NodeLab(tmp_path_factory.mktemp("node"), cache_dir=cache.folder, engine_twins=())
    try:
        lab.start()
        assert lab.plan(*SPECS).status_code == 200
        lab.wait_ready("chat")
        lab.wait_ready("embed")
        yield lab
    finally:
        lab.close()


def post(replica, path, body):
    headers = {"authorization": f"Bearer {replica.engine_key}"}
    answer = loopback.post(replica.endpoint + path, json=body, headers=headers, trust_env=False, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask(lab, question, **fields):
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 40, **fields}
    return post(lab.wait_ready("chat"), "/v1/chat/completions", body)


def embed(lab, *texts, **fields):
    data = post(lab.wait_ready("embed"), "/v1/embeddings", {"input": list(texts), **fields})["data"]
    return [item["embedding"] for item in data]


def similarity(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("대한민국의 수도는 어디입니까?", ("서울", "Seoul")),
        ("What is the capital of France? Answer in one word.", ("Paris",)),
    ],
)
def test_the_chat_model_answers_in_korean_and_english(lab, question, expected):
    answer = ask(lab, question)
    text = answer["choices"][0]["message"]["content"]
    assert any(word in text for word in expected), text
    assert not lab.wait_ready("chat").is_simulated
    assert answer["usage"]["completion_tokens"] > 0


def test_the_chat_model_keeps_a_json_schema(lab):
    schema = {
        "type": "object",
        "properties": {"room": {"type": "string"}, "temperature_c": {"type": "number"}},
        "required": ["room", "temperature_c"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "reading", "schema": schema}}
    text = ask(lab, "서버실 온도는 31도입니다. JSON으로 적으세요.", response_format=wanted, max_tokens=60)
    value = msgspec.json.decode(text["choices"][0]["message"]["content"])
    assert set(value) == {"room", "temperature_c"}


def test_prompts_of_earlier_requests_are_not_reused(lab):
    question = "다음 문장을 영어로 옮기세요: 서버실의 온도가 너무 높아서 점검이 필요합니다. " * 4
    ask(lab, question, max_tokens=1)
    again = ask(lab, question, max_tokens=1)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_korean_sentences_are_ranked_by_meaning(lab):
    passages = [
        "서버실 항온항습기 고장 시 조치 방법",
        "베어링 진동 이상 감지 알람 처리",
        "흉부 X선 판독 결과 폐렴 의심 소견",
    ]
    vectors = embed(lab, *passages, input_type="passage")
    for question, best in (
        ("에어컨이 멈췄는데 데이터센터에서 무엇을 해야 하나요?", 0),
        ("설비 모터에서 이상한 진동이 느껴집니다", 1),
        ("x-ray pneumonia", 2),
    ):
        (query,) = embed(lab, question)
        assert math.hypot(*query) == pytest.approx(1, abs=1e-3)
        scores = [similarity(query, vector) for vector in vectors]
        assert max(range(3), key=scores.__getitem__) == best, (question, scores)


def test_a_batch_gives_what_single_requests_give(lab):
    texts = [f"{number}번 랙의 전력 사용량" for number in range(20)]
    together = embed(lab, *texts)
    for index in (0, 9, 19):
        (alone,) = embed(lab, texts[index])
        assert similarity(alone, together[index]) > 0.999


def test_requests_at_once_all_get_their_own_answer(lab):
    answers = {}

    def work(number):
        answers[number] = ask(lab, f"{number}에 {number}을 더하면 얼마입니까?", max_tokens=8)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(answers) == [0, 1, 2, 3]
    assert all(answer["usage"]["completion_tokens"] > 0 for answer in answers.values())


def test_weights_are_shared_pages(lab):
    """What an engine holds for itself stays far below its weights, so that engines can share a machine."""
    for name, limit_mib in (("chat", 400), ("embed", 60)):
        pid = lab.wait_ready(name).pid
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
        private_mib = int(fields["Pss_Anon"].split()[0]) // 1024
        assert private_mib < limit_mib, f"{name}: {private_mib} MiB"


def test_a_killed_engine_answers_again(lab):
    before = lab.wait_ready("chat")
    kill(before.pid)
    lab.wait_ready("chat", lambda replica: replica.pid != before.pid)
    answer = ask(lab, "대한민국의 수도는 어디입니까?")["choices"][0]["message"]["content"]
    assert any(word in answer for word in ("서울", "Seoul")), answer
