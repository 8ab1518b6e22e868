"""What one worker counts, and its Prometheus text.

Owns the counters and their names. The hot path adds to plain integers and dictionaries; the library's families are
made when somebody scrapes. Labels are endpoints, statuses, services of the catalog, sites, chips, classes and kinds of
failure: never a tenant, a key or a request, and never a text that a client chose.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from madang.core import SiteId
from madang.model import DataClass

TTFT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TOKEN_GAP_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
QUEUE_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
COMMIT_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


SERIES_MAX = 5000
"""Over this many combinations of labels, new ones are counted without service, site, chip and class."""


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

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts by upper bound, as the library wants them."""
        counts = accumulate(map(float, self._counts))
        return list(zip((*map(str, self._bounds), "+Inf"), counts, strict=True))

    @property
    def sum(self) -> float:
        """The sum of what was observed."""
        return self._sum


class ServiceMeter:
    """What one service did for one class on one kind of chip at this site.

    Attributes:
        ttft: request to first token, seconds, streams only.
        tpot: mean time per token after the first, of each stream, seconds.
        itl: time between two reads from an engine that brought tokens, seconds.
        queue: request to the attempt that served it, seconds.
    """

    __slots__ = ("completion_tokens", "itl", "prompt_tokens", "queue", "tpot", "ttft")

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0
        self.ttft = Histogram(TTFT_BUCKETS_S)
        self.tpot = Histogram(TOKEN_GAP_BUCKETS_S)
        self.itl = Histogram(TOKEN_GAP_BUCKETS_S)
        self.queue = Histogram(QUEUE_BUCKETS_S)


_SERVICE_LABELS = ["service", "site", "chip", "priority"]
_HISTOGRAMS = (
    ("ttft", "Request to first token, of streams, at this gateway."),
    ("tpot", "Mean time per token after the first, of each stream."),
    ("itl", "Time between two reads from an engine that brought tokens."),
    ("queue", "Request to the attempt that served it."),
)


