"""The whisper engine: its texts in unit tests, and recorded speech through the real model in a deep one."""

import contextlib
import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.engine_replicas import CHAT, SPEECH, fetched

from madang.core import Rejected
from madang.engine.contract import Verdict
from madang.engine.whisper import codec
from madang.engine.whisper.driver import WhisperDriver
from madang.model import ArtifactFile, IndexWheelsSource, WheelPart
from madang.testing.engine_contract import run_engine
from madang.wire.multipart import Part, encode_form

BOUNDARY = b"a-boundary"
TYPE = "multipart/form-data; boundary=a-boundary"
# Two people on the telephone, half a minute, which a package of speech tools ships as its sample.
RECORDING = ArtifactFile(
    name="sample.wav",
    size_bytes=960_104,
    sha256="c319b4abca767b124e41432d364fd7df006cb26bb79d09326c487d606a134e6e",
    sources=(
        IndexWheelsSource(
            parts=(
                WheelPart(
                    package="pyannote-audio",
                    version="3.4.0",
                    wheel_sha256="36e38f058059f46da3478dda581cda53d9d85a21173a3e70bbdbc3ba93b5e1b7",
                    member="pyannote/audio/sample/sample.wav",
                ),
            )
        ),
    ),
)


def form(**fields):
    parts = [Part(name.replace("__", "[]"), value.encode()) for name, value in fields.items() if name != "file"]
    if "file" in fields:
        parts.append(Part("file", fields["file"], "a.wav"))
    return codec.parse_request(TYPE, encode_form(parts, BOUNDARY))


def test_a_form_is_read():
    asked = form(
        file=b"\r\n--x",
        language="ko",
        temperature="0.5",
        stream="true",
        response_format="verbose_json",
        timestamp_granularities__="word",
    )
    assert asked == codec.SpeechRequest(
        audio=b"\r\n--x", language="ko", temperature=0.5, is_stream=True, is_verbose=True, has_words=True
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "file"),
        ({"file": b""}, "file"),
        ({"file": b"a", "temperature": "warm"}, "temperature"),
        ({"file": b"a", "temperature": "nan"}, "temperature"),
        ({"file": b"a", "response_format": "srt"}, "response_format"),
    ],
)
def test_bad_forms_name_the_field(fields, param):
    with pytest.raises(codec.BadRequest) as caught:
        form(**fields)
    assert caught.value.param == param


@given(body=st.binary(max_size=300), kind=st.sampled_from([TYPE, "", "text/plain", "multipart/form-data"]))
def test_no_bytes_make_the_parser_fail_otherwise(body, kind):
    with contextlib.suppress(codec.BadRequest):
        assert codec.parse_request(kind, body).audio


@given(
    alias=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    port=st.integers(1, 65535),
    threads=st.integers(1, 64),
)
def test_command_lines_round_trip(alias, port, threads):
    options = codec.ServeOptions(
        files=tuple(Path(name) for name in codec.FILES),
        alias=alias,
        host="127.0.0.1",
        port=port,
        key_file=Path("k"),
        threads=threads,
    )
    assert codec.ServeOptions.from_argv(list(options.to_argv())) == options


def test_a_model_of_another_task_is_refused():
    with pytest.raises(Rejected, match="transcription"):
        WhisperDriver().check(CHAT)


@pytest.mark.deep
@pytest.mark.model
@pytest.mark.peer
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("faster_whisper") is None, reason="the extra `speech` is not installed")
def test_recorded_speech_is_understood(tmp_path):
    weights = {file.name: fetched(file) for file in SPEECH.artifact.files}
    sound = {"file": ("sample.wav", fetched(RECORDING).read_bytes())}
    with run_engine(WhisperDriver(), SPEECH, weights, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 120)
        fields = {"model": "x", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
        whole = engine.client.post(codec.PATH, data=fields, files=sound, timeout=300)
        assert whole.status_code == 200, whole.text
        said = whole.json()
        assert said["language"] == "en"
        assert "New Jersey" in said["text"]
        assert said["duration"] == pytest.approx(30.0, abs=0.1)
        assert len(said["words"]) > 20
        assert all(one["start"] <= one["end"] for one in said["segments"])
        streamed = engine.client.post(codec.PATH, data={"model": "x", "stream": "true"}, files=sound, timeout=300)
        events = [json.loads(line.removeprefix("data: ")) for line in streamed.text.split("\n\n") if line]
        assert "".join(event["delta"] for event in events[:-1]).strip() == events[-1]["text"]
        assert "New Jersey" in events[-1]["text"]
        assert events[-1]["duration_s"] == said["duration"]
        noise = engine.client.post(codec.PATH, data={"model": "x"}, files={"file": ("a.wav", b"no sound")})
        assert (noise.status_code, noise.json()["error"]["param"]) == (400, "file")
        assert engine.probe().is_idle
