"""What the gateway's bench counts with: answers of the synthetic engine, clients' bookkeeping, ratios, the page."""

import asyncio
import json

import pytest
from bench.gateway import report
from bench.gateway.loads import Client, Load, Seen
from bench.gateway.measure import Apart, Measured, percentiles_us, split_forwarder
from bench.gateway.upstream import CHUNKS, Engine

PLAIN = Load(name="json", mode="json", connections=1, is_stream=False, warm_s=0, measure_s=1)
STREAM = Load(name="burst", mode="burst", connections=1, is_stream=True, warm_s=0, measure_s=1)


class FakeTransport:
    """Counts requests."""

    def __init__(self):
        self.requests = 0

    def write(self, data):
        self.requests += 1

    def abort(self):
        pass


def measured(peer, load="json", turn=0, **fields):
    values = {
        "rate": 1000.0,
        "units": 3000.0,
        "first_us": (100.0, 200.0),
        "rest_us": (10.0, 20.0),
        "rss_mib": {"peer": 10.0},
    }
    rest = {"requests": 1000, "opened": 0, "deliveries": 100.0, "is_whole": True, "cpu_us": {"peer": 10.0}}
    return Measured(peer=peer, load=load, turn=turn, **{**values, **rest, **fields})


def ours(turn=0, load="json", **fields):
    cpu_us = fields.pop("cpu_us", {"worker": 20.0, "site": 10.0, "hub": 500.0})
    return measured("madang", load, turn, cpu_us=cpu_us, rss_mib={"worker": 40.0, "site": 100.0}, **fields)


def test_the_synthetic_engine_says_as_much_as_it_is_said_to():
    engine = Engine()
    body = engine.json.partition(b"\r\n\r\n")[2]
    assert len(body) == 1024
    assert json.loads(body)["choices"][0]["message"]["content"]
    assert len(engine.burst) == CHUNKS
    assert b"".join(engine.burst).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
@pytest.mark.parametrize("load", [PLAIN, STREAM], ids=["plain", "stream"])
def test_clients_count_whole_answers_however_they_are_cut(load, size):
    async def play():
        engine, seen = Engine(), Seen()
        answer = b"".join(engine.burst) if load.is_stream else engine.json
        client = Client(b"request", seen, load)
        client.connection_made(FakeTransport())
        client.ask()
        for _ in range(3):
            for at in range(0, len(answer), size):
                client.data_received(answer[at : at + size])
        client.stop()
        return seen, client.transport.requests

    seen, requests = asyncio.run(play())
    assert (seen.done, seen.bad, requests) == (3, 0, 4)
    assert len(seen.first_s) == len(seen.rest_s) == 3


def test_clients_count_refusals_and_lost_connections():
    async def play():
        seen = Seen()
        client = Client(b"request", seen, PLAIN)
        client.connection_made(FakeTransport())
        client.ask()
        client.data_received(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        client.connection_lost(None)
        return seen

    assert asyncio.run(play()).bad == 2


def test_percentiles_are_of_the_values():
    assert percentiles_us([]) == (0.0, 0.0)
    assert percentiles_us([i / 1e6 for i in range(1, 101)]) == pytest.approx((50.5, 100.0))


def test_our_cpu_is_that_of_worker_and_site_process():
    assert report.own_cpu_us(ours()) == 30.0
    assert report.own_cpu_us(measured("haproxy")) == 10.0


def test_the_forwarder_is_taken_out_of_the_site_process():
    apart = Apart(import_us=8.0, forward_us=4.0, nats_us=1.0, events=100, forwarded=100)
    one, streams = ours(), ours(load="burst")
    split_forwarder(one, apart)
    split_forwarder(streams, apart)
    assert (one.cpu_us["site"], one.cpu_us["forwarder"]) == (6.0, 4.0)
    assert streams.cpu_us["forwarder"] == pytest.approx(4.0 / CHUNKS)


def test_goals_are_judged_by_ratios_within_a_round():
    """The second round is twice as slow for all: ratios stay."""
    found = []
    for turn, factor in enumerate((1.0, 2.0, 1.0)):
        found += [
            measured("haproxy", turn=turn, cpu_us={"peer": 10.0 * factor}),
            measured("vllm-router", turn=turn, cpu_us={"peer": 40.0 * factor}),
            ours(turn, cpu_us={"worker": 20.0 * factor, "site": 10.0 * factor}, opened=2),
        ]
    goals = {goal.name: goal for goal in report.judge(found)}
    to_haproxy, to_rust = goals["CPU/request, of HAProxy's"], goals["CPU/request, of vllm-router's"]
    assert (to_haproxy.value, to_haproxy.is_met) == (3.0, True)
    assert (to_rust.value, to_rust.is_met) == (0.75, False)
    assert not goals["upstream connections reused"].is_met


def test_first_bytes_are_over_direct_ones_of_the_same_round():
    found = []
    for turn, floor in enumerate((100.0, 300.0)):
        found += [
            measured("direct", "one", turn, first_us=(floor, floor)),
            measured("haproxy", "one", turn, first_us=(floor + 50, floor + 90)),
        ]
    assert report.added_us(found, "haproxy", "one", 0) == [50.0, 50.0]
    assert report.added_us(found, "haproxy", "one", 1) == [90.0, 90.0]


def test_measures_without_an_answer_are_left_out():
    found = [measured("litellm", units=0.0, cpu_us={"peer": 1e9}), ours()]
    assert report.of(found, "litellm", "json", report.own_cpu_us) == []
    assert all("LiteLLM" not in goal.name for goal in report.judge(found))


def test_only_our_part_of_the_page_is_replaced(tmp_path):
    facts = report.Facts("abc", "machine", "6", "3.11", "3.11", "now", {"haproxy": "2.6"}, 0.0)
    page = tmp_path / "performance.md"
    found = [measured("haproxy"), ours()]
    report.write_page(page, facts, found, report.judge(found))
    page.write_text(page.read_text().replace("# Performance\n", "# Performance\n\nOurs to keep.\n") + "\nAnd this.\n")
    before = page.read_text()
    report.write_page(page, facts, found, report.judge(found))
    assert page.read_text() == before
    assert before.count(report.BEGIN) == before.count(report.END) == 1
    assert "| haproxy | 10.0 |" in before
