"""The official client, unchanged, against every site and the national entry, asking the real models."""

import openai
import pytest

pytestmark = [pytest.mark.federation, pytest.mark.model]

ENTRIES = ["daegu", "gumi", "gwangju", "national"]
SOME_ENTRIES = ["daegu", *(pytest.param(site, marks=pytest.mark.deep) for site in ("gumi", "gwangju")), "national"]
TENANTS = {"daegu": "daegu-clinic", "gumi": "gumi-parts", "gwangju": "gwangju-city", "national": "gwangju-city"}
CAPITAL = [{"role": "user", "content": "대한민국의 수도는 어디입니까? 한 문장으로 답하세요."}]


def client_of(federation, entry):
    return federation.openai(entry, TENANTS[entry])


@pytest.mark.parametrize("entry", ENTRIES)
def test_models_lists_what_the_tenant_may_use_and_is_served(federation, entry):
    names = {model.id for model in client_of(federation, entry).models.list()}
    assert names == {"madang-chat", "madang-embed"}
    assert client_of(federation, entry).models.retrieve("madang-chat").id == "madang-chat"


@pytest.mark.parametrize("entry", SOME_ENTRIES)
def test_a_korean_question_is_answered_with_the_site_that_served_it(federation, entry):
    raw = client_of(federation, entry).chat.completions.with_raw_response.create(
        model="madang-chat", messages=CAPITAL, max_tokens=24, temperature=0
    )
    answer = raw.parse()
    assert "서울" in answer.choices[0].message.content
    assert answer.model == "madang-chat"
    assert answer.usage.prompt_tokens > 10
    assert answer.usage.completion_tokens > 1
    served = raw.headers["x-madang-site"]
    assert served in federation.site_names()
    if entry != "national":
        assert served == entry
    assert raw.headers["x-request-id"].startswith(f"{entry}-")
    assert raw.headers["x-madang-chip"]
    assert raw.headers["x-madang-receipt"]


@pytest.mark.parametrize("entry", ["daegu", "national"])
def test_a_stream_arrives_in_pieces_and_ends_with_usage_when_asked(federation, entry):
    stream = client_of(federation, entry).chat.completions.create(
        model="madang-chat",
        messages=[{"role": "user", "content": "Count from one to five in English words."}],
        max_tokens=32,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "two" in text.lower()
    assert sum(1 for c in chunks if c.choices and c.choices[0].delta.content) > 3
    assert chunks[-1].usage.completion_tokens > 3
    assert any(c.choices and c.choices[0].finish_reason for c in chunks)


def test_a_stream_that_did_not_ask_for_usage_gets_none(federation):
    stream = client_of(federation, "gumi").chat.completions.create(
        model="madang-chat", messages=CAPITAL, max_tokens=8, stream=True
    )
    assert all(chunk.usage is None and chunk.choices for chunk in stream)


def test_a_plain_completion_goes_on_where_the_prompt_ends(federation):
    answer = client_of(federation, "gwangju").completions.create(
        model="madang-chat", prompt="def add(a, b):\n    return", max_tokens=8, temperature=0
    )
    assert "a + b" in answer.choices[0].text


def similarity(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("entry", ["daegu", "national"])
def test_korean_sentences_rank_by_meaning(federation, entry):
    questions = ["에어컨이 멈췄는데 데이터센터에서 무엇을 해야 하나요", "설비 모터에서 이상한 진동이 납니다"]
    documents = [
        "서버실 항온항습기 고장 시 조치 방법",
        "베어링 진동 이상 감지 알람 처리",
        "흉부 X선 판독 결과 폐렴 의심 소견",
    ]
    client = client_of(federation, entry)
    answer = client.embeddings.create(model="madang-embed", input=[*questions, *documents])
    vectors = [item.embedding for item in answer.data]
    assert len(vectors) == 5
    assert answer.usage.prompt_tokens > 0
    for index in range(2):
        scores = [similarity(vectors[index], vectors[2 + d]) for d in range(3)]
        assert max(range(3), key=scores.__getitem__) == index, scores


def test_errors_map_to_the_clients_own_classes(federation):
    city = federation.openai("gwangju", "gwangju-city")
    with pytest.raises(openai.AuthenticationError) as auth:
        federation.openai("gwangju", "gwangju-city", api_key="mdg_wrong_key").models.list()
    assert auth.value.code == "invalid_key"
    with pytest.raises(openai.NotFoundError) as missing:
        city.chat.completions.create(model="gpt-9", messages=CAPITAL)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        city.chat.completions.create(model="madang-chat", messages=[])
    assert bad.value.code == "invalid_request"
    assert bad.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as wrong:
        city.embeddings.create(model="madang-chat", input="x")
    assert wrong.value.code in ("invalid_request", "unsupported")
    with pytest.raises(openai.PermissionDeniedError) as denied:
        federation.openai("gumi", "daegu-clinic").chat.completions.create(model="madang-chat", messages=CAPITAL)
    assert denied.value.code == "residency_violation"
    assert federation.url("daegu") in str(denied.value)
