"""The table, the goals and the page, made from single measures.

Owns every sum over measures: medians over the rounds, spread, ratios within a round. Refuses to measure.
"""

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from bench.gateway.measure import GATEWAY_GROUPS, Apart, Measured
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
OURS = "madang"
IDLE_LOAD_MAX = 0.5
"""Load average over which a machine of two cores is too busy to trust what is measured on it."""
NULL_METERING = f"{OURS}, metering off"
BEGIN, END = "<!-- bench-gateway: begin -->", "<!-- bench-gateway: end -->"
_PYTHON_WORDS = """
import platform, sys, sysconfig
is_stated = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
# Distributions build with PGO and LTO by rules of their own, which sysconfig does not show.
built = "with PGO" if is_stated else "the distribution's build" if sys.base_prefix == "/usr" else "built without PGO"
print(platform.python_version(), f"({built})")
"""


class Facts(msgspec.Struct):
    """Where, when and of what the run was."""

    commit: str
    machine: str
    kernel: str
    python: str
    python_of_load: str
    at: str
    peers: dict[str, str]
    load_before: float
    load_after: float = 0.0
    duration_s: float = 0.0
    apart: Apart | None = None


class Goal(msgspec.Struct, frozen=True):
    """A ratio or bound, and what came of it."""

    name: str
    value: float
    bound: float
    is_met: bool
    unit: str = "x"


Pick = Callable[[Measured], float]


def find_facts(python: str, peers: Mapping[str, str]) -> Facts:
    """Return what is known before the run."""
    return Facts(
        commit=_command("git", "rev-parse", "--short", "HEAD")
        + ("+" if _command("git", "status", "--porcelain") else ""),
        machine=_machine(),
        kernel=platform.release(),
        python=_command(python, "-c", _PYTHON_WORDS),
        python_of_load=_command(sys.executable, "-c", _PYTHON_WORDS),
        at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        peers=dict(peers),
        load_before=os.getloadavg()[0],
    )


def _command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def own_cpu_us(one: Measured) -> float:
    """Return the CPU that counts as the gateway's: of a peer all, of ours the worker's and the site process's."""
    return sum(us for name, us in one.cpu_us.items() if name in GATEWAY_GROUPS)


def of(found: Sequence[Measured], peer: str, load: str, pick: Pick) -> list[float]:
    """Return one figure of every round."""
    return [pick(one) for one in _some(found, peer, load)]


def _some(found: Sequence[Measured], peer: str, load: str) -> list[Measured]:
    """Return the measures of one load in which anything was answered."""
    return [one for one in found if one.peer == peer and one.load == load and one.units]


def added_us(found: Sequence[Measured], peer: str, load: str, which: int, *, is_rest: bool = False) -> list[float]:
    """Return a percentile of the time to the first byte (or on to the last) over that of `direct`, per round."""

    def pick(one: Measured) -> float:
        return one.rest_us[which] if is_rest else one.first_us[which]

    floor = {one.turn: pick(one) for one in _some(found, "direct", load)}
    return [pick(one) - floor[one.turn] for one in _some(found, peer, load) if one.turn in floor]


def ratio(found: Sequence[Measured], ours: str, other: str, load: str, pick: Pick) -> float | None:
    """Return the median over rounds of ours over the other's; None without both."""
    theirs = {one.turn: pick(one) for one in _some(found, other, load)}
    pairs = [(pick(one), theirs[one.turn]) for one in _some(found, ours, load) if one.turn in theirs]
    return statistics.median(mine / other_value for mine, other_value in pairs) if pairs else None


def judge(found: Sequence[Measured]) -> list[Goal]:
    """Return the goals that this run can judge."""
    goals: list[Goal] = []

    def below(name: str, value: float | None, bound: float, unit: str = "x") -> None:
        if value is not None:
            goals.append(Goal(name, value, bound, value <= bound, unit))

    def above(name: str, value: float | None, bound: float, unit: str = "x") -> None:
        if value is not None:
            goals.append(Goal(name, value, bound, value >= bound, unit))

    below("CPU/request, of vllm-router's", ratio(found, OURS, "vllm-router", "json", own_cpu_us), 0.7)
    below("CPU/request, of HAProxy's", ratio(found, OURS, "haproxy", "json", own_cpu_us), 3.5)
    below("CPU/chunk in bursts, of vllm-router's", ratio(found, OURS, "vllm-router", "burst", own_cpu_us), 0.6)
    below("CPU/chunk paced, of vllm-router's", ratio(found, OURS, "vllm-router", "paced", own_cpu_us), 0.9)
    above("LiteLLM's CPU/request, of ours", ratio(found, "litellm", OURS, "json", own_cpu_us), 250)
    theirs, mine = added_us(found, "vllm-router", "one", 1), added_us(found, OURS, "one", 1)
    if theirs and mine:
        below("added first byte p99, 1 connection, µs (bound: vllm-router's)", median(mine), median(theirs), "µs")
    rss = [rss_of(one) for one in found if one.peer == OURS and not one.load.startswith("tls_")]
    below("RSS of a worker", max(rss) if rss else None, 60, "MiB")
    rss = [rss_of(one) for one in found if one.peer == OURS]
    below("RSS of a worker, TLS and 256 streams over it included", max(rss) if rss else None, 60, "MiB")
    above("upstream connections reused", reused_percent(found, OURS), 99.9, "%")
    for load, clients in (("json", 64), ("wide", 256)):
        below(f"throughput lost to durable metering, {clients} clients", _metering_cost(found, load), 20, "%")
    return goals


