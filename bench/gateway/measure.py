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
from bench.gateway.tls import client_context, run_handshakes
from bench.gateway.upstream import CHUNKS, Counts

LOADS = {
    "json": Load(name="json", mode="json", connections=64, is_stream=False, warm_s=1.0, measure_s=3.0),
    "wide": Load(name="wide", mode="json", connections=256, is_stream=False, warm_s=1.0, measure_s=2.5),
    "burst": Load(name="burst", mode="burst", connections=64, is_stream=True, warm_s=1.0, measure_s=3.0),
    "paced": Load(
        name="paced", mode="paced", connections=256, is_stream=True, warm_s=0.3, measure_s=3.0, stagger_s=2.0
    ),
    "one": Load(name="one", mode="short", connections=1, is_stream=True, warm_s=0.3, measure_s=2.5, think_s=0.002),
    "many": Load(name="many", mode="short", connections=64, is_stream=True, warm_s=0.5, measure_s=2.5, think_s=0.025),
}
GATEWAY_GROUPS = ("peer", "worker", "site")
"""Whose CPU counts as the gateway's: all of a peer; of ours the worker and the site process together."""
LOADS |= {
    f"tls_{name}": msgspec.structs.replace(LOADS[name], name=f"tls_{name}", is_tls=True, measure_s=2.0)
    for name in ("json", "burst", "paced")
}
LOADS["tls_shake"] = Load(
    name="tls_shake", mode="json", connections=16, is_stream=False, warm_s=0.5, measure_s=2.5, is_tls=True
)
_CAUGHT_UP_S = 60.0
_LOOK_S = 0.4
_SETTLE_S = 1.0
_CALM_S = 15.0


class Measured(msgspec.Struct, kw_only=True):
    """What one measure gave.

    Attributes:
        cpu_us: by group of processes, microseconds a request, or a chunk in the loads `burst` and `paced`.
        units: requests or chunks that were counted; with none the figures mean nothing.
        rate: of them a second.
        first_us, rest_us: p50 and p99 of the time to the first byte of content, and from it to the last byte.
        rss_mib: by group, at the end.
        requests, opened: that came to the engine, and connections that were opened for them, while it was measured.
        deliveries: reads of the client per answer; far fewer than chunks means a gateway that buffers.
        is_whole: whether no answer was other than 200 and no connection was lost.
        caught_up_s: how long our site process needed after the load.
        busy: share of the core that the gateway took; well under 1, somebody else held it up.
    """

    peer: str
    load: str
    turn: int
    cpu_us: dict[str, float]
    units: float
    rate: float
    first_us: tuple[float, float]
    rest_us: tuple[float, float]
    rss_mib: dict[str, float]
    requests: int
    opened: int
    deliveries: float
    is_whole: bool
    busy: float = 0.0
    caught_up_s: float = 0.0


class Apart(msgspec.Struct, frozen=True):
    """What one usage event costs the site process: importing, forwarding; and what forwarding costs NATS, in us."""

    import_us: float
    forward_us: float
    nats_us: float
    events: int
    forwarded: int


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
    watch.mark()
    rss: dict[str, float] = {}

    def end() -> None:
        watch.mark()
        rss.update(watch.rss())

    if load.name == "tls_shake":
        seen = await run_handshakes(load, running.tls_port, watch.mark, end)
    else:
        request = request_bytes(running, is_stream=load.is_stream)
        port, tls = (running.tls_port, client_context()) if load.is_tls else (running.port, None)
        seen = await run_load(load, port, request, watch.mark, end, tls)
    caught_up_s = await _catch_up(running) if isinstance(running, Site) else await _calm_down(running)
    watch.mark()
    trouble = running.find_trouble()
    if trouble:
        raise RuntimeError(f"{peer} did not survive {load.name}: {trouble}")
    return _sum_up(peer, load, turn, seen, watch.marks, rss, caught_up_s)


