"""Watches the embedded federation come up: which part is where, what is still missing, and who is to blame.

Owns the judgement of readiness, by asking each part over its own ports. Refuses to change anything. Called by
`madang up` and `madang status`.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec

from madang.federation.layout import HOST, Layout, SiteLayout
from madang.federation.relay import read_modes
from madang.federation.relay_settings import LinkMode
from madang.federation.state import Credentials
from madang.model import ReplicaPhase
from madang.runtime.http_trust import trust_for
from madang.runtime.leftovers import read_record
from madang.runtime.process import is_alive
from madang.runtime.supervision import ProcessRecord

_PROBE_TIMEOUT_S = 2.0
_LOOPING_AFTER_RESTARTS = 8
"""A process that ended this often since we began to watch will not come up by itself."""
_TROUBLED_PHASES = (ReplicaPhase.PENDING, ReplicaPhase.FETCHING, ReplicaPhase.BACKOFF)
_LOG_LINES = 15
_LOG_TAIL_BYTES = 64 * 1024


class PartView(msgspec.Struct, frozen=True, kw_only=True):
    """What can be seen of one part: the hub, or a site with all its programs.

    Attributes:
        text: what it does now, in words.
        is_ready: it does what it is for.
    """

    name: str
    text: str
    is_ready: bool
    url: str


class Culprit(msgspec.Struct, frozen=True, kw_only=True):
    """The process that most likely keeps the federation from coming up."""

    name: str
    reason: str
    log_path: Path
    log_lines: tuple[str, ...]


class Watcher:
    """Asks every part how far it is.

    Args:
        layout: the map.
        credentials: tokens for the admin APIs.
        api_key: a tenant's key, by which `/v1/models` is asked; empty when there is no tenant.
    """

    def __init__(self, layout: Layout, credentials: Credentials, api_key: str) -> None:
        self._layout = layout
        self._credentials = credentials
        self._api_key = api_key
        self._http = httpx.Client(timeout=_PROBE_TIMEOUT_S, trust_env=False, verify=trust_for(layout.hub_url))
        self._services: list[dict[str, Any]] | None = None
        self._restarts_before = {record.name: record.restarts for record in self._records()}

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def look_at_hub(self) -> PartView:
        """Return a view of the hub alone."""
        url = self._layout.hub_url
        text = "ready" if self._ask(f"{url}/readyz", "") is not None else "starts"
        if text != "ready" and self._ask(f"{url}/healthz", "") is not None:
            text = f"not ready: {self._read_problems(url)}"
        return PartView(name="hub", text=text, is_ready=text == "ready", url=url)

    def look(self) -> list[PartView]:
        """Return one view of each part, the hub first."""
        hub = self.look_at_hub()
        if hub.is_ready:
            self._services = self._ask(f"{self._layout.hub_url}/api/v1/services", self._credentials.admin_token)
        modes = read_modes(self._layout.run_dir)
        return [hub, *(self._look_at(site, modes) for site in self._layout.sites)]

    def _read_problems(self, url: str) -> str:
        with contextlib.suppress(httpx.TransportError, msgspec.MsgspecError, KeyError, TypeError):
            found = msgspec.json.decode(self._http.get(f"{url}/readyz").content)
            return ", ".join(str(problem) for problem in found["problems"])
        return "it does not say why"

    def _look_at(self, site: SiteLayout, modes: Mapping[str, LinkMode]) -> PartView:
        def view(text: str, is_ready: bool = False) -> PartView:
            return PartView(name=site.name, text=text, is_ready=is_ready, url=site.tenant_url)

        mode = modes.get(site.name, LinkMode.OK)
        status = self._ask(f"{site.admin_url}/api/v1/status", self._credentials.token_of(site.name))
        if status is None:
            return view("starts")
        # The tenants' port is held by the supervisor and accepts before anybody answers: the admin port tells.
        if self._ask(f"http://{HOST}:{site.gateway_admin_port}/healthz", "") is None:
            return view("gateway starts")
        if status["hub_link"]["state"] != "connected" and mode is LinkMode.OK:
            return view("connects to the hub")
        wanted = self._wanted(site)
        served = self._served(site) if wanted else set()
        if not wanted <= served:
            what = "waits for sites" if site.is_entry_only else self._describe_replicas(site)
            return view(f"serves {len(served & wanted)} of {len(wanted)} services; {what}")
        note = "" if mode is LinkMode.OK else f"; its WAN is {mode}: madang wan heal {site.name}"
        return view(f"ready{note}", True)

    def _describe_replicas(self, site: SiteLayout) -> str:
        """Return `madang-chat starting, madang-embed ready`, with the reason of what is in trouble."""
        found = self._ask(f"{site.admin_url}/api/v1/replicas", self._credentials.token_of(site.name))
        rows = found if isinstance(found, list) else (found or {}).get("replicas", [])
        words = [
            f"{row['service']} {row['phase']}"
            + (f" ({row['reason']})" if row["reason"] and row["phase"] in _TROUBLED_PHASES else "")
            for row in rows
        ]
        return ", ".join(words) or "waits for its node"

    def _wanted(self, site: SiteLayout) -> set[str]:
        """Return the services that the asking tenant shall find at a site."""
        if not self._api_key:
            return set()
        return {
            service["name"]
            for service in self._services or []
            if not service.get("tenants") and (site.is_entry_only or site.name in (service.get("sites") or [site.name]))
        }

    def _served(self, site: SiteLayout) -> set[str]:
        found = self._ask(f"{site.tenant_url}/v1/models", self._api_key)
        return {model["id"] for model in found["data"]} if found else set()

    def _ask(self, url: str, token: str) -> Any:
        """Return the JSON (or text) of a 2xx answer, None for anything else: a part that is starting may do all."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            response = self._http.get(url, headers=headers)
        except httpx.TransportError:
            return None
        if not response.is_success:
            return None
        try:
            return msgspec.json.decode(response.content)
        except msgspec.MsgspecError:
            return response.text

    # Blame

    def find_looping(self) -> Culprit | None:
        """Return a process that ends again and again since the watch began."""
        for record in self._records():
            if record.restarts - self._restarts_before.get(record.name, 0) >= _LOOPING_AFTER_RESTARTS:
                return make_culprit(record)
        return None

    def find_culprit(self) -> Culprit | None:
        """Return the first process, in order of starting, that is down, or else has not become ready."""
        records = self._records()
        for record in records:
            if record.ref is None or not is_alive(record.ref):
                return make_culprit(record)
        for record in records:
            if record.ready_url and self._ask(record.ready_url, "") is None:
                return make_culprit(record)
        by_name = {record.name: record for record in records}
        for view in self.look():
            # All programs are healthy: of a site that is not ready, the node has the engines.
            for name in (view.name, f"{view.name}-node", f"{view.name}-site"):
                if not view.is_ready and name in by_name:
                    return make_culprit(by_name[name])
        return None

    def _records(self) -> list[ProcessRecord]:
        record = read_record(self._layout.record_path)
        return list(record.processes) if record is not None else []


def make_culprit(record: ProcessRecord) -> Culprit:
    """Return a process as the one to blame, with the last lines it wrote."""
    reason = record.note or ("runs, and does not become ready" if record.ref else f"ended: {record.last_exit}")
    if record.restarts:
        reason += f" ({record.restarts} restarts; last end: {record.last_exit})"
    return Culprit(name=record.name, reason=reason, log_path=record.log_path, log_lines=read_tail(record.log_path))


def read_tail(path: Path) -> tuple[str, ...]:
    """Return the last lines of a log file, empty when there is none."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _LOG_TAIL_BYTES, 0))
        return tuple(file.read().decode(errors="replace").splitlines()[-_LOG_LINES:])
    return ()
