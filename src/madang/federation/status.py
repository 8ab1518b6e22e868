"""What runs, how it fares and what it costs in memory, gathered from outside.

Owns the gathering. Refuses to judge and to change anything. Called by `madang status`.
"""

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from madang.core import MadangError
from madang.federation.layout import Layout, SiteLayout, node_settings
from madang.federation.relay import send_command
from madang.federation.relay_settings import LinkMode, WanCommand
from madang.federation.running import marker
from madang.federation.state import Credentials
from madang.node.bootstrap import list_engines
from madang.runtime.admin_client import AdminClient
from madang.runtime.leftovers import find_marked, read_record
from madang.runtime.process import ProcessRef, is_alive


class ProcessView(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the federation.

    Attributes:
        state: `running` or `down`.
        pss_bytes: proportional set size: shared pages are counted once over all who share them.
    """

    name: str
    state: str
    pid: int = 0
    since_s: float = 0.0
    restarts: int = 0
    last_exit: str = ""
    note: str = ""
    pss_bytes: int | None = None


class FederationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `madang status` shows; `sites` and `ledger` are the hub's words.

    Attributes:
        is_running: the supervisor lives.
        hub_error: why the hub did not say anything; empty when it did.
        local: each site's own view of itself, by name, None where it does not answer.
        wan: the relay's modes by site, empty when it does not answer.
        facility: power and cooling by site, in the words of its admin API; None where it has none or does not answer.
    """

    state_dir: str
    is_running: bool
    hub_error: str
    sites: list[dict[str, Any]]
    ledger: dict[str, Any]
    local: dict[str, dict[str, Any] | None]
    wan: dict[str, LinkMode]
    processes: tuple[ProcessView, ...]
    pss_bytes: int
    facility: dict[str, dict[str, Any] | None] = {}


def gather_status(layout: Layout, credentials: Credentials) -> FederationStatus:
    """Return the status of the federation; what does not answer is left empty, not an error."""
    record = read_record(layout.record_path)
    is_running = record is not None and is_alive(record.supervisor)
    hub_error, hub = _ask(layout.hub_url, credentials.admin_token, "the hub") if is_running else ("is down", None)
    processes = _view_processes(layout)
    wan: dict[str, LinkMode] = {}
    if is_running:
        with contextlib.suppress(MadangError):
            wan = send_command(layout.run_dir, WanCommand(verb="status")).modes
    local: dict[str, dict[str, Any] | None] = {}
    if is_running:
        local = {site.name: _ask_site(site, credentials) for site in layout.sites}
    return FederationStatus(
        state_dir=str(layout.state_dir),
        is_running=is_running,
        hub_error=hub_error,
        sites=hub["sites"] if hub else _sites_without_hub(layout, local),
        ledger=hub.get("ledger", {}) if hub else {},
        local=local,
        wan=wan,
        processes=processes,
        pss_bytes=sum(process.pss_bytes or 0 for process in processes),
        facility=gather_facility(layout, credentials) if is_running else {},
    )


def gather_facility(layout: Layout, credentials: Credentials) -> dict[str, dict[str, Any] | None]:
    """Return power and cooling of each site with chips; None for one that has none or does not answer."""
    found: dict[str, dict[str, Any] | None] = {}
    for site in layout.sites:
        if site.is_entry_only:
            continue
        found[site.name] = None
        with (
            contextlib.suppress(MadangError),
            AdminClient(site.admin_url, credentials.token_of(site.name), name=f"site {site.name}") as api,
        ):
            found[site.name] = api.get("/api/v1/facility")
    return found


def _ask(url: str, token: str, name: str) -> tuple[str, Any]:
    try:
        with AdminClient(url, token, name=name) as api:
            return "", api.get("/api/v1/status")
    except MadangError as error:
        return error.message, None


def _ask_site(site: SiteLayout, credentials: Credentials) -> dict[str, Any] | None:
    found: dict[str, Any] | None = _ask(site.admin_url, credentials.token_of(site.name), f"site {site.name}")[1]
    return found


def _sites_without_hub(layout: Layout, local: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return what the sites say of themselves, in the hub's columns as far as they go."""
    rows: list[dict[str, Any]] = []
    for site in layout.sites:
        own = local.get(site.name)
        rows.append(
            {
                "name": site.name,
                "region": site.region,
                "is_entry_only": site.is_entry_only,
                "state": "unknown" if own else "down",
                "applied_generation": own and own.get("applied_generation"),
                "outbox_depth": own and own.get("outbox_depth"),
                "oldest_unsent_age_s": own and own.get("oldest_unsent_age_s"),
                "tenant_url": site.tenant_url,
            }
        )
    return rows


def _view_processes(layout: Layout) -> tuple[ProcessView, ...]:
    record = read_record(layout.record_path)
    views: list[ProcessView] = []
    known: set[int] = set()
    if record is not None:
        known.add(record.supervisor.pid)
        views.append(_view("supervisor", record.supervisor))
        for process in record.processes:
            view = _view(process.name, process.ref)
            known.add(view.pid)
            views.append(
                msgspec.structs.replace(
                    view,
                    since_s=process.since_s,
                    restarts=process.restarts,
                    last_exit=process.last_exit,
                    note=process.note,
                )
            )
    # Engines and their shims are not supervised: nodes adopt them. Their records name them, and the marker
    # finds what no record names.
    for site in layout.sites:
        for name, ref in _engines_of(layout, site):
            known.add(ref.pid)
            views.append(_view(name, ref))
    others = [ref for ref in find_marked(marker(layout)) if ref.pid not in known]
    views += [_view(_name_of(ref), ref) for ref in others]
    return tuple(views)


def _engines_of(layout: Layout, site: SiteLayout) -> list[tuple[str, ProcessRef]]:
    if site.is_entry_only:
        return []
    found: list[tuple[str, ProcessRef]] = []
    for engine in list_engines(node_settings(layout, site)):
        name = f"{site.name}-{engine.replica_id}"
        found += [(name, engine.engine), (f"{name} (shim)", engine.shim)]
    return found


def _view(name: str, ref: ProcessRef | None) -> ProcessView:
    if ref is None or not is_alive(ref):
        return ProcessView(name=name, state="down")
    return ProcessView(name=name, state="running", pid=ref.pid, pss_bytes=read_pss_bytes(ref.pid))


def _name_of(ref: ProcessRef) -> str:
    """Return the beginning of the command line of a process that no record names."""
    try:
        words = Path(f"/proc/{ref.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = ["?"]
    return " ".join(words).strip()[:60]


def read_pss_bytes(pid: int) -> int | None:
    """Return the proportional set size of a process, or None when it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None
