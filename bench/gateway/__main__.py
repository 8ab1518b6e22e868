"""Runs the bench; `python -m bench.gateway --help`."""

import argparse
import asyncio
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from bench.gateway.loads import until_answered
from bench.gateway.measure import LOADS, Apart, Measured, Upstream, measure, measure_apart, split_forwarder
from bench.gateway.peers import START_S, Direct, HaProxy, LiteLlm, Peer, Splice, VllmRouter, request_bytes
from bench.gateway.process import LOAD_CORE, Program
from bench.gateway.report import NULL_METERING, OURS, Facts, find_facts, judge, print_report, write_json, write_page
from bench.gateway.site import ROOT, Ours, Site
from rich.console import Console

from madang.testing.ports import free_port

TURNS = 3
VENVS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "madang" / "bench"
STREAMED_ENGINE = f"{OURS}, streamed engine"
SOME_LOADS = {NULL_METERING: ("json", "wide"), STREAMED_ENGINE: ("json",)}
"""Variants of ours that answer one question each, and the loads that ask it."""


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description="What the gateway costs.")
    parser.add_argument("--python", default=sys.executable, help="interpreter of our site process and gateway worker")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"rounds over all gateways, default {TURNS}")
    parser.add_argument("--seconds", type=float, default=1.0, help="factor on every duration, for a quick look")
    parser.add_argument("--only", action="append", default=[], help="a gateway to run, repeatable; default all")
    parser.add_argument("--load", action="append", default=[], choices=[*LOADS], help="a load to run; default all")
    parser.add_argument("--json", type=Path, help="write every single measure there")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--venvs", type=Path, default=VENVS, help="where scripts/make-bench-peers installed")
    return parser.parse_args()


def list_peers(options: argparse.Namespace, upstream: Program) -> list[Peer]:
    """Return the gateways that shall run; says on standard error which are missing."""
    every: list[Peer] = [
        Direct(upstream),
        Splice(),
        HaProxy(),
        VllmRouter(options.venvs),
        Ours(options.python),
        Ours(
            options.python,
            name=NULL_METERING,
            gateway_module="bench.gateway.null_metering",
            note="events are made and dropped (null_metering.py)",
        ),
        Ours(
            options.python,
            name=STREAMED_ENGINE,
            streamed_only=True,
            note="an engine that must be asked for a stream: answers are assembled",
        ),
        LiteLlm(options.venvs),
    ]
    wanted = [peer for peer in every if not options.only or peer.name in options.only]
    for peer in wanted:
        if missing := peer.find_missing():
            sys.stderr.write(f"left out: {missing}\n")
    return [peer for peer in wanted if not peer.find_missing()]


async def run_peer(
    peer: Peer, line: Upstream, port: int, folder: Path, turn: int, options: argparse.Namespace
) -> tuple[list[Measured], Apart | None]:
    """Start a gateway, put every load on it, and end it."""
    line.ask("json")
    running = await asyncio.to_thread(peer.start, port, folder)
    found: list[Measured] = []
    apart: Apart | None = None
    try:
        await until_answered(running.port, request_bytes(running, is_stream=False), START_S, running.find_trouble)
        for name in options.load or LOADS:
            if name not in SOME_LOADS.get(peer.name, LOADS) or (name == "wide" and not isinstance(running, Site)):
                continue
            load = peer.adapt(LOADS[name].scaled(options.seconds))
            if load is None or (load.is_tls and not running.tls_port):
                continue
            found.append(await measure(peer.name, running, load, line, turn))
        if isinstance(running, Site) and peer.name == OURS and turn == options.turns - 1:
            apart = await measure_apart(running, LOADS["json"].scaled(options.seconds), line)
    finally:
        await asyncio.to_thread(running.stop)
    return found, apart


async def run(options: argparse.Namespace, console: Console) -> tuple[Facts, list[Measured]]:
    """Run every round and return what was found."""
    os.sched_setaffinity(0, {LOAD_CORE})
    folder = Path(tempfile.mkdtemp(prefix="madang-bench-"))
    port = free_port()
    argv = [sys.executable, "-m", "bench.gateway.upstream", str(port)]
    upstream = Program(argv, core=LOAD_CORE, log=folder / "upstream.log", cwd=ROOT)
    found: list[Measured] = []
    try:
        await until_open(port)
        line = Upstream(port)
        peers = list_peers(options, upstream)
        facts = find_facts(options.python, {peer.name: peer.describe() for peer in peers})
        begun_s = time.monotonic()
        for turn in range(options.turns):
            for peer in peers:
                with console.status(f"round {turn + 1} of {options.turns}: {peer.name}"):
                    measured, apart = await run_peer(peer, line, port, folder, turn, options)
                found += measured
                facts.apart = apart or facts.apart
                gc.collect()
        for one in found:
            if facts.apart is not None and "site" in one.cpu_us and one.peer != NULL_METERING:
                split_forwarder(one, facts.apart)
        facts.duration_s = time.monotonic() - begun_s
        return facts, found
    finally:
        upstream.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def until_open(port: int) -> None:
    """Wait until somebody accepts on the port, at most 10 s."""
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError(f"nothing listens on {port}")


def main() -> int:
    """Run, print, and return 1 when an answer was wrong; a goal missed is no failure of the bench."""
    options = parse()
    console = Console(width=max(160, Console().width))
    gc.freeze()
    facts, found = uvloop.run(run(options, console))
    goals = judge(found)
    print_report(console, facts, found, goals)
    if options.json:
        write_json(options.json, facts, found, goals)
    if options.write:
        write_page(ROOT / "docs" / "performance.md", facts, found, goals)
    return 0 if all(one.is_whole for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
