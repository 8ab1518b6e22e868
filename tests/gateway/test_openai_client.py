"""The official `openai` client, unchanged, against a worker: what it calls, what it raises."""

from collections.abc import Iterator

import openai
import pytest
from tests.gateway.lab import CHAT, CITY, CLINIC, EMBED, Lab, LabSite, make_key


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    site.add_replica(lab.engine(), EMBED)
    lab.start(site)
    return site


@pytest.fixture
def client(site: LabSite) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=CITY.key, max_retries=0, timeout=10) as one:
        yield one


QUESTION = [{"role": "user", "content": "대한민국의 수도는?"}]


def test_list_chat_stream_embed(client: openai.OpenAI, lab: Lab) -> None:
    assert [model.id for model in client.models.list()] == [EMBED, CHAT]
    assert client.models.retrieve(CHAT).id == CHAT
    whole = client.chat.completions.create(model=CHAT, messages=QUESTION)
    assert whole.choices[0].message.content == "안녕하세요!"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 10
    with client.chat.completions.create(model=CHAT, messages=QUESTION, stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "안녕하세요!"
    with client.chat.completions.create(
        model=CHAT, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ) as stream:
        assert [chunk.usage.total_tokens for chunk in stream if chunk.usage] == [10]
    assert client.completions.create(model=CHAT, prompt="하나").choices[0].text == "안녕하세요!"
    vectors = client.embeddings.create(model=EMBED, input=["베어링", "진동"])
    assert [row.embedding for row in vectors.data] == [[1.0] * 4, [2.0] * 4]
    raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=QUESTION)
    assert raw.headers["x-madang-site"] == "daegu"
    assert raw.parse().id == f"chatcmpl-{raw.headers['x-request-id']}"


def test_errors_are_openais(client: openai.OpenAI, lab: Lab, site: LabSite) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        client.with_options(api_key=make_key("nobody")).models.list()
    assert wrong_key.value.code == "invalid_key"
    with pytest.raises(openai.NotFoundError) as no_model:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert (no_model.value.code, no_model.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong_task:
        client.embeddings.create(model=CHAT, input="x")
    assert wrong_task.value.param == "model"
    with pytest.raises(openai.BadRequestError) as too_hot:
        client.chat.completions.create(model=CHAT, messages=QUESTION, temperature=9)
    assert too_hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as several:
        client.chat.completions.create(model=CHAT, messages=QUESTION, n=9)
    assert several.value.code == "unsupported"
    site.replicas.pop(0)
    site.refresh()
    with pytest.raises(openai.InternalServerError) as nobody:
        client.chat.completions.create(model=CHAT, messages=QUESTION)
    assert (nobody.value.status_code, nobody.value.code) == (503, "no_replica")


def test_permission_denied_elsewhere(lab: Lab, site: LabSite) -> None:
    elsewhere = lab.site("gwangju", "honam")
    site.refresh()
    lab.start(elsewhere)
    with (
        openai.OpenAI(base_url=f"{elsewhere.url}/v1", api_key=CLINIC.key, max_retries=0) as client,
        pytest.raises(openai.PermissionDeniedError) as denied,
    ):
        client.chat.completions.create(model=CHAT, messages=QUESTION)
    assert denied.value.code == "residency_violation"
    assert site.url in denied.value.message
    assert isinstance(denied.value.body, dict)
    assert denied.value.body["madang"]["sites"] == [{"name": "daegu", "url": site.url}]


def test_a_broken_stream_raises(client: openai.OpenAI, lab: Lab) -> None:
    lab.engines[0].mode = "die_middle"
    with (
        client.chat.completions.create(model=CHAT, messages=QUESTION, stream=True) as stream,
        pytest.raises(openai.APIError, match="middle of the answer"),
    ):
        for _ in stream:
            pass


async def _ask_many(url: str) -> list[str]:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=CITY.key, max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model=CHAT, messages=QUESTION) for _ in range(12))
        )
    return [answer.choices[0].message.content or "" for answer in answers]


def test_many_at_once(lab: Lab, site: LabSite) -> None:
    import asyncio

    assert asyncio.run(_ask_many(site.url)) == ["안녕하세요!"] * 12
