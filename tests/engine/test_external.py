"""Doors to endpoints of others: real sockets with TLS, keys and every way in which what stands behind can fail."""

import contextlib
import json
import socket
import ssl
import threading
import time
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import loopback
from tests.engine.engine_replicas import CHAT, weights_of
from tests.engine.vendor_replicas import CPU, EXTERNAL, VLLM_HERE, make_files, make_spec
from tests.gateway.certificates import Root

from madang.core import Rejected
from madang.engine.contract import Verdict
from madang.engine.external import codec
from madang.engine.external.driver import ExternalDriver
from madang.engine.llama_cpp.driver import LlamaCppDriver
from madang.engine.settings import ExternalEndpoint
from madang.engine.vllm import driver as vllm
from madang.model import DataClass, EngineFeature, Task
from madang.testing.engine_contract import KEY, run_engine

BODY = {"messages": [{"role": "user", "content": "안녕하세요"}], "max_tokens": 4}
REMOTE_KEY = KEY  # what `run_engine` gives every engine, here the endpoint's own


def endpoint(url, **fields):
    return ExternalEndpoint(url=url, is_at_site=True, **fields)


@contextlib.contextmanager
def door(folder, registered):
    """Open a door with a key of its own and yield it once it listens."""
    place = folder / "door"
    place.mkdir()
    with run_engine(ExternalDriver({"a": registered}), EXTERNAL, {}, place) as opened:
        yield opened


@contextlib.contextmanager
def twin_behind(folder, **behaviour):
    """Yield a vLLM twin that nobody of ours launches, and a file with its key."""
    place = folder / "endpoint"
    place.mkdir()
    driver = vllm.VllmDriver(VLLM_HERE, vllm.TWIN_PROGRAM)
    auth = folder / "auth"
    auth.write_text(f"Bearer {REMOTE_KEY}\n", encoding="ascii")
    auth.chmod(0o600)
    with run_engine(driver, CPU, make_files(place, CPU, **behaviour), place) as engine:
        engine.wait_for(Verdict.READY, 20)
        yield engine, auth


@contextlib.contextmanager
def both(folder, **behaviour):
    """Yield such a twin, the file with its key, and a door to it."""
    with (
        twin_behind(folder, **behaviour) as (remote, auth),
        door(folder, endpoint(remote.endpoint, auth_file=auth)) as it,
    ):
        it.wait_for(Verdict.READY, 20)
        yield remote, auth, it


