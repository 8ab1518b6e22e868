"""The metrics of artifacts: what came from whom, what was served, what the cache holds.

Owns names and labels, once for every program that fetches or serves; `prefix` says which (`madang_site`). Refuses to
keep numbers: they are read from the parts at each scrape. Called by the collectors of hub, site and node.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from madang.model import TransferState
from madang.runtime.artifacts.book import SourceCounts, TransferBook
from madang.runtime.artifacts.room import ArtifactRoom
from madang.runtime.artifacts.serving import ServedCounts

_BY_SOURCE: tuple[tuple[str, str, Callable[[SourceCounts], int]], ...] = (
    ("artifact_fetched_bytes_total", "Verified bytes that came, by source.", lambda one: one.fetched_bytes),
    ("artifact_chunks_total", "Chunks that came and had the right hash, by source.", lambda one: one.right_chunks),
    (
        "artifact_chunks_refused_total",
        "Chunks with another hash than the manifest's, by source; `disk` lost them after they were right.",
        lambda one: one.wrong_chunks,
    ),
    ("artifact_source_breaks_total", "Times a source broke off or refused.", lambda one: one.breaks),
)


def collect_transfers(prefix: str, book: TransferBook) -> Iterator[Metric]:
    """Yield what was fetched and is being fetched."""
    counts, rows = book.counts(), book.rows()
    for name, text, read in _BY_SOURCE:
        yield _labelled(prefix, name, text, "source", {label: read(one) for label, one in counts.sources.items()})
    yield _labelled(prefix, "artifact_transfers_ended_total", "Transfers of files, by result.", "result", counts.ended)
    for name, text, value in (
        ("artifact_transfers_resumed_total", "Transfers that found finished bytes of an earlier try.", counts.resumed),
        ("artifact_resumed_bytes_total", "Bytes that were not fetched again.", counts.resumed_bytes),
        ("artifact_transfer_seconds_total", "Time that transfers took, together.", counts.seconds),
    ):
        yield CounterMetricFamily(f"{prefix}_{name}", text, value=float(value))
    states = GaugeMetricFamily(f"{prefix}_artifact_transfers", "Files that are wanted and not here.", labels=["state"])
    for state in TransferState:
        states.add_metric([state.value], sum(row.state is state for row in rows))
    yield states
    yield GaugeMetricFamily(
        f"{prefix}_artifact_fetch_bytes_per_second",
        "What comes now, over the last seconds.",
        value=sum(row.rate_bytes_s for row in rows),
    )


def collect_room(prefix: str, room: ArtifactRoom) -> Iterator[Metric]:
    """Yield what the cache holds, and what left it."""
    counts, use = room.counts, room.use
    for name, text, value in (
        ("artifact_evicted_files_total", "Files that left the cache for others.", counts.evicted_files),
        ("artifact_evicted_bytes_total", "Their size on the disk.", counts.evicted_bytes),
        ("artifact_no_room_total", "Fetches that found no room.", counts.refusals),
    ):
        yield CounterMetricFamily(f"{prefix}_{name}", text, value=float(value))
    if use is None:
        return
    held = GaugeMetricFamily(f"{prefix}_artifact_cache_bytes", "What the cache holds on the disk.", labels=["need"])
    held.add_metric(["pinned"], use.pinned_bytes)
    held.add_metric(["loose"], use.loose_bytes)
    yield held
    for name, text, value in (
        ("artifact_cache_files", "Files in the cache, whole or not.", use.files),
        ("artifact_cache_quota_bytes", "What it may hold; 0 for as much as the disk has.", use.quota_bytes),
        ("artifact_cache_free_bytes", "What its disk has free.", use.free_bytes),
    ):
        yield GaugeMetricFamily(f"{prefix}_{name}", text, value=float(value))


def collect_served(prefix: str, counts: ServedCounts) -> Iterator[Metric]:
    """Yield what was served, by whom it was asked for."""
    requests, sizes = counts.read()
    family = CounterMetricFamily(
        f"{prefix}_artifact_requests_total", "Requests for artifacts, by asker and answer.", labels=["asker", "answer"]
    )
    for (asker, answer), count in requests.items():
        family.add_metric([asker, answer], count)
    yield family
    yield _labelled(prefix, "artifact_served_bytes_total", "Bytes of artifacts that were sent.", "asker", sizes)


def _labelled(prefix: str, name: str, text: str, label: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"{prefix}_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
