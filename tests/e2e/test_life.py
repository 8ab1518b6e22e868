"""The life of the whole federation: it fits, is detached, survives its supervisor, ends without a trace."""

import os
import signal

import psutil
import pytest
from tests import loopback
from tests.e2e.embedded import wait_for

from madang.runtime.process import is_alive

pytestmark = [pytest.mark.federation, pytest.mark.model]

PSS_BYTES_MAX = 3 * 2**30


def engine_pids(federation):
    return {
        (site, one["replica_id"]): one["pid"] for site in federation.site_names() for one in replicas(federation, site)
    }


def replicas(federation, site):
    found = federation.admin("GET", "/api/v1/replicas", site=site)
    return found["replicas"] if isinstance(found, dict) else found


def list_models(federation, site, key):
    headers = {"authorization": f"Bearer {key}"}
    return loopback.get(f"{federation.url(site)}/v1/models", headers=headers, timeout=10)


def test_all_of_it_fits_in_3_gib(healthy, record_property):
    status = healthy.madang_json("status")
    record_property("pss_bytes", status["pss_bytes"])
    assert {process["state"] for process in status["processes"]} == {"running"}
    assert (
        len(status["processes"]) == 20 + 3 * 2 * 2
    )  # supervisor, programs and the plant twin; engines with their shims
    assert 2**29 < status["pss_bytes"] < PSS_BYTES_MAX


def test_no_program_holds_a_terminal_or_a_stream_of_its_caller(healthy):
    for ref in [healthy.supervisor(), *healthy.processes().values()]:
        process = psutil.Process(ref.pid)
        assert process.terminal() is None
        assert os.getsid(ref.pid) != os.getsid(0)
        for number in (0, 1, 2):
            target = os.readlink(f"/proc/{ref.pid}/fd/{number}")
            assert target == "/dev/null" or target.startswith(str(healthy.state_dir / "logs"))


def test_a_held_port_loses_no_connection_when_its_gateway_is_killed(healthy):
    key = healthy.key("gwangju-city")
    for _ in range(3):
        before = healthy.processes()["gwangju-gateway"]
        healthy.kill("gwangju-gateway")
        # At once: the socket is the supervisor's, so the connection waits for the new process.
        answer = list_models(healthy, "gwangju", key)
        assert answer.status_code == 200
        assert healthy.processes()["gwangju-gateway"] != before


def test_up_mends_a_killed_supervisor_and_adopts_the_engines(healthy):
    engines, supervisor = engine_pids(healthy), healthy.supervisor()
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_for("the supervisor is gone", lambda: not is_alive(supervisor), 60)
    assert healthy.madang_json("status")["is_running"] is False
    done = healthy.madang("up")
    assert "is up" in done.stdout
    assert healthy.supervisor() != supervisor
    assert engine_pids(healthy) == engines


@pytest.mark.deep
def test_down_leaves_no_process_and_no_port_and_up_finds_its_state(healthy):
    key = healthy.madang_json("key", "create", "--tenant", "gwangju-city")["api_key"]
    done = healthy.madang("down")
    assert "no process and no port remains" in done.stdout
    assert healthy.leftovers() == []
    assert "nothing was running" in healthy.madang("down").stdout
    healthy.madang("up")
    answer = wait_for(
        "the key of before opens",
        lambda: (a := list_models(healthy, "gwangju", key)).status_code == 200 and a,
        60,
    )
    assert answer.json()["data"]


@pytest.mark.parametrize("whose", [(), ("--site", "gumi")], ids=["hub", "site"])
def test_the_audit_chain_holds_after_all_of_that(healthy, whose):
    healthy.madang("access-log", "list", "--site", "gumi")  # the proof that somebody looked is a row at the site
    verdict = healthy.madang_json("audit", "verify", *whose)
    assert verdict["is_intact"]
    assert verdict["rows"] > 0
    head = f"{verdict['rows']}:{verdict['head_hash']}"
    assert "intact" in healthy.madang("audit", "verify", "--head", head, *whose).stdout
    (newest,) = healthy.madang_json("audit", "list", "--limit", "1", *whose)["rows"]
    assert newest["seq"] >= verdict["rows"]
    assert newest["action"].startswith("access." if whose else "")
