"""Settings of a node. Refuses secrets: only the files that hold them are named."""

from pathlib import Path
from typing import Annotated

import msgspec

from madang.engine.settings import EngineRuntime, ExternalEndpoint


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server.

    Attributes:
        name, site: who it is.
        state_dir: accepted plan, engine records and engine logs.
        listen_host, port: admin API for the site process.
        token_file: bearer token that the site must present.
        cache_dir: content-addressed artifacts, shared by all nodes on a machine.
        artifact_stores: base URLs asked first, in order (the federation's store, peer sites).
        artifact_dirs: local folders or mounted sticks searched next.
        site_store: base URL of the site's artifact port, asked before artifact_stores, with this node's token; empty:
            none.
        artifact_keys: Ed25519 public keys, in hex, whose manifests are believed: the hub's, and publishers'. With none,
            files are fetched whole, from one end to the other.
        artifact_ca_file: PEM; whose certificates are believed of site_store and artifact_stores, for files that come in
            chunks; none: the system's roots.
        artifact_sources_at_once: sources of one file that are asked at the same time.
        artifact_line_bytes_s_max, artifact_source_bytes_s_max: of all sources together, and of each; 0: no limit.
        cache_bytes_max: what the cache may hold; the least recently used leaves, never what runs or is wanted. 0: as
            much as the disk has, less a margin.
        chips: chip drivers to load; a driver whose cards are absent costs next to nothing. `NAME@FOLDER` reads a
            twin's folder in the place of this machine, for tests and rehearsals.
        chip_read_period_s: between readings of chips; rules that count readings count these. Vendors' tools take 10 to
            50 ms of CPU each time.
        chip_hurry_period_s: the same while an ended engine's chip waits for the reading that gives it on.
        engine_probe_s: between questions to a ready engine how it is; three bad answers in a row and it is replaced.
        drain_settle_s: how long an engine that leaves must be idle before it is stopped. It is to be longer than the
            news takes to the slowest gateway that may still choose it.
        engine_threads: CPU threads with which one engine generates; 0 means all that its chips grant. Where
            several engines share few cores, 1 serves all of them better than threads that wait for each other.
        engine_prefill_threads: CPU threads with which one engine reads prompts; 0 means all.
        engine_memory_bytes_max: cap of an engine's private memory.
        engine_twins: engines that are played by their twins on this node, for tests and rehearsals; what they
            answer is marked as simulated.
        engine_runtimes: by engine, where a vendor's programs are: a virtual environment of its own, or a container.
        external_endpoints: by artifact, endpoints that somebody else runs at this site.
    """

    name: str
    site: str
    state_dir: Path
    listen_host: str = "127.0.0.1"
    port: int = 7712
    token_file: Path
    cache_dir: Path
    artifact_stores: tuple[str, ...] = ()
    artifact_dirs: tuple[Path, ...] = ()
    site_store: str = ""
    artifact_keys: tuple[str, ...] = ()
    artifact_ca_file: Path | None = None
    artifact_sources_at_once: int = 1
    artifact_line_bytes_s_max: int = 0
    artifact_source_bytes_s_max: int = 0
    cache_bytes_max: int = 0
    chips: tuple[str, ...] = ("cpu",)
    chip_read_period_s: Annotated[float, msgspec.Meta(ge=0.05, le=60.0)] = 5.0
    chip_hurry_period_s: Annotated[float, msgspec.Meta(ge=0.05, le=60.0)] = 1.0
    engine_probe_s: Annotated[float, msgspec.Meta(ge=0.05, le=60.0)] = 1.0
    drain_settle_s: Annotated[float, msgspec.Meta(ge=0.0, le=600.0)] = 1.5
    engine_threads: int = 0
    engine_prefill_threads: int = 0
    engine_memory_bytes_max: int = 8 * 1024**3
    engine_twins: tuple[str, ...] = ()
    engine_runtimes: dict[str, EngineRuntime] = {}
    external_endpoints: dict[str, ExternalEndpoint] = {}