class Meter(Collector):
    """Everything that one worker counts."""

    def __init__(self, site: str) -> None:
        """Begin at zero.

        Args:
            site: whose gateway this is; the label of what is served here.
        """
        self._site = site
        self.requests: dict[tuple[str, int, str, str, str, str], int] = {}
        self.services: dict[tuple[str, str, str], ServiceMeter] = {}
        self.retries: dict[tuple[str, str], int] = {}
        self.sheds: dict[tuple[str, str, str], int] = {}
        self.rejects: dict[int, int] = {}
        self.peer_refusals: dict[str, int] = {}
        self.commit = Histogram(COMMIT_BUCKETS_S)
        self.retries_refused = 0
        self.upstream_opened = self.upstream_reused = self.upstream_stale = 0
        self.clients_gone = 0
        self.quota_refusals: dict[str, int] = {}
        self.overdraw_micro_won = 0
        self.clear_links: dict[tuple[str, str], int] = {}
        self.read_links: Callable[[], Mapping[SiteId, DataClass]] = dict
        self.connections_refused: Mapping[str, int] = {}
        self.read_open_reservations: Callable[[], int] = lambda: 0
        self.access_written = self.access_lost = 0
        self.in_flight = 0
        self.connections = self.connections_max = 0
        self.handshakes: dict[str, int] = {}
        self.certificate_not_after_s = 0.0
        self.is_ready = False

    def count_request(
        self, endpoint: str, status: int, site: str, service: str = "", chip: str = "", priority: str = ""
    ) -> None:
        """Count an answer; `site` and `chip` are where it was served, empty when nowhere."""
        key = (endpoint, status, service, site, chip, priority)
        if len(self.requests) >= SERIES_MAX and key not in self.requests:
            key = (endpoint, status, "", "", "", "")  # a peer's words for its chips are not ours to bound
        self.requests[key] = self.requests.get(key, 0) + 1

    def of(self, service: str, chip: str, priority: str) -> ServiceMeter:
        """Return the meter of a service of the catalog, for a class, on a kind of chip."""
        key = (service, chip, priority)
        found = self.services.get(key)
        if found is None:
            found = self.services[key] = ServiceMeter()
        return found

    def count_retry(self, service: str, reason: str) -> None:
        """Count an attempt that failed before its first byte."""
        key = (service, reason)
        self.retries[key] = self.retries.get(key, 0) + 1

    def count_shed(self, service: str, priority: str, reason: str) -> None:
        """Count a request that was refused for want of room, money or a replica."""
        key = (service, priority, reason)
        self.sheds[key] = self.sheds.get(key, 0) + 1

    def count_quota_refusal(self, reason: str) -> None:
        """Count a request that a budget or a limit of its key forbade."""
        self.quota_refusals[reason] = self.quota_refusals.get(reason, 0) + 1

    def count_clear_link(self, sites: Iterable[SiteId], data_class: DataClass) -> None:
        """Count a request that these sites would have served, but for a way there that is in clear."""
        for site in sites:
            key = (site, data_class.value)
            self.clear_links[key] = self.clear_links.get(key, 0) + 1

    def count_reject(self, status: int) -> None:
        """Count a request that HTTP itself forbids."""
        self.rejects[status] = self.rejects.get(status, 0) + 1

    def count_handshake(self, result: str) -> None:
        """Count a handshake of TLS: `ok`, `timeout` or `failed`."""
        self.handshakes[result] = self.handshakes.get(result, 0) + 1

    def count_peer_refusal(self, reason: str) -> None:
        """Count a pass that this site refused."""
        self.peer_refusals[reason] = self.peer_refusals.get(reason, 0) + 1

    def collect(self) -> Iterable[Metric]:
        """Return every family; called when somebody scrapes."""
        yield _counter(
            "requests",
            "Answers, by where they were served and with which status.",
            ["endpoint", "status", *_SERVICE_LABELS],
            (((key[0], str(key[1]), *key[2:]), count) for key, count in self.requests.items()),
        )
        yield from self._collect_services()
        yield _counter(
            "retries", "Attempts that failed before their first byte.", ["service", "reason"], self.retries.items()
        )
        text = "Attempts that were not made, since too many of late had failed."
        yield _counter("retries_refused", text, [], [((), self.retries_refused)])
        yield _counter(
            "sheds", "Requests refused for want of room.", ["service", "priority", "reason"], self.sheds.items()
        )
        yield _by_one("http_rejects", "Requests that HTTP itself forbids.", "status", self.rejects)
        yield _by_one("peer_refusals", "Passes of peers that were refused.", "reason", self.peer_refusals)
        yield _by_one("quota_refusals", "Requests that a budget or a limit forbade.", "reason", self.quota_refusals)
        text = "Requests refused since the way to a peer that could serve them is in clear."
        yield _counter("clear_link_refusals", text, ["site", "data_class"], self.clear_links.items())
        yield self._collect_links()
        text = "What class clinical was let to spend beyond budgets, settled here."
        yield _counter("overdraw_micro_won", text, [], [((), self.overdraw_micro_won)])
        reservations = self.read_open_reservations()
        yield _gauge("open_reservations", "Requests whose worst case is reserved from budgets.", reservations)
        connections = {"opened": self.upstream_opened, "reused": self.upstream_reused, "stale": self.upstream_stale}
        yield _by_one("upstream_connections", "Connections to engines and peers.", "kind", connections)
        yield _counter("access_records", "Access records written.", [], [((), self.access_written)])
        yield _counter("access_records_lost", "Access records that could not be kept.", [], [((), self.access_lost)])
        yield _counter(
            "clients_gone", "Clients that left before their answer was complete.", [], [((), self.clients_gone)]
        )
        yield HistogramMetricFamily(
            "madang_gateway_usage_commit_seconds",
            "From an event's end to its durability.",
            buckets=self.commit.buckets(),
            sum_value=self.commit.sum,
        )
        yield _gauge("in_flight_requests", "Requests that engines and peers work on.", self.in_flight)
        text = "Connections of clients that were refused: too many of all, or of one address."
        yield _by_one("connections_refused", text, "reason", self.connections_refused)
        yield _gauge("open_connections", "Connections of clients.", self.connections)
        yield _gauge("connections_max", "Connections of clients that are taken at most.", self.connections_max)
        yield _by_one("tls_handshakes", "Handshakes of TLS.", "result", self.handshakes)
        yield _gauge(
            "tls_certificate_not_after_seconds",
            "Unix time at which the certificate in use ends; 0 without TLS.",
            self.certificate_not_after_s,
        )
        yield _gauge("is_ready", "Whether requests are taken.", int(self.is_ready))

    def _collect_links(self) -> Metric:
        text = "1 where data of every class may go to a peer, 0 where the way there is in clear: open data alone."
        family = GaugeMetricFamily("madang_gateway_peer_link_private", text, labels=["site"])
        for site, data_class in self.read_links().items():
            family.add_metric([site], data_class is DataClass.CLASSIFIED)
        return family

    def _collect_services(self) -> Iterable[Metric]:
        tokens = CounterMetricFamily("madang_gateway_tokens", "Tokens by kind.", labels=[*_SERVICE_LABELS, "kind"])
        families = [
            HistogramMetricFamily(f"madang_gateway_{name}_seconds", text, labels=_SERVICE_LABELS)
            for name, text in _HISTOGRAMS
        ]
        for (service, chip, priority), meter in self.services.items():
            labels = [service, self._site, chip, priority]
            tokens.add_metric([*labels, "prompt"], meter.prompt_tokens)
            tokens.add_metric([*labels, "completion"], meter.completion_tokens)
            for (name, _), family in zip(_HISTOGRAMS, families, strict=True):
                histogram: Histogram = getattr(meter, name)
                family.add_metric(labels, histogram.buckets(), sum_value=histogram.sum)
        yield tokens
        yield from families

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


def _by_one(name: str, text: str, label: str, values: Mapping[str, int] | Mapping[int, int]) -> CounterMetricFamily:
    return _counter(name, text, [label], (((str(key),), value) for key, value in values.items()))


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"madang_gateway_{name}", text, value=value)
