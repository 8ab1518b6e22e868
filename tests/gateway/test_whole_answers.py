"""Engines that stop when the client of a request without a stream leaves are asked for one object."""

import pytest
from tests.gateway.lab import CITY, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post

from madang.model import EngineFeature, Outcome


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine(), features=(EngineFeature.UNSTREAMED_ABORT,))
    lab.start(site)
    return site


def test_one_object_comes_under_our_names(lab: Lab, site: LabSite) -> None:
    answer = site.chat(CITY)
    assert answer.status == 200
    body = answer.json
    assert body["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    assert body["model"] == "qwen"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "안녕하세요!"}
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert "timings" not in body
    (sent,) = lab.engines[0].requests
    assert "stream" not in sent.body
    assert "stream_options" not in sent.body
    (event,) = site.events()
    assert (event.outcome, event.prompt_tokens, event.completion_tokens) == (Outcome.COMPLETED, 7, 3)
    assert not event.is_estimated


def test_a_stream_is_still_a_stream(lab: Lab, site: LabSite) -> None:
    assert site.chat(CITY, stream=True).events[-1] == "[DONE]"
    assert lab.engines[0].requests[0].body["stream"] is True


def test_an_engine_without_usage_is_estimated(lab: Lab, site: LabSite) -> None:
    lab.engines[0].usage = None
    assert site.chat(CITY).json["usage"]["completion_tokens"] > 0
    assert site.events()[0].is_estimated


def test_an_error_in_the_shape_of_an_answer_is_none(lab: Lab, site: LabSite) -> None:
    lab.engines[0].mode, lab.engines[0].status = "status", 200
    answer = site.chat(CITY)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")


def test_an_engine_is_left_at_once_when_its_client_leaves(lab: Lab, site: LabSite) -> None:
    engine = lab.engines[0]
    engine.mode = "hang"
    client = RawClient(site.connect())
    client.send(post(chat_body(), CITY.key))
    wait_until(lambda: engine.active, "the engine works")
    client.close()
    wait_until(lambda: engine.left, "the engine was left")
    (event,) = wait_until(site.events, "the event is written")
    assert event.outcome is Outcome.CLIENT_GONE
