"""What one worker counts, and its Prometheus text.

Owns the counters and their names. The hot path adds to plain integers and dictionaries; the library's families are
made when somebody scrapes. Labels are endpoints, statuses, sites and kinds of failure: never a tenant, a key or a
request, and never a text that a client chose.
"""

from bisect import bisect_left
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

TTFT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
COMMIT_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """Return it as the library's family."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class Meter(Collector):
    """Everything that one worker counts."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int, str], int] = {}
        self.tokens: dict[tuple[str, str], int] = {}
        self.failovers: dict[str, int] = {}
        self.rejects: dict[int, int] = {}
        self.peer_refusals: dict[str, int] = {}
        self.ttft = Histogram(TTFT_BUCKETS_S)
        self.commit = Histogram(COMMIT_BUCKETS_S)
        self.upstream_opened = self.upstream_reused = self.upstream_stale = 0
        self.clients_gone = 0
        self.in_flight = 0
        self.connections = 0
        self.is_ready = False

    def count_request(self, endpoint: str, status: int, site: str) -> None:
        """Count an answer; `site` is where it was served, empty when nowhere."""
        key = (endpoint, status, site)
        self.requests[key] = self.requests.get(key, 0) + 1

    def count_tokens(self, service: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens of a service of the catalog."""
        for kind, tokens in (("prompt", prompt_tokens), ("completion", completion_tokens)):
            self.tokens[service, kind] = self.tokens.get((service, kind), 0) + tokens

    def count_failover(self, reason: str) -> None:
        """Count an attempt that failed before its first byte."""
        self.failovers[reason] = self.failovers.get(reason, 0) + 1

    def count_reject(self, status: int) -> None:
        """Count a request that HTTP itself forbids."""
        self.rejects[status] = self.rejects.get(status, 0) + 1

    def count_peer_refusal(self, reason: str) -> None:
        """Count a pass that this site refused."""
        self.peer_refusals[reason] = self.peer_refusals.get(reason, 0) + 1

    def collect(self) -> Iterable[Metric]:
        """Return every family; called when somebody scrapes."""
        yield _counter(
            "requests",
            "Answers by endpoint, status and serving site.",
            ["endpoint", "status", "site"],
            (((endpoint, str(status), site), count) for (endpoint, status, site), count in self.requests.items()),
        )
        yield _counter("tokens", "Tokens by service and kind.", ["service", "kind"], self.tokens.items())
        yield _by_one("failovers", "Attempts that failed before their first byte.", "reason", self.failovers)
        yield _by_one("http_rejects", "Requests that HTTP itself forbids.", "status", self.rejects)
        yield _by_one("peer_refusals", "Passes of peers that were refused.", "reason", self.peer_refusals)
        connections = {"opened": self.upstream_opened, "reused": self.upstream_reused, "stale": self.upstream_stale}
        yield _by_one("upstream_connections", "Connections to engines and peers.", "kind", connections)
        yield _counter(
            "clients_gone", "Clients that left before their answer was complete.", [], [((), self.clients_gone)]
        )
        yield self.ttft.family("madang_gateway_ttft_seconds", "Request to first token, at this gateway.")
        yield self.commit.family("madang_gateway_usage_commit_seconds", "From an event's end to its durability.")
        yield _gauge("in_flight_requests", "Requests that engines and peers work on.", self.in_flight)
        yield _gauge("open_connections", "Connections of clients.", self.connections)
        yield _gauge("is_ready", "Whether requests are taken.", int(self.is_ready))

    def render(self) -> bytes:
        """Return the Prometheus text."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)


def _counter(
    name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"madang_gateway_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(list(key), value)
    return family


def _by_one(name: str, text: str, label: str, values: dict[str, int] | dict[int, int]) -> CounterMetricFamily:
    return _counter(name, text, [label], (((str(key),), value) for key, value in values.items()))


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"madang_gateway_{name}", text, value=value)
