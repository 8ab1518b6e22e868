"""One measure: a load on a gateway, with what its processes used meanwhile.

Owns how CPU is counted. CPU of a gateway is that of its processes while it was measured, over the answers or chunks
that the clients got meanwhile. Our site process works behind the answers, so its share is counted from before the load
until it has caught up, over every request of the load.
"""

import asyncio
import http.client
import statistics
from collections.abc import Sequence

import msgspec
from bench.gateway.loads import Load, Seen, run_load
from bench.gateway.peers import Running, request_bytes
from bench.gateway.process import usage_of
from bench.gateway.site import Site
from bench.gateway.upstream import CHUNKS, Counts

LOADS = {
    "json": Load(name="json", mode="json", connections=64, is_stream=False, warm_s=1.0, measure_s=3.0),
    "burst": Load(name="burst", mode="burst", connections=64, is_stream=True, warm_s=1.0, measure_s=3.0),
    "paced": Load(
        name="paced", mode="paced", connections=256, is_stream=True, warm_s=0.5, measure_s=4.0, stagger_s=2.0
    ),
    "one": Load(name="one", mode="short", connections=1, is_stream=True, warm_s=0.3, measure_s=2.5, think_s=0.002),
    "many": Load(name="many", mode="short", connections=64, is_stream=True, warm_s=0.5, measure_s=2.5, think_s=0.025),
}
_CAUGHT_UP_S = 60.0
_LOOK_S = 0.4


class Measured(msgspec.Struct, kw_only=True):
    """What one measure gave.

    Attributes:
        cpu_us: by group of processes, microseconds a request, or a chunk in the loads `burst` and `paced`.
        rate: requests or chunks a second.
        first_us, rest_us: p50 and p99 of the time to the first byte of content, and from it to the last byte.
        rss_mib: by group, at the end.
        reused: share of requests that went over an upstream connection that was there already.
        deliveries: reads of the client per answer; far fewer than chunks means a gateway that buffers.
        is_whole: whether every answer was 200 and complete.
        caught_up_s: how long our site process needed after the load.
    """

    peer: str
    load: str
    turn: int
    cpu_us: dict[str, float]
    rate: float
    first_us: tuple[float, float]
    rest_us: tuple[float, float]
    rss_mib: dict[str, float]
    reused: float
    deliveries: float
    is_whole: bool
    caught_up_s: float = 0.0


class Upstream:
    """The bench's line to the synthetic engine."""

    def __init__(self, port: int) -> None:
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def ask(self, mode: str = "counts") -> Counts:
        """Set the mode, or keep it for `counts`, and return what was counted."""
        self._line.request("GET", f"/bench/{mode}")
        return msgspec.json.decode(self._line.getresponse().read(), type=Counts)


class _Watch:
    """What was used and counted at the beginning and the end."""

    def __init__(self, running: Running, upstream: Upstream) -> None:
        self._pids, self._upstream = dict(running.groups()), upstream
        self.marks: list[tuple[dict[str, float], Counts]] = []

    def mark(self) -> None:
        used = {name: usage_of(pids).cpu_s for name, pids in self._pids.items()}
        self.marks.append((used, self._upstream.ask()))

    def rss(self) -> dict[str, float]:
        return {name: usage_of(pids).rss_mib for name, pids in self._pids.items()}


async def measure(peer: str, running: Running, load: Load, upstream: Upstream, turn: int) -> Measured:
    """Put a load on a gateway once."""
    upstream.ask(load.mode)
    watch = _Watch(running, upstream)
    request = request_bytes(running, is_stream=load.is_stream)
    watch.mark()
    rss: dict[str, float] = {}

    def end() -> None:
        watch.mark()
        rss.update(watch.rss())

    seen = await run_load(load, running.port, request, watch.mark, end)
    caught_up_s = await _catch_up(running)
    watch.mark()
    trouble = running.find_trouble()
    if trouble:
        raise RuntimeError(f"{peer} did not survive {load.name}: {trouble}")
    return _sum_up(peer, load, turn, seen, watch.marks, rss, caught_up_s)


async def _catch_up(running: Running) -> float:
    """Wait until our site process has handed on all usage; return the seconds, 0 for other gateways."""
    if not isinstance(running, Site):
        return 0.0
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    quiet = 0
    while quiet < 2:
        await asyncio.sleep(_LOOK_S)
        quiet = quiet + 1 if running.read_backlog() == 0 else 0
        if loop.time() > begun_s + _CAUGHT_UP_S:
            break
    return max(0.0, loop.time() - begun_s - 2 * _LOOK_S)


def _sum_up(
    peer: str,
    load: Load,
    turn: int,
    seen: Seen,
    marks: Sequence[tuple[dict[str, float], Counts]],
    rss: dict[str, float],
    caught_up_s: float,
) -> Measured:
    start, begin, end, last = marks
    is_chunks = load.name in ("burst", "paced")
    requests = end[1].requests - begin[1].requests
    units = float(seen.done * CHUNKS if load.name == "burst" else seen.done)
    if load.name == "paced":
        units = float(end[1].writes - begin[1].writes)
    cpu_us = {name: (end[0][name] - begin[0][name]) / max(units, 1) * 1e6 for name in end[0]}
    for name in cpu_us.keys() - {"peer", "worker"}:
        whole = (last[1].writes - start[1].writes) if is_chunks else (last[1].requests - start[1].requests)
        cpu_us[name] = (last[0][name] - start[0][name]) / max(whole, 1) * 1e6
    opened = end[1].connections - begin[1].connections
    return Measured(
        peer=peer,
        load=load.name,
        turn=turn,
        cpu_us=cpu_us,
        rate=units / max(seen.duration_s, 1e-9),
        first_us=percentiles_us(seen.first_s),
        rest_us=percentiles_us(seen.rest_s),
        rss_mib=rss,
        reused=1.0 - opened / max(requests, 1),
        deliveries=seen.deliveries / max(seen.done, 1),
        is_whole=seen.bad == 0 and seen.done > 0,
        caught_up_s=caught_up_s,
    )


def percentiles_us(values_s: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 in microseconds; zeros without values."""
    ordered = sorted(values_s)
    if not ordered:
        return (0.0, 0.0)
    return statistics.median(ordered) * 1e6, ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e6
