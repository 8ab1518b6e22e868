"""What a tenant gets: lists, answers, streams, embeddings, and the headers that come with them."""

import base64
import json
import struct

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.lab import CHAT, CITY, CLINIC, EMBED, Lab, LabSite, wait_until

from madang.model import Outcome


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    site.add_replica(lab.engine(), EMBED)
    lab.start(site)
    return site


def test_models_lists_what_is_served(lab: Lab, site: LabSite) -> None:
    answer = site.request("GET", "/v1/models", key=CITY.key)
    assert answer.status == 200
    assert [card["id"] for card in answer.json["data"]] == [EMBED, CHAT]
    assert site.request("GET", f"/v1/models/{CHAT}", key=CITY.key).json["id"] == CHAT
    site.replicas.pop()
    site.refresh()
    assert [card["id"] for card in site.request("GET", "/v1/models", key=CITY.key).json["data"]] == [CHAT]
    assert site.request("GET", f"/v1/models/{EMBED}", key=CITY.key).error["code"] == "model_not_found"


def test_chat_as_one_object(lab: Lab, site: LabSite) -> None:
    answer = site.chat(CITY, temperature=0.5, max_tokens=9)
    assert answer.status == 200
    body = answer.json
    assert body["object"] == "chat.completion"
    assert body["model"] == CHAT
    assert body["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "안녕하세요!"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert "server" not in answer.headers
    assert answer.headers["x-madang-site"] == "daegu"
    assert answer.headers["x-madang-chip"] == "cpu"
    assert answer.headers["x-madang-receipt"] == answer.headers["x-request-id"] + ".1"
    (sent,) = lab.engines[0].requests
    assert sent.headers["authorization"] == "Bearer engine-secret"
    assert sent.body["stream"] is True
    assert sent.body["stream_options"] == {"include_usage": True}
    assert sent.body["cache_prompt"] is False
    assert sent.body["max_tokens"] == 9
    (event,) = site.events()
    assert (event.event_id, event.outcome) == (answer.headers["x-madang-receipt"], Outcome.COMPLETED)
    assert (event.prompt_tokens, event.completion_tokens, event.is_estimated) == (7, 3, False)
    assert (event.entry_site, event.site, event.hops, event.replica_id) == ("daegu", "daegu", 0, "daegu-qwen-0")
    assert event.ttft_s is not None
    assert 0 < event.ttft_s <= event.duration_s


@pytest.mark.parametrize("wants_usage", [False, True])
def test_chat_as_a_stream(lab: Lab, site: LabSite, wants_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    answer = site.chat(CITY, stream=True, **options)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    *events, done = answer.events
    assert done == "[DONE]"
    parsed = [json.loads(event) for event in events]
    assert {event["id"] for event in parsed} == {f"chatcmpl-{answer.headers['x-request-id']}"}
    assert {event["model"] for event in parsed} == {CHAT}
    assert not any("timings" in event for event in parsed)
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in parsed if event["choices"])
    assert text == "안녕하세요!"
    assert [event["usage"]["total_tokens"] for event in parsed if not event["choices"]] == ([10] if wants_usage else [])
    (event,) = site.events()
    assert event.is_streamed


def test_completions(lab: Lab, site: LabSite) -> None:
    answer = site.request("POST", "/v1/completions", {"model": CHAT, "prompt": "하나, 둘,"}, key=CITY.key)
    assert answer.json["object"] == "text_completion"
    assert answer.json["choices"][0]["text"] == "안녕하세요!"
    assert answer.json["id"].startswith("cmpl-daegu-")


def test_embeddings_as_floats_and_base64(lab: Lab, site: LabSite) -> None:
    body = {"model": EMBED, "input": ["베어링", "진동"]}
    floats = site.request("POST", "/v1/embeddings", body, key=CITY.key).json
    packed = site.request("POST", "/v1/embeddings", {**body, "encoding_format": "base64"}, key=CITY.key).json
    assert [row["embedding"] for row in floats["data"]] == [[1.0] * 4, [2.0] * 4]
    assert floats["model"] == EMBED
    assert floats["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert [list(struct.unpack("<4f", base64.b64decode(row["embedding"]))) for row in packed["data"]] == [
        [1.0] * 4,
        [2.0] * 4,
    ]
    assert {one.body["encoding_format"] for one in lab.engines[1].requests} == {"float"}
    assert [event.endpoint for event in site.events()] == ["/v1/embeddings"] * 2


def test_connections_to_engines_are_reused(lab: Lab, site: LabSite) -> None:
    for _ in range(50):
        assert site.chat(CLINIC).status == 200
    assert lab.engines[0].connections == 1
    assert site.worker is not None
    assert (site.worker.meter.upstream_opened, site.worker.meter.upstream_reused) == (1, 49)
    assert len({event.event_id for event in site.events()}) == 50


def test_metrics_and_health(lab: Lab, site: LabSite) -> None:
    answer = site.chat(CITY)
    assert site.request("GET", "/healthz", port="admin").status == 200
    assert site.request("GET", "/readyz", port="admin").json["is_ready"] is True
    text = site.request("GET", "/metrics", port="admin").body.decode()
    samples = {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()) if name != "le"))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.value > 0
    }
    where = ("chip=cpu", "priority=interactive", "service=qwen", "site=daegu")
    chip, *rest = where
    answered = (chip, "endpoint=/v1/chat/completions", *rest, "status=200")
    assert ("madang_gateway_requests_total", *answered) in samples
    assert ("madang_gateway_tokens_total", chip, "kind=completion", *rest) in samples
    for name in ("ttft", "tpot", "queue"):
        assert (f"madang_gateway_{name}_seconds_count", *where) in samples
    assert "madang_gateway_usage_commit_seconds_count 1.0" in text
    assert CITY.name not in text
    assert answer.headers["x-request-id"] not in text
    assert site.request("GET", "/metrics", key=CITY.key).status == 404, "never on the tenants' port"


def test_in_flight_is_counted_and_uncounted(lab: Lab, site: LabSite) -> None:
    engine = lab.engines[0]
    engine.mode = "endless"
    client = site.connect()
    body = json.dumps({"model": CHAT, "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b"
        % (CITY.key.encode(), len(body), body)
    )
    assert client.recv(10)
    table = site.feed_dir / "inflight-0.bin"
    wait_until(lambda: table.read_bytes()[:4] == b"\x01\0\0\0", "the table counts it")
    client.close()
    wait_until(lambda: table.read_bytes()[:4] == bytes(4), "the table forgets it")
    wait_until(lambda: site.events(), "the event is written")