async def measure_apart(site: Site, load: Load, upstream: Upstream) -> Apart:
    """Return what importing and what forwarding costs, by letting one follow the other.

    The hub's NATS server is ended before the load: usage is imported and stays. Then it runs again, and the outbox is
    forwarded while nobody asks for anything.
    """
    upstream.ask(load.mode)
    await asyncio.to_thread(site.cut_hub)
    await asyncio.sleep(_SETTLE_S)
    watch = _Watch(site, upstream)
    watch.mark()
    request = request_bytes(site, is_stream=load.is_stream)
    await run_load(load, site.port, request, lambda: None, lambda: None)
    waiting = -1
    while waiting != (waiting := site.read_backlog()):
        await asyncio.sleep(2 * _LOOK_S)
    watch.mark()
    await asyncio.to_thread(site.heal_hub)
    site_pids, nats_pids = (site.groups()[name] for name in ("site", "nats"))
    before = usage_of(site_pids).cpu_s, usage_of(nats_pids).cpu_s
    await _catch_up(site)
    after = usage_of(site_pids).cpu_s, usage_of(nats_pids).cpu_s
    (begin, counts), (end, counts_end) = watch.marks
    events = max(1, counts_end.requests - counts.requests)
    return Apart(
        import_us=(end["site"] - begin["site"]) / events * 1e6,
        forward_us=(after[0] - before[0]) / max(1, waiting) * 1e6,
        nats_us=(after[1] - before[1]) / max(1, waiting) * 1e6,
        events=events,
        forwarded=waiting - site.read_backlog(),
    )


def split_forwarder(one: Measured, apart: Apart) -> None:
    """Take the forwarder out of the site process, whose part it is, and count it as a group of its own."""
    if one.load == "tls_shake":
        return
    per_unit = apart.forward_us / (CHUNKS if LOADS[one.load].mode in ("burst", "paced") else 1)
    one.cpu_us["forwarder"] = forwarder = min(per_unit, one.cpu_us["site"])
    one.cpu_us["site"] -= forwarder


async def _calm_down(running: Running) -> float:
    """Wait until a gateway does next to nothing any more; return the seconds."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    pids = [pid for group in running.groups().values() for pid in group]
    used_s, before_s = usage_of(pids).cpu_s, -1.0
    while used_s - before_s > 0.1 * _LOOK_S and loop.time() < begun_s + _CALM_S:
        await asyncio.sleep(_LOOK_S)
        before_s, used_s = used_s, usage_of(pids).cpu_s
    return loop.time() - begun_s


async def _catch_up(running: Site) -> float:
    """Wait until our site process has handed on all usage; return the seconds."""
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
    is_chunks = load.mode in ("burst", "paced")
    units = float(seen.done * CHUNKS if load.mode == "burst" else seen.done)
    if load.mode == "paced":
        units = float(end[1].writes - begin[1].writes)
    cpu_us = {name: (end[0][name] - begin[0][name]) / max(units, 1) * 1e6 for name in end[0]}
    for name in cpu_us.keys() - {"peer", "worker"}:
        whole = (last[1].writes - start[1].writes) if is_chunks else (last[1].requests - start[1].requests)
        if load.name == "tls_shake":
            whole = seen.done
        cpu_us[name] = (last[0][name] - start[0][name]) / max(whole, 1) * 1e6
    busy_s = sum(end[0][name] - begin[0][name] for name in end[0] if name in GATEWAY_GROUPS)
    return Measured(
        peer=peer,
        load=load.name,
        turn=turn,
        cpu_us=cpu_us,
        units=units,
        rate=units / max(seen.duration_s, 1e-9),
        first_us=percentiles_us(seen.first_s),
        rest_us=percentiles_us(seen.rest_s),
        rss_mib=rss,
        requests=end[1].requests - begin[1].requests,
        opened=end[1].connections - begin[1].connections,
        deliveries=seen.deliveries / max(seen.done, 1),
        is_whole=seen.bad == 0,
        busy=busy_s / max(seen.duration_s, 1e-9),
        caught_up_s=caught_up_s,
    )


def percentiles_us(values_s: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 in microseconds; zeros without values."""
    ordered = sorted(values_s)
    if not ordered:
        return (0.0, 0.0)
    return statistics.median(ordered) * 1e6, ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e6
