"""Tool calls, several answers, the legacy logprobs, responses and rerank, through the official client."""

import contextlib
import json
from collections.abc import Iterator

import msgspec
import openai
import pytest
from tests.gateway.lab import CHAT, CITY, EMBED, Answer, Lab, LabSite, wait_until

QUESTION = [{"role": "user", "content": "전산실 온도는?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "read_sensor",
        "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
    },
}
CALLS = (
    '{"tool_calls": [{"name": "read_sensor", "arguments": {"room": "전산실 \\"}{\\""}},'
    ' {"name": "f", "arguments": {}}]}'
)
FEATURES = ("json_schema", "logprobs")


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine(), features=FEATURES)
    site.add_replica(lab.engine(), EMBED, features=("query_passage",))
    lab.start(site)
    return site


@pytest.fixture
def client(site: LabSite) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=CITY.key, max_retries=0) as client:
        yield client


def post(site: LabSite, path: str, body: dict) -> Answer:
    return site.request("POST", path, body, key=CITY.key)


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_out_of_constrained_output(lab: Lab, client: openai.OpenAI, size: int) -> None:
    lab.engines[0].tokens = pieces(CALLS, size)
    whole = client.chat.completions.create(model=CHAT, messages=QUESTION, tools=[TOOL], tool_choice="required")
    choice = whole.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("read_sensor", {"room": '전산실 "}{"'}),
        ("f", {}),
    ]
    assert len({call.id for call in calls}) == 2
    sent = lab.engines[0].requests[-1].body
    assert "tools" not in sent
    assert sent["response_format"]["json_schema"]["schema"]["required"] == ["tool_calls"]
    assert "read_sensor" in sent["messages"][0]["content"]
    with client.chat.completions.stream(model=CHAT, messages=QUESTION, tools=[TOOL]) as stream:
        final = stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls or []
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in calls]
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_free_choice_may_be_words(lab: Lab, client: openai.OpenAI) -> None:
    lab.engines[0].tokens = pieces('{"text": "약 21\\u00b0C \\ud83d\\ude00"}', 1)
    whole = client.chat.completions.create(model=CHAT, messages=QUESTION, tools=[TOOL])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("약 21°C 😀", "stop")
    assert whole.choices[0].message.tool_calls is None
    stream = client.chat.completions.create(model=CHAT, messages=QUESTION, tools=[TOOL], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "약 21°C 😀"


def test_output_that_does_not_keep_to_the_schema_is_the_engines_failure(lab: Lab, client: openai.OpenAI) -> None:
    lab.engines[0].tokens = ["no json"]
    with pytest.raises(openai.InternalServerError) as broken:
        client.chat.completions.create(model=CHAT, messages=QUESTION, tools=[TOOL])
    assert broken.value.code == "upstream_failed"


def test_what_an_engine_cannot_do_is_named(site: LabSite, lab: Lab, client: openai.OpenAI) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="image input") as images:
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": [picture]}])
    assert (images.value.code, images.value.param) == ("unsupported", "messages")
    site.replicas[0] = msgspec.structs.replace(site.replicas[0], features=("images", "tools"))
    site.refresh()
    assert _is_refused(client)
    answer = client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": [picture]}])
    assert answer.choices[0].message.content == "안녕하세요!"
    client.chat.completions.create(model=CHAT, messages=QUESTION, tools=[TOOL])
    assert lab.engines[0].requests[-1].body["tools"] == [TOOL], "an engine that parses calls is sent the tools"


def _is_refused(client: openai.OpenAI) -> bool:
    try:
        client.chat.completions.create(model=CHAT, messages=QUESTION, response_format={"type": "json_object"})
    except openai.BadRequestError as error:
        return error.code == "unsupported" and error.param == "response_format"
    return False