def reused_percent(found: Sequence[Measured], peer: str) -> float | None:
    """Return the share of requests that found an upstream connection open, over all loads and rounds."""
    mine = [one for one in found if one.peer == peer]
    requests = sum(one.requests for one in mine)
    return (1 - sum(one.opened for one in mine) / requests) * 100 if requests else None


def _metering_cost(found: Sequence[Measured], load: str) -> float | None:
    kept = ratio(found, OURS, NULL_METERING, load, lambda one: one.rate)
    return None if kept is None else (1 - kept) * 100


def median(values: Sequence[float]) -> float:
    """Return the median, 0 of nothing."""
    return statistics.median(values) if values else 0.0


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the median with the smallest and the largest."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


HEADS = (
    "gateway",
    "CPU µs/request",
    "requests/s (core busy)",
    "CPU µs/chunk burst",
    "CPU µs/chunk paced",
    "added first byte µs p50/p99, 1 conn.",
    "64 conns.",
    "first to last byte, added, p50 µs",
    "RSS MiB",
    "reused %",
)


def rows(found: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Return the main table."""
    return [_row(found, peer) for peer in dict.fromkeys(one.peer for one in found)]


def _row(found: Sequence[Measured], peer: str) -> tuple[str, ...]:
    def pair(load: str) -> str:
        if peer == "direct":
            base = [(one.first_us[0], one.first_us[1]) for one in found if one.peer == peer and one.load == load]
            return f"[{median([b[0] for b in base]):.0f} / {median([b[1] for b in base]):.0f}]" if base else ""
        p50, p99 = added_us(found, peer, load, 0), added_us(found, peer, load, 1)
        return f"{median(p50):.0f} / {median(p99):.0f}" if p50 else ""

    rest = added_us(found, peer, "one", 0, is_rest=True)
    mine = [one for one in found if one.peer == peer]
    rss = max((rss_of(one) for one in mine if not one.load.startswith("tls_")), default=0.0)
    return (
        peer,
        spread(of(found, peer, "json", own_cpu_us)),
        _rate(found, peer),
        spread(of(found, peer, "burst", own_cpu_us), 2),
        spread(of(found, peer, "paced", own_cpu_us), 1),
        pair("one"),
        pair("many"),
        f"{median(rest):.0f}" if rest and peer != "direct" else "",
        f"{rss:.0f}",
        "" if peer in ("direct", "splice") else f"{reused_percent(found, peer):.2f}",
    )


def rss_of(one: Measured) -> float:
    """Return the memory of the processes that relay, in MiB: of ours the worker's."""
    return sum(mib for name, mib in one.rss_mib.items() if name in ("peer", "worker"))


def _rate(found: Sequence[Measured], peer: str) -> str:
    rates = of(found, peer, "json", lambda one: one.rate)
    busy = of(found, peer, "json", lambda one: one.busy)
    return f"{median(rates):.0f} ({median(busy):.0%})" if rates else ""


PART_HEADS = (
    "process",
    "on the gateway's core",
    "CPU µs/request",
    "CPU µs/chunk burst",
    "CPU µs/chunk paced",
    "RSS MiB",
)


def part_rows(found: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Return what each process of ours used."""
    mine = [one for one in found if one.peer == OURS]
    names = list(mine[0].cpu_us) if mine else []
    return [
        (
            name,
            "yes" if name in GATEWAY_GROUPS else "no, apart",
            spread(of(found, OURS, "json", lambda one, name=name: one.cpu_us[name])),
            spread(of(found, OURS, "burst", lambda one, name=name: one.cpu_us[name]), 2),
            spread(of(found, OURS, "paced", lambda one, name=name: one.cpu_us[name]), 2),
            f"{max(one.rss_mib[name] for one in mine):.0f}" if name in mine[0].rss_mib else "in site",
        )
        for name in sorted(names, key=lambda name: (name not in GATEWAY_GROUPS, name))
    ]


TLS_HEADS = (
    "gateway, TLS",
    "CPU µs/handshake",
    "CPU µs/request",
    "CPU µs/chunk burst",
    "CPU µs/chunk paced",
    "RSS MiB",
)


def tls_rows(found: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Return what TLS costs those gateways that offer it here."""
    peers = dict.fromkeys(one.peer for one in found if one.load.startswith("tls_"))
    return [
        (
            peer,
            spread(of(found, peer, "tls_shake", own_cpu_us), 0),
            spread(of(found, peer, "tls_json", own_cpu_us)),
            spread(of(found, peer, "tls_burst", own_cpu_us), 2),
            spread(of(found, peer, "tls_paced", own_cpu_us)),
            f"{max(rss_of(one) for one in found if one.peer == peer and one.load.startswith('tls_')):.0f}",
        )
        for peer in peers
    ]


def notes(facts: Facts, found: Sequence[Measured]) -> list[str]:
    """Return what a reader must know beside the tables."""
    lines = [
        f"Commit {facts.commit}, {facts.at}, {facts.duration_s / 60:.0f} min; {facts.machine}; Linux {facts.kernel};"
        f" load average {facts.load_before:.1f} before and {facts.load_after:.1f} after.",
        f"Our processes run on Python {facts.python}; clients and synthetic engine on {facts.python_of_load}.",
        "Engine and answers are synthetic. Medians over the rounds, smallest and largest in brackets.",
    ]
    lines += [f"{name}: {text}." for name, text in facts.peers.items()]
    if facts.apart is not None:
        lines.append(
            f"With the hub cut off and healed: importing takes the site process {facts.apart.import_us:.0f} µs an event"
            f" ({facts.apart.events} events), forwarding {facts.apart.forward_us:.0f} µs, and its NATS server"
            f" {facts.apart.nats_us:.0f} µs. The forwarder's share, measured so, is taken out of the site process's."
        )
    if facts.load_before > IDLE_LOAD_MAX:
        lines.append(
            "THE MACHINE WAS NOT IDLE: times and CPU are inflated, goals may be judged wrongly; run it again alone."
        )
    wrong = sorted({f"{one.peer} ({one.load})" for one in found if not one.is_whole})
    if wrong:
        lines.append("WRONG ANSWERS OR LOST CONNECTIONS: " + ", ".join(wrong))
    none = sorted({f"{one.peer} ({one.load})" for one in found if not one.units})
    if none:
        lines.append("Nothing was answered within a measure, which is left out: " + ", ".join(none))
    joined = sorted(
        {one.peer for one in found if one.load == "paced" and one.deliveries < 90 and one.peer != "litellm"}
    )
    if joined:
        lines.append("Joins paced chunks (fewer than 90 deliveries of 100): " + ", ".join(joined))
    return lines


def print_report(console: Console, facts: Facts, found: Sequence[Measured], goals: Sequence[Goal]) -> None:
    """Print everything on a terminal."""
    facts.load_after = os.getloadavg()[0]
    for heads, lines in ((HEADS, rows(found)), (PART_HEADS, part_rows(found)), (TLS_HEADS, tls_rows(found))):
        table = Table(*heads)
        for line in lines:
            table.add_row(*line)
        if lines:
            console.print(table)
    table = Table("goal", "found", "bound", "")
    for goal in goals:
        table.add_row(
            goal.name,
            f"{goal.value:.2f} {goal.unit}",
            f"{goal.bound:g} {goal.unit}",
            "met" if goal.is_met else "MISSED",
        )
    console.print(table)
    for line in notes(facts, found):
        console.print(line, highlight=False)


def write_json(path: Path, facts: Facts, found: Sequence[Measured], goals: Sequence[Goal]) -> None:
    """Write every measure."""
    value = {"facts": facts, "goals": goals, "measures": found}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(text + ["| " + " | ".join(line) + " |" for line in lines])


def write_page(path: Path, facts: Facts, found: Sequence[Measured], goals: Sequence[Goal]) -> None:
    """Replace the part of the page that is ours, or begin the page."""
    goal_lines = [
        (g.name, f"{g.value:.2f} {g.unit}", f"{g.bound:g} {g.unit}", "met" if g.is_met else "**missed**") for g in goals
    ]
    part = "\n\n".join(
        [
            BEGIN,
            "\n".join(f"- {line}" for line in notes(facts, found)),
            _markdown(HEADS, rows(found)),
            "Our gateway by process:",
            _markdown(PART_HEADS, part_rows(found)),
            "Over TLS 1.3, a full handshake each with one ECDSA P-256 certificate:",
            _markdown(TLS_HEADS, tls_rows(found)),
            "Goals, as ratios within the run:",
            _markdown(("goal", "found", "bound", ""), goal_lines),
            END,
        ]
    )
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    path.write_text(before + part + rest.partition(END)[2], encoding="utf-8")
