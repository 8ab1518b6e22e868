"""`/v1/audio/transcriptions` through a gateway, from the official client to the engine's twin as a real process."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import openai
import pytest
from tests.engine.engine_replicas import SPEECH
from tests.gateway.lab import CITY, Lab, LabSite, wait_until

from madang.core import ServiceName
from madang.engine.contract import Verdict
from madang.engine.whisper.driver import TWIN_PROGRAM, WhisperDriver
from madang.model import CatalogEntry, EngineFeature, PriorityClass, ReplicaPhase, Service, Tariff, Task
from madang.testing.engine_contract import KEY, RunningEngine, run_engine
from madang.wire.feed import LocalReplica

pytestmark = pytest.mark.peer
MODEL = SPEECH.service
SOUND = ("말.wav", bytes(80_000))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("speech")
    (folder / "weights").write_text("{}", encoding="utf-8")
    with run_engine(WhisperDriver(TWIN_PROGRAM), SPEECH, folder / "weights", folder) as running:
        running.wait_for(Verdict.READY, 30)
        yield running


@pytest.fixture
def site(lab: Lab, engine: RunningEngine) -> LabSite:
    site = lab.site()
    lab.services.append(Service(name=ServiceName(MODEL), model="speech-model"))
    lab.models.append(CatalogEntry(name="speech-model", task=Task.TRANSCRIPTION, title="t", licence="l"))
    site.replicas.append(
        LocalReplica(
            replica_id="daegu-speech-0",
            service=MODEL,
            phase=ReplicaPhase.READY,
            endpoint=engine.endpoint,
            engine_key=KEY,
            chip_kind="cpu",
            slots=1,
            slot=0,
            features=(EngineFeature.TRANSCRIPT_STREAM,),
        )
    )
    lab.start(site)
    return site


@pytest.fixture
def client(site: LabSite) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=CITY.key, max_retries=0) as client:
        yield client


def test_every_format(site: LabSite, client: openai.OpenAI) -> None:
    ask = client.audio.transcriptions
    plain = ask.create(model=MODEL, file=SOUND, language="ko")
    assert plain.text == "simulated speech 모의"
    assert ask.create(model=MODEL, file=SOUND, response_format="text") == f"{plain.text}\n"
    assert "00:00:02,000 --> 00:00:02,500\n모의" in ask.create(model=MODEL, file=SOUND, response_format="srt")
    vtt = ask.create(model=MODEL, file=SOUND, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n")
    verbose = ask.create(
        model=MODEL, file=SOUND, response_format="verbose_json", timestamp_granularities=["word"], temperature=0.2
    )
    assert (verbose.duration, verbose.language, len(verbose.segments or []), len(verbose.words or [])) == (
        2.5,
        "ko",
        3,
        3,
    )
    events = wait_until(lambda: len(site.events()) == 5 and site.events(), "every answer is written down")
    assert {(event.audio_ms, event.completion_tokens, event.outcome) for event in events} == {(2500, 0, "completed")}
    assert {event.endpoint for event in events} == {"/v1/audio/transcriptions"}


def test_a_stream(site: LabSite, client: openai.OpenAI) -> None:
    events = list(client.audio.transcriptions.create(model=MODEL, file=SOUND, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
    assert "".join(event.delta for event in events[:-1]).strip() == events[-1].text
    assert [(event.audio_ms, event.is_streamed) for event in site.events()] == [(2500, True)]


def test_a_client_that_leaves_pays_for_what_was_heard(
    site: LabSite, client: openai.OpenAI, engine: RunningEngine
) -> None:
    engine.client.post("/twin/behaviour", json={"stall_after_tokens": 2}).raise_for_status()
    try:
        stream = client.audio.transcriptions.create(model=MODEL, file=SOUND, stream=True)
        pieces = iter(stream)
        assert [next(pieces).type, next(pieces).type] == ["transcript.text.delta"] * 2
        stream.close()
        events = wait_until(site.events, "the event is written")
    finally:
        engine.client.post("/twin/behaviour", json={"stall_after_tokens": None}).raise_for_status()
    assert [(event.outcome, event.audio_ms) for event in events] == [("client_gone", 2000)]


def test_a_failing_engine_is_tried_again_or_named(site: LabSite, client: openai.OpenAI, engine: RunningEngine) -> None:
    engine.client.post("/twin/behaviour", json={"fail_next": 1}).raise_for_status()
    with pytest.raises(openai.APIStatusError) as failed:
        client.audio.transcriptions.create(model=MODEL, file=SOUND)
    assert failed.value.code == "upstream_failed"
    assert site.events() == []


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"file": ("a.wav", b"")}, "invalid_request", "file"),
        ({"response_format": "xml"}, "invalid_request", "response_format"),
        ({"language": "Korean!"}, "invalid_request", "language"),
        ({"temperature": 3}, "invalid_request", "temperature"),
        ({"include": ["logprobs"]}, "unsupported", "include"),
        ({"stream": True, "response_format": "srt"}, "unsupported", "stream"),
        ({"extra_body": {"nonsense": "1"}}, "invalid_request", "nonsense"),
    ],
)
def test_refusals_name_the_field(client: openai.OpenAI, fields: dict, code: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(**{"model": MODEL, "file": SOUND, **fields})
    assert (refused.value.code, refused.value.param) == (code, param)


def test_bytes_that_are_no_form_are_refused(site: LabSite) -> None:
    for body, kind in ((b"{}", "application/json"), (b"x", "multipart/form-data; boundary=b"), (b"", "text/plain")):
        answer = site.request("POST", "/v1/audio/transcriptions", body, key=CITY.key, headers={"Content-Type": kind})
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")


def test_a_peer_reads_the_same_form(lab: Lab, site: LabSite) -> None:
    entry = lab.site("gumi")
    entry.peers, site.peers = ["daegu"], ["gumi"]
    lab.start(entry)
    site.refresh()
    with contextlib.closing(openai.OpenAI(base_url=f"{entry.url}/v1", api_key=CITY.key, max_retries=0)) as client:
        raw = client.audio.transcriptions.with_raw_response.create(model=MODEL, file=SOUND)
    assert raw.headers["x-madang-site"] == "daegu"
    assert raw.parse().text == "simulated speech 모의"
    assert [event.audio_ms for event in site.events()] == [2500]


def test_a_chat_model_hears_nothing(lab: Lab, site: LabSite, client: openai.OpenAI) -> None:
    site.add_replica(lab.engine())
    site.refresh()
    with pytest.raises(openai.BadRequestError, match="transcription"):
        client.audio.transcriptions.create(model="qwen", file=SOUND)


class FakeListener(BaseHTTPRequestHandler):
    """A fake engine that says every sound was an hour long, as packed silence can be."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"]))
        whole, kind = json.dumps({"text": "…", "duration": 3600.0}).encode(), "application/json"
        if b'name="stream"' in asked:
            done = json.dumps({"type": "transcript.text.done", "text": "…", "duration_s": 3600.0}).encode()
            whole, kind = b"data: " + done + b"\n\n", "text/event-stream"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_sound_costs_no_more_than_was_reserved(
    lab: Lab, site: LabSite, client: openai.OpenAI, is_stream: bool
) -> None:
    """80,000 bytes are reserved as 160 s, so no budget is exceeded by what an engine hears in them."""
    lab.tariffs.append(
        Tariff(
            tariff_id="t",
            service=MODEL,
            priority=PriorityClass.INTERACTIVE,
            valid_from="2020-01-01",
            audio_second_micro_won=10,
        )
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeListener) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        site.replicas = [msgspec.structs.replace(one, endpoint=endpoint) for one in site.replicas]
        site.refresh()
        said = client.audio.transcriptions.create(model=MODEL, file=SOUND, stream=is_stream)
        assert not is_stream or [event.type for event in said] == ["transcript.text.done"]
        (event,) = wait_until(site.events, "it is written down")
        lab.stop(site)
        server.shutdown()
        thread.join(10)
    assert (event.outcome, event.audio_ms, event.charge_micro_won) == ("completed", 160_000, 1600)