@pytest.mark.peer
def test_a_request_passes_under_both_names_and_only_with_the_doors_key(tmp_path):
    with twin_behind(tmp_path) as (remote, auth):
        registered = endpoint(remote.endpoint, auth_file=auth, model="a-service", metrics_path="/metrics")
        with door(tmp_path, registered) as opened:
            assert opened.wait_for(Verdict.READY, 20).is_idle
            answer = opened.client.post("/v1/chat/completions", json=BODY | {"model": "whatever"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 4
            streamed = opened.client.post("/v1/chat/completions", json=BODY | {"stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
            assert "vllm:num_requests_running" in opened.client.get("/metrics").text
            refused = loopback.post(opened.endpoint + "/v1/chat/completions", json=BODY, trust_env=False)
            assert refused.status_code == 401
            for path in ("/slots", "/v1/embeddings", "/tokenize", "/v1/models", "/pause"):
                assert opened.client.post(path, json={}).status_code == 404, path
            bad = opened.client.post("/v1/chat/completions", content=b"[")
            assert bad.status_code == 400
            assert opened.client.post("/v1/chat/completions", json={}).status_code == 400


@pytest.mark.peer
def test_what_the_endpoint_asks_for_stands_in_no_command_line(tmp_path):
    with twin_behind(tmp_path) as (remote, auth), door(tmp_path, endpoint(remote.endpoint, auth_file=auth)) as opened:
        opened.wait_for(Verdict.READY, 20)
        for name in ("cmdline", "environ"):
            with open(f"/proc/{opened.process.pid}/{name}", "rb") as file:
                assert REMOTE_KEY.encode() not in file.read()


@pytest.mark.peer
def test_health_follows_the_endpoint_and_its_key(tmp_path):
    with both(tmp_path) as (remote, auth, opened):
        opened.wait_for(Verdict.READY, 20)
        remote.client.post("/twin/behaviour", json={"health": "sick"})
        assert "503" in opened.wait_for(Verdict.LOADING, 20).reason
        remote.client.post("/twin/behaviour", json={"health": "ok"})
        opened.wait_for(Verdict.READY, 20)
        auth.chmod(0o644)
        assert "open to others" in opened.wait_for(Verdict.SICK, 20).reason
        auth.write_text("Bearer wrong", encoding="ascii")
        auth.chmod(0o600)
        opened.wait_for(Verdict.READY, 20)  # vLLM tells its health without a key
        answer = opened.client.post("/v1/chat/completions", json=BODY)
        assert (answer.status_code, "refuses our key" in answer.text) == (502, True)
        auth.write_text(f"Bearer {REMOTE_KEY}", encoding="ascii")
        deadline_s = time.monotonic() + 60
        while opened.client.post("/v1/chat/completions", json=BODY).status_code != 200:
            assert time.monotonic() < deadline_s
        remote.process.kill()
        assert "silent" in opened.wait_for(Verdict.SICK, 20).reason
        assert opened.client.post("/v1/chat/completions", json=BODY).status_code == 502
    assert "well" in (tmp_path / "door" / "engine.log").read_text(encoding="utf-8")


@pytest.mark.peer
def test_a_stream_that_breaks_behind_breaks_in_front(tmp_path):
    with both(tmp_path, die_after_tokens=2) as (_remote, _auth, opened):
        opened.wait_for(Verdict.READY, 20)
        with pytest.raises(httpx.RemoteProtocolError):
            opened.client.post("/v1/chat/completions", json=BODY | {"stream": True})


@pytest.mark.peer
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_is_left_behind_too(tmp_path, is_stream):
    with both(tmp_path, stall_after_tokens=1) as (remote, _auth, opened):
        opened.wait_for(Verdict.READY, 20)
        with pytest.raises(httpx.ReadTimeout):
            opened.client.post("/v1/chat/completions", json=BODY | {"stream": is_stream}, timeout=0.5)
        deadline_s = time.monotonic() + 60
        while not (opened.probe().is_idle and remote.probe().is_idle):
            assert time.monotonic() < deadline_s


@pytest.mark.peer
def test_a_wedged_endpoint_makes_the_door_sick(tmp_path):
    with both(tmp_path) as (remote, _auth, opened):
        opened.wait_for(Verdict.READY, 20)
        remote.client.post("/twin/behaviour", json={"wedge": 1})
        assert "silent" in opened.wait_for(Verdict.SICK, 20).reason


@pytest.mark.deep
@pytest.mark.peer
@pytest.mark.model
def test_a_real_engine_that_was_started_by_hand(tmp_path):
    """llama.cpp with a real model, started without any node, behind the door: text, a stream and a schema."""
    weights = weights_of(CHAT)
    place = tmp_path / "endpoint"
    place.mkdir()
    auth = tmp_path / "auth"
    auth.write_text(f"Bearer {REMOTE_KEY}", encoding="ascii")
    auth.chmod(0o600)
    with run_engine(LlamaCppDriver(), CHAT, weights, place) as remote:
        remote.wait_for(Verdict.READY, 60)
        features = (EngineFeature.JSON_SCHEMA,)
        registered = endpoint(remote.endpoint, auth_file=auth, model=str(CHAT.service), features=features)
        with door(tmp_path, registered) as opened:
            reading = opened.wait_for(Verdict.READY, 20)
            assert not reading.is_simulated
            question = {"messages": [{"role": "user", "content": "대한민국의 수도는 어디입니까?"}], "temperature": 0}
            answer = opened.client.post("/v1/chat/completions", json=question | {"max_tokens": 24}, timeout=120)
            assert "서울" in answer.json()["choices"][0]["message"]["content"]
            schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            asked = question | {"response_format": form, "max_tokens": 40, "stream": True}
            streamed = opened.client.post("/v1/chat/completions", json=asked, timeout=120).text
            events = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
            text = "".join(one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"])
            assert json.loads(text)["capital"]
        assert remote.process.poll() is None, "closing the door ended what stood behind it"


# TLS


@contextlib.contextmanager
def secure_front(folder, target_port, host):
    """Yield port and root of a TLS server that passes bytes on to a port, as an ingress does."""
    root = Root(folder / f"root-{host}")
    certificate, key = root.issue(folder / f"pair-{host}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server((host, 0))
    listener.settimeout(0.1)
    ending = threading.Event()

    def carry(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve(outside):
        with (
            contextlib.suppress(OSError, ssl.SSLError),
            context.wrap_socket(outside, server_side=True) as secure,
            socket.create_connection(("127.0.0.1", target_port)) as inside,
        ):
            back = threading.Thread(target=carry, args=(inside, secure), daemon=True)
            back.start()
            carry(secure, inside)
            back.join(5)

    def accept():
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                outside, _ = listener.accept()
                outside.settimeout(30)
                threading.Thread(target=serve, args=(outside,), daemon=True).start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1], root.file
    finally:
        ending.set()
        accepting.join()
        listener.close()


@pytest.mark.peer
def test_certificates_are_checked(tmp_path):
    with twin_behind(tmp_path) as (remote, auth):
        port = int(remote.endpoint.rpartition(":")[2])
        with (
            secure_front(tmp_path, port, "127.0.0.1") as (secure, root),
            secure_front(tmp_path, port, "127.0.0.2") as (misnamed, other_root),
        ):
            good = endpoint(f"https://localhost:{secure}", auth_file=auth, ca_file=root, model="a-service")
            with door(tmp_path, good) as opened:
                opened.wait_for(Verdict.READY, 20)
                assert opened.client.post("/v1/chat/completions", json=BODY).status_code == 200
            (tmp_path / "door").rename(tmp_path / "door-1")
            # Nobody vouches for it, or it is another's.
            with door(tmp_path, msgspec.structs.replace(good, ca_file=None)) as opened:
                assert "certificate" in opened.wait_for(Verdict.SICK, 20).reason.lower()
            (tmp_path / "door").rename(tmp_path / "door-2")
            with door(
                tmp_path, msgspec.structs.replace(good, url=f"https://127.0.0.2:{misnamed}", ca_file=other_root)
            ) as opened:
                assert "certificate" in opened.wait_for(Verdict.SICK, 20).reason.lower()


# What may be registered


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "http://10.0.0.7:8000"}, "http would carry prompts"),
        ({"url": "ftp://x"}, "expected https"),
        ({"url": "https://user:pw@x"}, "expected https"),
        ({"url": "https://x:99999"}, "expected https"),
        ({"url": "https://x", "is_at_site": False}, "does not stand at this site"),
        ({"url": "https://x", "data_class_max": DataClass.CLASSIFIED}, "never sees classified data"),
        ({"url": "https://x", "health_path": "health"}, "expected a path"),
        ({"url": "https://x", "auth_header": "a b"}, "header's name"),
    ],
)
def test_what_may_not_be_registered(fields, words):
    values = {"is_at_site": True} | fields
    with pytest.raises(Rejected, match=words):
        ExternalDriver({"a": ExternalEndpoint(**values)})


def test_data_class_and_features_are_those_of_the_registration():
    registered = endpoint("https://llm.example", data_class_max=DataClass.SENSITIVE, features=(EngineFeature.TOOLS,))
    driver = ExternalDriver({"a": registered})
    found = driver.capabilities_for(EXTERNAL)
    assert (found.data_class_max, found.features) == (DataClass.SENSITIVE, (EngineFeature.TOOLS,))
    assert ExternalDriver({"a": endpoint("https://x")}).capabilities_for(EXTERNAL).data_class_max is DataClass.OPEN
    with pytest.raises(Rejected, match="no external endpoint 'a'; it has b"):
        ExternalDriver({"b": registered}).check(EXTERNAL)
    with pytest.raises(Rejected, match="serves"):
        driver.check(make_spec("external", "cpu", (), task=Task.TRANSCRIPTION))
    plain = endpoint("http://10.0.0.7:8000", is_plain_allowed=True)
    ExternalDriver({"a": plain}).check(EXTERNAL)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_renaming_fail_otherwise(body):
    try:
        named = json.loads(codec.rename_model(body, "한"))
    except Rejected:
        return
    except (ValueError, RecursionError):
        raise AssertionError(body) from None
    assert named["model"] == "한"


def test_only_what_the_task_needs_is_let_through():
    options = codec.ServeOptions(
        endpoint=endpoint("https://x", model="m 1"),
        paths=("/v2/models/{model}/infer",),
        alias="a-service",
        host="127.0.0.1",
        port=1,
        key_file=Path("k"),
    )
    assert codec.ServeOptions.from_argv(list(options.to_argv())) == options
    route = codec.Route(options)
    assert route.find("POST", "/v2/models/a-service/infer") == "/v2/models/m%201/infer"
    assert route.find("GET", "/v2/models/a-service") == "/v2/models/m%201"
    for method, path in (
        ("POST", "/v2/repository/index"),
        ("GET", "/v2/models/other"),
        ("PUT", "/v2/models/a-service"),
    ):
        assert route.find(method, path) is None
