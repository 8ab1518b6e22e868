"""Bad input gets a precise answer, and nothing is lost by it."""

import time

import httpx
import pytest
from tests import loopback
from tests.e2e.embedded import wait_for

pytestmark = [pytest.mark.federation]

CHAT = "/v1/chat/completions"
GOOD = {"model": "madang-chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def post_raw(federation, body, path=CHAT, key=None, **headers):
    key = key or federation.key("gwangju-city")
    return loopback.post(
        f"{federation.url('gwangju')}{path}",
        content=body,
        headers={"authorization": f"Bearer {key}", "content-type": "application/json", **headers},
        timeout=30,
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":7,"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"madang-chat"}', "messages"),
        (b'{"model":"madang-chat","messages":"x"}', "messages"),
        (b'{"model":"madang-chat","messages":[]}', "messages"),
        (b'{"model":"madang-chat","messages":[{"role":"user"}]}', None),
        (b'{"model":"madang-chat","messages":[{"role":"user","content":"x"}],"stream":"yes"}', "stream"),
        (b'{"model":"madang-chat","messages":[{"role":"user","content":"x"}],"max_tokens":-1}', "max_tokens"),
        (b'{"model":"madang-chat","messages":[{"role":"user","content":"x"}],"temperature":"hot"}', "temperature"),
    ],
)
def test_a_wrong_body_gets_400_that_names_the_parameter(federation, body, param):
    answer = post_raw(federation, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_request"
    assert error["type"] == "invalid_request_error"
    if param:
        assert error["param"] == param
        assert param in error["message"]


def test_an_unknown_model_gets_404(federation):
    answer = federation.post("gwangju", "gwangju-city", CHAT, {**GOOD, "model": "nope"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "nope" in answer.json()["error"]["message"]


def test_an_unknown_path_and_a_wrong_method_say_so(federation):
    assert post_raw(federation, b"{}", path="/v1/nothing").status_code == 404
    headers = {"authorization": f"Bearer {federation.key('gwangju-city')}"}
    answer = loopback.get(f"{federation.url('gwangju')}{CHAT}", headers=headers, timeout=10)
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]


def test_a_body_of_20_mib_gets_413_and_the_gateway_lives_on(federation):
    body = b'{"model":"madang-chat","messages":[{"role":"user","content":"' + b"x" * (20 * 2**20) + b'"}]}'
    try:
        answer = post_raw(federation, body)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pytest.fail("the connection broke instead of carrying the 413")
    assert federation.post("gwangju", "gwangju-city", CHAT, GOOD).status_code == 200


@pytest.mark.parametrize("key", ["mdg_unknown_" + "A" * 43, "x", "sk-proj-abc", "mdg_" + "A" * 5000])
def test_an_unknown_key_gets_401(federation, key):
    answer = post_raw(federation, b"{}", key=key)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_key"


def test_no_key_gets_401(federation):
    answer = loopback.post(f"{federation.url('gwangju')}{CHAT}", json=GOOD, timeout=10)
    assert answer.status_code == 401


def test_a_key_that_expired_or_was_revoked_gets_401_within_2_s(federation):
    made = federation.madang_json("key", "create", "--tenant", "gwangju-city")
    key, key_id = made["api_key"], made["key_id"]
    url = f"{federation.url('gwangju')}/v1/models"

    def status():
        return loopback.get(url, headers={"authorization": f"Bearer {key}"}, timeout=5).status_code

    wait_for("the new key opens", lambda: status() == 200, 2)
    federation.admin("PATCH", f"/api/v1/keys/{key_id}", json={"expires_at_s": time.time() - 1})
    wait_for("the expired key is refused", lambda: status() == 401, 2)
    federation.admin("PATCH", f"/api/v1/keys/{key_id}", json={"expires_at_s": time.time() + 600})
    wait_for("the extended key opens", lambda: status() == 200, 2)
    federation.madang("key", "revoke", key_id)
    wait_for("the revoked key is refused", lambda: status() == 401, 2)
    answer = loopback.get(url, headers={"authorization": f"Bearer {key}"}, timeout=5)
    assert "revoked" in answer.json()["error"]["message"]


def test_a_broken_settings_file_names_file_key_and_what_was_expected(federation, tmp_path):
    text = (federation.state_dir / "sites" / "gumi" / "gateway.toml").read_text()
    broken = tmp_path / "gateway.toml"
    broken.write_text(text.replace("port = ", 'prot = 1\nport = "x"\n#', 1))
    done = federation.madang("gateway", "run", "--config", str(broken), is_ok=False)
    assert done.returncode == 1
    assert str(broken) in done.stderr
    assert "prot" in done.stderr or "port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_names_itself(federation, tmp_path):
    done = federation.madang(
        "up", "--state", str(tmp_path / "other"), "--base-port", str(federation.base_port), is_ok=False
    )
    assert done.returncode == 1
    assert str(federation.base_port) in done.stderr
    assert "--base-port" in done.stderr


def test_a_second_up_finds_the_federation_running(federation):
    done = federation.madang("up")
    assert "running" in done.stdout.lower()
