"""kill -9 of each part: answers go on where residency allows, and everything comes back with its state."""

import contextlib
import time

import httpx
import psutil
import pytest
from tests.e2e.embedded import wait_for

pytestmark = [pytest.mark.federation, pytest.mark.model]

ASK = {"model": "madang-chat", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
CHAT = "/v1/chat/completions"


def ask(federation, entry, tenant, timeout_s=20):
    try:
        return federation.post(entry, tenant, CHAT, ASK, timeout_s)
    except httpx.HTTPError as error:
        return error


def is_answer(answer):
    return isinstance(answer, httpx.Response) and answer.status_code == 200


def test_a_killed_engine_is_covered_by_a_peer_and_comes_back(healthy, record_property):
    engine = healthy.engines("gumi", "madang-chat")[0]
    psutil.Process(engine["pid"]).kill()
    killed_at = time.monotonic()
    answer = ask(healthy, "gumi", "gumi-parts")
    assert is_answer(answer), answer
    assert answer.headers["x-madang-site"] in ("daegu", "gumi")

    def is_home():
        answer = ask(healthy, "gumi", "gumi-parts")
        assert is_answer(answer), getattr(answer, "text", answer)
        return answer.headers["x-madang-site"] == "gumi"

    wait_for("gumi answers itself again", is_home, 60)
    record_property("back_after_s", round(time.monotonic() - killed_at, 1))
    assert healthy.engines("gumi", "madang-chat")[0]["pid"] != engine["pid"]


def test_a_killed_node_program_keeps_its_engine(healthy):
    before = healthy.engines("daegu", "madang-chat")[0]["pid"]
    old = healthy.processes()["daegu-node"]
    healthy.kill("daegu-node")
    assert is_answer(ask(healthy, "daegu", "daegu-clinic"))
    wait_for("the node program is back", lambda: healthy.processes().get("daegu-node", old) != old, 60)
    wait_for(
        "the engine is ready in its eyes",
        lambda: any(e["phase"] == "ready" and e["pid"] == before for e in healthy.engines("daegu", "madang-chat")),
        60,
    )


def test_when_all_of_a_site_is_killed_the_national_entry_answers_from_another_within_3_s(healthy):
    names = [name for name in healthy.processes() if name.startswith("gwangju-")]
    assert len(names) == 4
    pids = healthy.tree_pids("gwangju")
    for pid in pids:
        with_process(pid, psutil.Process.kill)
    killed_at = time.monotonic()
    # An embedding, whose computation takes next to nothing: what is bounded here is the failover, not how fast a
    # chat model computes while an engine is loaded beside it.
    text = {"model": "madang-embed", "input": "회선 점검"}
    answer = healthy.post("national", "gwangju-city", "/v1/embeddings", text)
    took_s = time.monotonic() - killed_at
    assert is_answer(answer), answer.text
    assert answer.headers["x-madang-site"] in ("daegu", "gumi")
    assert took_s < 3
    answer = ask(healthy, "national", "gwangju-city")
    assert is_answer(answer), answer
    wait_for("gwangju answers itself", lambda: is_answer(ask(healthy, "gwangju", "gwangju-city")), 60, every_s=0.2)


def with_process(pid, act):
    with contextlib.suppress(psutil.NoSuchProcess):
        act(psutil.Process(pid))


def test_a_killed_site_program_stops_no_answer_and_loses_no_usage(healthy):
    before = healthy.ledger()["totals"]["requests"]
    healthy.kill("daegu-site")
    for _ in range(3):
        assert is_answer(ask(healthy, "daegu", "daegu-clinic"))
    wait_for("the ledger has them", lambda: healthy.ledger()["totals"]["requests"] >= before + 3, 60, every_s=0.3)


def test_when_hub_and_its_nats_are_killed_every_site_serves_and_all_converges(healthy):
    before = healthy.ledger()["totals"]["requests"]
    healthy.kill("hub", "hub-nats")
    for entry, tenant in (("daegu", "daegu-clinic"), ("gumi", "gumi-parts"), ("gwangju", "gwangju-city")):
        answer = ask(healthy, entry, tenant)
        assert is_answer(answer), getattr(answer, "text", answer)
        assert answer.headers["x-madang-site"] == entry

    def has_converged():
        try:
            rows = healthy.site_rows()
            return (
                all(s["state"] == "connected" and s["in_sync"] and s["outbox_depth"] == 0 for s in rows)
                and healthy.ledger()["totals"]["requests"] >= before + 3
            )
        except httpx.HTTPError:
            return False

    wait_for("hub and sites converge", has_converged, 60, every_s=0.3)