def test_several_answers_are_one_event(site: LabSite, lab: Lab, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=CHAT, messages=QUESTION, n=3, seed=7)
    assert [(choice.index, choice.message.content) for choice in whole.choices] == [
        (index, "안녕하세요!") for index in range(3)
    ]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (21, 9)
    assert sorted(request.body["seed"] for request in lab.engines[0].requests) == [7, 8, 9]
    texts = ["", ""]
    stream = client.chat.completions.create(
        model=CHAT, messages=QUESTION, n=2, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["안녕하세요!"] * 2
    assert chunk.usage is not None
    assert chunk.usage.total_tokens == 20
    events = wait_until(lambda: len(site.events()) == 2 and site.events(), "both events are written")
    assert [(event.prompt_tokens, event.completion_tokens) for event in events] == [(21, 9), (14, 6)]


def test_several_answers_fail_together(site: LabSite, lab: Lab, client: openai.OpenAI) -> None:
    lab.engines[0].mode = "die_middle"
    with (
        client.chat.completions.create(model=CHAT, messages=QUESTION, n=3, stream=True) as stream,
        pytest.raises(openai.APIError, match="middle of the answer"),
    ):
        for _ in stream:
            pass
    wait_until(lambda: lab.engines[0].active == 0, "no call is left behind")
    table = site.feed_dir / "inflight-0.bin"
    wait_until(lambda: table.read_bytes()[:4] == bytes(4), "every slot is given back")
    events = wait_until(site.events, "the event is written")
    assert [event.outcome for event in events] == ["upstream_failed"]


def test_a_client_that_leaves_stops_every_answer(site: LabSite, lab: Lab, client: openai.OpenAI) -> None:
    lab.engines[0].mode = "endless"
    stream = client.chat.completions.create(model=CHAT, messages=QUESTION, n=2, stream=True)
    next(iter(stream))
    wait_until(lambda: lab.engines[0].active == 2, "two calls run")
    stream.close()
    wait_until(lambda: lab.engines[0].active == 0 and site.events(), "both are stopped and one event written")
    assert [event.outcome for event in site.events()] == ["client_gone"]


def test_completions_have_the_older_logprobs(lab: Lab, client: openai.OpenAI) -> None:
    entry = {"token": "안녕", "logprob": -0.5, "top_logprobs": [{"token": "안녕", "logprob": -0.5}]}
    lab.engines[0].logprobs = {"content": [entry]}
    answer = client.completions.create(model=CHAT, prompt="하나", logprobs=1)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens == ["안녕"] * 3
    assert found.text_offset == [0, 2, 4]
    assert found.token_logprobs == [-0.5] * 3
    assert found.top_logprobs == [{"안녕": -0.5}] * 3


def test_responses_in_one_piece(site: LabSite, client: openai.OpenAI) -> None:
    answer = client.responses.create(model=CHAT, input="전산실 온도는?", instructions="짧게", max_output_tokens=50)
    assert (answer.output_text, answer.status) == ("안녕하세요!", "completed")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 3)
    assert answer.id.startswith("resp_daegu-")
    sent = site.lab.engines[0].requests[-1].body
    assert sent["messages"] == [
        {"role": "system", "content": "짧게"},
        {"role": "user", "content": "전산실 온도는?"},
    ]
    assert sent["max_tokens"] == 50
    assert [event.endpoint for event in site.events()] == ["/v1/responses"]


def test_responses_as_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model=CHAT, input="전산실 온도는?") as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[4:-4] == ["response.output_text.delta"] * 3
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == "안녕하세요!"


