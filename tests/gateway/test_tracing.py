"""Traces: passed on untouched without a collector, and sent to one by OTLP when it is set."""

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.gateway.lab import CHAT, CITY, Lab, LabTenant, residency, session_between, wait_until

from madang.model import DataClass

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=opaque"}
BODY = {"model": CHAT, "messages": [{"role": "user", "content": "비밀"}]}


@dataclass
class Collector:
    """A receiver of OTLP over HTTP: decodes with the protocol's own messages, keeps the spans."""

    url: str = ""
    spans: list[Any] = field(default_factory=list)
    raw: bytes = b""

    def take(self, data: bytes) -> None:
        self.raw += data
        request = ExportTraceServiceRequest.FromString(data)
        self.spans += [span for of in request.resource_spans for scope in of.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            found.take(gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        yield found
        server.shutdown()
        thread.join(5)


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_without_a_collector_a_callers_context_goes_on_as_it_came(lab: Lab) -> None:
    site = lab.site()
    engine = lab.engine()
    site.add_replica(engine)
    lab.start(site)
    for stream in (False, True):
        site.request("POST", "/v1/chat/completions", {**BODY, "stream": stream}, key=CITY.key, headers=PARENT)
        sent = engine.requests[-1].headers
        assert {name: sent[name] for name in PARENT} == PARENT
    site.request("POST", "/v1/chat/completions", BODY, key=CITY.key, headers={"traceparent": "00-bad"})
    assert "traceparent" not in engine.requests[-1].headers
    long_state = {**PARENT, "tracestate": "v=" + "x" * 600}
    site.request("POST", "/v1/chat/completions", BODY, key=CITY.key, headers=long_state)
    assert "tracestate" not in engine.requests[-1].headers


def test_a_request_and_its_attempts_become_spans(lab: Lab, collector: Collector) -> None:
    site = lab.site()
    broken, whole = lab.engine(mode="die_first"), lab.engine()
    site.add_replica(broken, slots=8)
    site.add_replica(whole, slots=1)
    lab.start(site, otlp_traces_url=collector.url, trace_ratio=0.0)
    answer = site.request("POST", "/v1/chat/completions", BODY, key=CITY.key, headers=PARENT)
    assert answer.status == 200
    unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    site.request("POST", "/v1/chat/completions", BODY, key=CITY.key, headers=unsampled)
    assert whole.requests[-1].headers["traceparent"].endswith("-00"), "the caller's decision goes on"
    site.request("POST", "/v1/chat/completions", {**BODY, "model": "none"}, key=CITY.key, headers=PARENT)
    lab.stop(site)

    (served, refused) = collector.named("POST /v1/chat/completions")
    assert served.trace_id.hex() == TRACE
    assert served.parent_span_id.hex() == SPAN
    facts = attributes(served)
    assert facts["madang.request_id"] == answer.headers["x-request-id"]
    assert (facts["gen_ai.request.model"], facts["gen_ai.usage.output_tokens"]) == (CHAT, 3)
    assert facts["http.response.status_code"] == 200
    assert attributes(refused)["http.response.status_code"] == 404
    first, second = collector.named("attempt")
    assert attributes(first)["error.type"] == "closed"
    assert {first.parent_span_id, second.parent_span_id} == {served.span_id}
    parents = [engine.requests[0].headers["traceparent"] for engine in (broken, whole)]
    assert parents == [f"00-{TRACE}-{span.span_id.hex()}-01" for span in (first, second)]
    for secret in ("비밀", CITY.name, CITY.key):
        assert secret.encode() not in collector.raw


def test_one_trace_over_two_sites(lab: Lab, collector: Collector) -> None:
    entry, peer = lab.site("daegu"), lab.site("gumi")
    entry.peers, peer.peers = ["gumi"], ["daegu"]
    peer.add_replica(lab.engine())
    for site in (entry, peer):
        lab.start(site, otlp_traces_url=collector.url, trace_ratio=1.0)
    assert session_between("daegu", "gumi")
    assert entry.chat(CITY).headers["x-madang-site"] == "gumi"
    lab.stop(entry)
    lab.stop(peer)
    spans = {attributes(span).get("madang.site", "attempt"): span for span in collector.spans}
    at_entry, at_peer = spans["daegu"], spans["gumi"]
    assert at_entry.trace_id == at_peer.trace_id
    (hop,) = [span for span in collector.named("attempt") if span.span_id == at_peer.parent_span_id]
    assert hop.parent_span_id == at_entry.span_id


def test_a_collector_that_is_away_costs_no_request(lab: Lab) -> None:
    site = lab.site()
    site.add_replica(lab.engine())
    lab.start(site, otlp_traces_url="http://127.0.0.1:9/v1/traces", trace_ratio=1.0)
    assert [site.chat(CITY).status for _ in range(20)] == [200] * 20


def test_a_share_of_requests_is_told_in_the_log(lab: Lab) -> None:
    site = lab.site()
    site.add_replica(lab.engine())
    lab.start(site, debug_ratio=0.5)
    for _ in range(60):
        assert site.chat(CITY).status == 200
    told = wait_until(lambda: site.log.named("gateway_request"), "something is told")
    assert 10 < len(told) < 50
    assert {(line["status"], line["gen_ai_request_model"]) for line in told} == {(200, CHAT)}
    assert CITY.name not in str(told)
    assert "수도" not in str(told)


def test_nothing_is_told_of_classified_requests(lab: Lab, collector: Collector) -> None:
    secret = LabTenant("defence", residency("nation", "kr"), data_class=DataClass.CLASSIFIED)
    lab.tenants.append(secret)
    site = lab.site()
    site.data_class_max = DataClass.CLASSIFIED
    site.add_replica(lab.engine())
    lab.start(site, debug_ratio=1.0, otlp_traces_url=collector.url, trace_ratio=1.0)
    assert [site.chat(secret).status for _ in range(5)] == [200] * 5
    assert site.chat(CITY).status == 200
    assert len(wait_until(lambda: site.log.named("gateway_request"), "the other's is told")) == 1
    lab.stop(site)
    assert len(collector.named("POST /v1/chat/completions")) == 1


@pytest.mark.parametrize("is_spilled", [False, True])
def test_the_context_of_a_classified_request_ends_here(lab: Lab, is_spilled: bool) -> None:
    """Passed on, an engine or a peer with a collector of its own would record it; tracestate has the caller's words."""
    secret = LabTenant("defence", residency("nation", "kr"), data_class=DataClass.CLASSIFIED)
    lab.tenants.append(secret)
    entry, serving = lab.site("daegu"), lab.site("gumi")
    engine = lab.engine()
    (serving if is_spilled else entry).add_replica(engine)
    for site, other in ((entry, serving), (serving, entry)):
        site.data_class_max = DataClass.CLASSIFIED
        site.peers = [other.name]
    for site in (entry, serving):
        lab.start(site)
    for tenant, is_passed_on in ((secret, False), (CITY, True)):
        for stream in (False, True):
            body = {**BODY, "stream": stream}
            answer = entry.request("POST", "/v1/chat/completions", body, key=tenant.key, headers=PARENT)
            assert (answer.status, answer.headers["x-madang-site"]) == (200, serving.name if is_spilled else entry.name)
            assert ("traceparent" in engine.requests[-1].headers) is is_passed_on
            assert ("tracestate" in engine.requests[-1].headers) is is_passed_on
