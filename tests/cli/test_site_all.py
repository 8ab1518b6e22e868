"""`madang site run --all`: a real site under one supervisor, before it was ever enrolled."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from madang.federation.layout import gateway_settings, make_layout, node_settings, site_settings
from madang.federation.toml_text import render_toml
from madang.runtime.leftovers import find_marked

pytestmark = pytest.mark.peer

LIMIT_S = 60


def free_base_port():
    for base in range(31000, 32700, 100):
        try:
            for offset in range(10, 20):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise AssertionError("no free block of ports")


@pytest.fixture
def config_dir(tmp_path):
    layout = make_layout(tmp_path, tmp_path / "cache", free_base_port())
    daegu = layout.sites[1]
    digest = hashlib.sha256(b"token").hexdigest()
    for name, settings in (
        ("site.toml", site_settings(layout, daegu, digest)),
        ("gateway.toml", gateway_settings(daegu)),
        ("node.toml", node_settings(layout, daegu)),
    ):
        (tmp_path / name).write_text(render_toml(settings, "a test's"))
    return tmp_path, daegu


def run_all(folder):
    command = [sys.executable, "-m", "madang.cli", "site", "run", "--all", "--config-dir", str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def fetch(url, token=""):
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except (OSError, urllib.error.URLError):
            assert time.monotonic() < deadline, url
            time.sleep(0.05)


def test_a_site_runs_without_a_hub_and_ends_in_order(config_dir):
    folder, daegu = config_dir
    running = run_all(folder)
    try:
        status = fetch(f"{daegu.admin_url}/api/v1/status", "token")
        assert status["site"] == "daegu"
        assert status["hub_link"]["state"] != "connected"
        fetch(f"http://127.0.0.1:{daegu.gateway_admin_port}/healthz")
        running.send_signal(signal.SIGTERM)
        _, log = running.communicate(timeout=LIMIT_S)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0
    events = [json.loads(line) for line in log.splitlines()]
    started = {event["process"] for event in events if event["event"] == "process_started"}
    assert started == {"daegu-site", "daegu-node", "daegu-gateway"}  # the NATS server waits for credentials
    assert events[-1]["event"] == "stopped"
    assert find_marked(str(daegu.folder / "run")) == []


def test_a_port_in_use_ends_it_with_words(config_dir):
    folder, daegu = config_dir
    with socket.create_server(("127.0.0.1", daegu.port)):
        done = run_all(folder)
        _, text = done.communicate(timeout=LIMIT_S)
    assert done.returncode == 1
    assert f"error: port {daegu.port} on 127.0.0.1 is taken by pid {os.getpid()}" in text
    assert "Traceback" not in text