def test_responses_with_calls_and_a_turn_after_them(lab: Lab, client: openai.OpenAI) -> None:
    lab.engines[0].tokens = pieces(CALLS, 5)
    tool = {"type": "function", **TOOL["function"], "strict": True}
    answer = client.responses.create(model=CHAT, input="온도는?", tools=[tool], tool_choice="required")
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["read_sensor", "f"]
    with client.responses.stream(model=CHAT, input="온도는?", tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert [item.arguments for item in final.output] == [call.arguments for call in calls]
    lab.engines[0].tokens = ['{"text": "21도"}']
    history = [
        {"role": "user", "content": "온도는?"},
        *(item.model_dump(exclude_none=True) for item in answer.output),
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "21"},
    ]
    again = client.responses.create(model=CHAT, input=history, tools=[tool])
    assert again.output_text == "21도"
    told = lab.engines[0].requests[-1].body["messages"]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert json.loads(told[2]["content"])["tool_calls"][0]["name"] == "read_sensor"
    assert "21" in told[3]["content"]


def test_a_response_that_breaks_off_says_so(lab: Lab, client: openai.OpenAI) -> None:
    lab.engines[0].mode = "die_middle"
    kinds = []
    gone = contextlib.suppress(openai.APIConnectionError)
    with client.responses.create(model=CHAT, input="x", stream=True) as stream, gone:
        for event in stream:
            kinds.append(event.type)  # noqa: PERF401  what came before the break is wanted
    assert kinds[-1] == "response.failed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ],
)
def test_responses_remember_nothing(client: openai.OpenAI, fields: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=CHAT, input="x", **fields)
    assert (refused.value.code, refused.value.param) == ("unsupported", param)


def test_rerank(site: LabSite, lab: Lab) -> None:
    lab.engines[1].vectors = [[1.0, 0.0], [0.0, 1.0], [3.0, 4.0], [2.0, 0.0]]
    body = {"model": EMBED, "query": "진동", "documents": ["a", {"text": "b"}, "c"], "top_n": 2}
    answer = post(site, "/v1/rerank", body | {"return_documents": True})
    assert answer.status == 200, answer.body
    assert answer.json["results"] == [
        {"index": 2, "relevance_score": 1.0, "document": {"text": "c"}},
        {"index": 1, "relevance_score": 0.6, "document": {"text": "b"}},
    ]
    assert answer.json["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert lab.engines[1].requests[-1].body["input"] == ["query: 진동", "passage: a", "passage: b", "passage: c"]
    assert [(event.endpoint, event.prompt_tokens) for event in site.events()] == [("/v1/rerank", 5)]
    for wrong, param in (({"documents": []}, "documents"), ({"query": 5}, "query"), ({"top_n": 0}, "top_n")):
        refused = post(site, "/v1/rerank", body | wrong)
        assert (refused.status, refused.json["error"]["param"]) == (400, param)
    assert post(site, "/v1/rerank", body | {"model": CHAT}).status == 400


def test_a_peer_serves_responses_and_rerank(lab: Lab, site: LabSite) -> None:
    entry = lab.site("gumi")
    entry.peers, site.peers = ["daegu"], ["gumi"]
    lab.start(entry)
    site.refresh()
    answer = post(entry, "/v1/responses", {"model": CHAT, "input": "x"})
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "daegu"), answer.body
    assert answer.json["output"][0]["content"][0]["text"] == "안녕하세요!"
    lab.engines[1].vectors = [[1.0, 0.0], [0.0, 1.0]]
    ranked = post(entry, "/v1/rerank", {"model": EMBED, "query": "q", "documents": ["d"]})
    assert ranked.json["results"] == [{"index": 0, "relevance_score": 0.0}]


def test_a_models_card_says_what_it_can_do(client: openai.OpenAI) -> None:
    cards = {card.id: card for card in client.models.list()}
    assert (cards[CHAT].owned_by, cards[CHAT].object) == ("madang", "model")
    assert cards[CHAT].madang == {
        "task": "chat",
        "unit": "token",
        "endpoints": ["/v1/chat/completions", "/v1/completions", "/v1/responses"],
        "features": ["json_schema", "logprobs"],
        "context_tokens": 4096,
    }
    assert client.models.retrieve(EMBED).madang["endpoints"] == ["/v1/embeddings", "/v1/rerank"]
