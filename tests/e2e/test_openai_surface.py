"""The rest of the OpenAI-compatible surface with the real models, through the official client."""

import json

import openai
import pytest

pytestmark = [pytest.mark.federation, pytest.mark.model]
CHAT, EMBED = "madang-chat", "madang-embed"
ROOM = {
    "name": "read_temperature",
    "description": "Read the temperature of a server room in Celsius",
    "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
}
TOOL = {"type": "function", "function": ROOM}
QUESTION = [{"role": "user", "content": "What is the temperature in room B2?"}]
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "is_capital": {"type": "boolean"}},
    "required": ["city", "is_capital"],
    "additionalProperties": False,
}
CAPITAL = "대한민국의 수도는 어디입니까?"


@pytest.fixture
def client(federation):
    return federation.openai("gwangju", "gwangju-city")


def test_a_required_call_keeps_to_its_schema(client):
    answer = client.chat.completions.create(
        model=CHAT, messages=QUESTION, tools=[TOOL], tool_choice="required", max_tokens=60, temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "read_temperature"
    assert "B2" in json.loads(call.function.arguments)["room"]
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_response_and_its_stream(client):
    text = {"format": {"type": "json_schema", "name": "place", "schema": PLACE}}
    answer = client.responses.create(model=CHAT, input=CAPITAL, text=text, max_output_tokens=40, temperature=0)
    assert set(json.loads(answer.output_text)) == {"city", "is_capital"}
    with client.responses.stream(model=CHAT, input=CAPITAL, max_output_tokens=24, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "서울" in final.output_text
    assert kinds.count("response.output_text.delta") > 3
    assert final.usage.output_tokens > 3


def test_documents_are_ranked_by_meaning(federation):
    documents = [
        "흉부 X선 판독 결과 폐렴 의심 소견",
        "베어링 진동 이상 감지 알람 처리",
        "서버실 항온항습기 고장 시 조치 방법",
    ]
    body = {"model": EMBED, "query": "에어컨이 멈췄는데 데이터센터에서 무엇을 해야 하나요", "documents": documents}
    answer = federation.post("gwangju", "gwangju-city", "/v1/rerank", body | {"top_n": 2, "return_documents": True})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == 2
    assert results[0]["index"] == 2
    assert 1 > results[0]["relevance_score"] > results[1]["relevance_score"] > 0
    assert answer.json()["usage"]["prompt_tokens"] > 20


def test_several_answers_with_logprobs(client):
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "Name a colour."}],
        n=2,
        max_tokens=4,
        logprobs=True,
        top_logprobs=2,
        seed=1,
        temperature=1.0,
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert 0 < len(choice.logprobs.content) <= 4
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    legacy = client.completions.create(model=CHAT, prompt="The capital of Korea is", max_tokens=2, logprobs=2)
    assert len(legacy.choices[0].logprobs.tokens) == 2
    assert "".join(legacy.choices[0].logprobs.tokens) == legacy.choices[0].text


def test_what_the_engine_cannot_do_is_said(client):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="image input") as refused:
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": [picture]}])
    assert refused.value.code == "unsupported"


@pytest.mark.deep
def test_a_free_choice_calls_when_it_must_and_talks_when_it_can(client):
    called = client.chat.completions.create(model=CHAT, messages=QUESTION, tools=[TOOL], max_tokens=60, temperature=0)
    (call,) = called.choices[0].message.tool_calls
    assert "B2" in call.function.arguments
    greeted = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "Hello!"}], tools=[TOOL], max_tokens=60, temperature=0
    )
    assert greeted.choices[0].message.content
    assert not greeted.choices[0].message.tool_calls
    turns = [*QUESTION, called.choices[0].message.model_dump(exclude_none=True)]
    turns.append({"role": "tool", "tool_call_id": call.id, "content": "31 degrees Celsius"})
    # So small a model might call again; what is tested is that it is told of the result.
    done = client.chat.completions.create(
        model=CHAT, messages=turns, tools=[TOOL], tool_choice="none", max_tokens=60, temperature=0
    )
    assert "31" in done.choices[0].message.content


@pytest.mark.deep
def test_streamed_calls_and_a_named_one(client):
    named = {"type": "function", "function": {"name": "read_temperature"}}
    with client.chat.completions.stream(
        model=CHAT, messages=QUESTION, tools=[TOOL], tool_choice=named, max_tokens=60, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    (call,) = final.choices[0].message.tool_calls
    assert list(json.loads(call.function.arguments)) == ["room"]
