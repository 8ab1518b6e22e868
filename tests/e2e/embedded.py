"""Drives one embedded federation through its command and its files, as a person or a script would."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from tests import loopback

from madang.runtime.artifacts.cache import default_cache_dir
from madang.runtime.process import ProcessRef, is_alive

MADANG = Path(sys.executable).parent / "madang"


def wait_for(what: str, check: Callable[[], Any], within_s: float, every_s: float = 0.05) -> Any:
    """Return the first true value of `check`; fails naming `what` when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what} (last: {value!r})")
        time.sleep(every_s)


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


class Embedded:
    """A federation in a folder of its own, on ports of its own.

    Args:
        state_dir: its folder.
        base_port: its first port.
        environ: variables for its programs beside the caller's own.
    """

    def __init__(self, state_dir: Path, base_port: int, environ: dict[str, str] | None = None) -> None:
        self.state_dir = state_dir
        self.base_port = base_port
        self._environ = environ or {}
        self._clients: list[openai.OpenAI] = []

    def madang(self, *words: str, is_ok: bool = True, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
        """Run the command against this federation's state."""
        ours = {"MADANG_STATE": str(self.state_dir), "NO_COLOR": "1", "COLUMNS": "200"}
        environ = os.environ | self._environ | ours
        done = subprocess.run(
            [str(MADANG), *words], capture_output=True, text=True, timeout=timeout_s, env=environ, check=False
        )
        if is_ok:
            assert done.returncode == 0, f"madang {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def madang_json(self, *words: str) -> Any:
        """Run a command with --json and return what it printed."""
        return json.loads(self.madang(*words, "--json").stdout)

    @property
    def credentials(self) -> dict[str, Any]:
        return json.loads((self.state_dir / "credentials.json").read_text())

    def key(self, tenant: str) -> str:
        return next(t["api_key"] for t in self.credentials["tenants"] if t["name"] == tenant)

    def url(self, site: str) -> str:
        if site == "national":
            return self.credentials["national_url"]
        return next(s["url"] for s in self.credentials["sites"] if s["name"] == site)

    def openai(self, site: str, tenant: str, **options: Any) -> openai.OpenAI:
        """Return the official client against a site, without retries of its own."""
        options = {"max_retries": 0, "timeout": 60, "api_key": self.key(tenant), **options}
        client = openai.OpenAI(base_url=f"{self.url(site)}/v1", **options)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        """Close what `openai` made: left to the garbage collector, sockets are sometimes found before their owners."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    def post(self, site: str, tenant: str, path: str, body: Any, timeout_s: float = 60) -> httpx.Response:
        return loopback.post(
            f"{self.url(site)}{path}",
            json=body,
            headers={"authorization": f"Bearer {self.key(tenant)}"},
            timeout=timeout_s,
        )

    def admin(self, method: str, path: str, site: str | None = None, **options: Any) -> Any:
        """Call the hub's admin API, or a site's."""
        known = self.credentials
        url, token = known["hub_url"], known["admin_token"]
        if site is not None:
            entry = next(s for s in known["sites"] if s["name"] == site)
            url, token = entry["admin_url"], entry["admin_token"]
        answer = loopback.request(
            method, f"{url}{path}", headers={"authorization": f"Bearer {token}"}, timeout=10, **options
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def processes(self) -> dict[str, ProcessRef]:
        """Return the supervised processes that run now, by name."""
        record = json.loads((self.state_dir / "run" / "processes.json").read_text())
        refs = {p["name"]: ProcessRef(**p["ref"]) for p in record["processes"] if p.get("ref")}
        return {name: ref for name, ref in refs.items() if is_alive(ref)}

    def supervisor(self) -> ProcessRef:
        record = json.loads((self.state_dir / "run" / "processes.json").read_text())
        return ProcessRef(**record["supervisor"])

    def kill(self, *names: str) -> None:
        """kill -9 supervised processes by name, in one go."""
        refs = [self.processes()[name] for name in names]
        for ref in refs:
            psutil.Process(ref.pid).kill()

    def engines(self, site: str, service: str) -> list[dict[str, Any]]:
        return [r for r in self.admin("GET", "/api/v1/replicas", site=site) if r["service"] == service]

    @property
    def cache_dir(self) -> Path:
        """The artifacts that every node of this machine, and the hub's store, have in common."""
        return default_cache_dir(os.environ)

    def leftovers(self) -> list[str]:
        """Return what of it still runs or listens, as one word each; empty after a clean `madang down`."""
        marker = f"MADANG_SUPERVISED_BY={self.state_dir / 'run'}".encode()
        ports = range(self.base_port, self.base_port + 60)
        found = [f"process {pid}" for pid in psutil.pids() if marker in _environment_of(pid)]
        heard = {one.laddr.port for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
        return found + [f"port {port}" for port in ports if port in heard]

    def site_names(self) -> list[str]:
        return [s["name"] for s in self.credentials["sites"]]

    def tree_pids(self, site: str) -> set[int]:
        """Return every process of a site: supervised ones, their children, and its engines with their shims."""
        pids = {ref.pid for name, ref in self.processes().items() if name.startswith(f"{site}-")}
        folder = str(self.state_dir / "sites" / site)
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if any(folder in word for word in words):
                pids.add(process.pid)
        for pid in list(pids):
            try:
                pids |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
            except psutil.Error:
                continue
        return pids

    def wan_connections(self, site: str) -> list[str]:
        """Return established TCP connections between a site's processes and any other federation process."""
        own = self.tree_pids(site)
        marker = str(self.state_dir)
        others: set[int] = set()
        # The plant twin stands in for devices in the box, which are on no WAN.
        plant = self.processes().get("plant")
        own_side = own | ({plant.pid} if plant else set())
        for process in psutil.process_iter():
            try:
                if process.pid not in own_side and any(marker in word for word in process.cmdline()):
                    others.add(process.pid)
            except psutil.Error:
                continue
        ends: dict[tuple[Any, Any], set[int]] = {}
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_ESTABLISHED and connection.raddr and connection.pid:
                ends.setdefault((connection.laddr, connection.raddr), set()).add(connection.pid)
        crossing = []
        for (local, remote), pids in ends.items():
            far = ends.get((remote, local), set())
            if pids & own and far & others:
                crossing.append(f"{local.ip}:{local.port} -> {remote.ip}:{remote.port} (pids {pids} and {far})")
        return crossing

    def broken_links(self) -> list[str]:
        """Return the sites whose WAN is cut or a hole now."""
        path = self.state_dir / "run" / "wan.json"
        modes = json.loads(path.read_text()).get("modes", {}) if path.exists() else {}
        return [site for site, mode in modes.items() if mode != "ok"]

    def site_rows(self) -> list[dict[str, Any]]:
        """Return the hub's view of every site; a test that waits asks here, for a command costs a second each time."""
        rows: list[dict[str, Any]] = self.admin("GET", "/api/v1/status")["sites"]
        return rows

    def ledger(self, **query: str) -> dict[str, Any]:
        """Return what `madang usage` shows, without starting a command for it."""
        found: dict[str, Any] = self.admin("GET", "/api/v1/usage", params={"group_by": "tenant,service", **query})
        return found
