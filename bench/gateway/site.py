"""Our own gateway in a real site: hub, NATS, site process and one gateway worker, each a process of its own.

Owns the set-up, through the same bootstraps and admin APIs that operators use. Only the node is a stand-in
(`bench.gateway.node`), since no chip shall be measured. On the core under test run the gateway worker and the site
process; all else is on the other.
"""

import hashlib
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from bench.gateway.node import CHIP_KIND
from bench.gateway.peers import Carrier
from bench.gateway.process import LOAD_CORE, PEER_CORE, Program, tree
from bench.gateway.tls import make_certificate

import madang
from madang.core import MadangError, ServiceName, TenantId
from madang.federation.enrolment import enrol_site
from madang.federation.toml_text import render_toml
from madang.gateway.settings import GatewaySettings
from madang.hub.bootstrap import prepare_hub
from madang.hub.settings import HubSettings
from madang.model import (
    Artifact,
    ArtifactFile,
    Budget,
    CatalogEntry,
    PriorityClass,
    Residency,
    ResidencyScope,
    Service,
    Tariff,
    Task,
    Tenant,
)
from madang.model.price import MICRO_WON_PER_WON
from madang.policy.pricing import kst_day
from madang.runtime.admin_client import AdminClient
from madang.runtime.files import write_secret
from madang.runtime.nats import nats_server_path
from madang.site.bootstrap import gateway_token_file, prepare_site
from madang.site.settings import NodeLink, SiteSettings
from madang.testing.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SITE, TENANT, SERVICE = "bench", TenantId("bench-tenant"), ServiceName("synthetic")
SLOTS = 4096
"""More than any load has clients: the engine never counts as full."""
BUDGET, RATE = 10**15, 10**9
"""As much as may be: what a request costs is asked, not what a refusal does."""
FILE = ArtifactFile(name="none", size_bytes=1, sha256="0" * 64)
"""Never fetched: the node that would is a stand-in."""
MEMORY = Path("/dev/shm")
_READY_S = 30.0


class Site:
    """A running site; `Running` of the peers."""

    def __init__(
        self, folder: Path, upstream_port: int, python: str, gateway_module: str, *, streamed_only: bool
    ) -> None:
        """Write every file and start every program.

        Args:
            folder: of its state; must not exist.
            upstream_port: of the synthetic engine.
            python: interpreter of the site process and the gateway worker.
            gateway_module: what runs the worker.
            streamed_only: the engine must always be asked for a stream.
        """
        folder.mkdir(parents=True)
        self.folder = folder
        self.model: str = SERVICE
        self.key = ""
        # The hub is another machine's: its disk must not hold up the site's.
        self._hub_dir = Path(tempfile.mkdtemp(prefix="madang-bench-hub-", dir=MEMORY if MEMORY.is_dir() else folder))
        self.programs: dict[str, Program] = {}
        self.port, self.tls_port = free_port(), free_port()
        try:
            self._start_all(upstream_port, python, gateway_module, streamed_only=streamed_only)
        except BaseException:
            self.stop()
            raise

    def _start_all(self, upstream_port: int, python: str, gateway_module: str, *, streamed_only: bool) -> None:
        token = secrets.token_urlsafe(16)
        digest = hashlib.sha256(token.encode()).hexdigest()
        hub = self._start_hub(digest)
        site = self._site_settings(digest, hub.nats_leaf_port)
        nats_config = prepare_site(site).nats_config
        node = site.nodes[0]
        write_secret(node.token_file, secrets.token_hex(16).encode())
        with AdminClient(f"http://127.0.0.1:{hub.port}", token, name="the hub") as client:
            until(lambda: is_answering(client), "the hub answers", self.find_trouble)
            enrol_site(site, client)
            self.key = make_facts(client)
        self._start("nats", [str(nats_server_path()), "-c", str(nats_config)], LOAD_CORE)
        words = [sys.executable, "-m", "bench.gateway.node", "--port", node.url.rsplit(":", 1)[1], "--name", node.name]
        words += ["--token-file", str(node.token_file), "--endpoint", f"http://127.0.0.1:{upstream_port}"]
        self._start("node", words + ["--streamed-only"] * streamed_only, LOAD_CORE)
        self._start("site", self._argv(python, "madang.site", "site", site), PEER_CORE)
        gateway = self._argv(python, gateway_module, "gateway", self._gateway_settings(site))
        self._start("worker", [*gateway, "--worker", "0"], PEER_CORE)
        self.admin = AdminClient(f"http://127.0.0.1:{site.port}", token, name="the site")

    def _start(self, name: str, argv: list[str], core: int) -> None:
        env = {"PYTHONPATH": f"{Path(madang.__file__).parents[1]}:{ROOT}"}
        self.programs[name] = Program(argv, core=core, log=self.folder / f"{name}.log", env=env)

    def _argv(self, python: str, module: str, name: str, settings: msgspec.Struct) -> list[str]:
        path = self.folder / f"{name}.toml"
        path.write_text(render_toml(settings, "Written by the bench."))
        return [python, "-P", "-m", module, "--config", str(path)]

    def _start_hub(self, digest: str) -> HubSettings:
        hub = HubSettings(
            state_dir=self._hub_dir,
            port=free_port(),
            admin_token_sha256=digest,
            nats_port=free_port(),
            nats_leaf_port=free_port(),
            nats_monitor_port=free_port(),
        )
        self.hub_nats = [str(nats_server_path()), "-c", str(prepare_hub(hub).nats_config)]
        self._start("hub_nats", self.hub_nats, LOAD_CORE)
        self._start("hub", self._argv(sys.executable, "madang.hub", "hub", hub), LOAD_CORE)
        return hub

    def _site_settings(self, digest: str, leaf_port: int) -> SiteSettings:
        state = self.folder / "site"
        node = NodeLink(name=f"{SITE}-1", url=f"http://127.0.0.1:{free_port()}", token_file=self.folder / "node.token")
        return SiteSettings(
            name=SITE,
            region="bench",
            state_dir=state,
            port=free_port(),
            admin_token_sha256=digest,
            nats_port=free_port(),
            nats_monitor_port=free_port(),
            hub_leaf_url=f"nats://127.0.0.1:{leaf_port}",
            tenant_url=f"http://127.0.0.1:{self.port}",
            peer_url=f"http://127.0.0.1:{free_port()}",
            nodes=(node,),
            feed_dir=state / "feed",
            usage_dir=state / "usage",
        )

    def _gateway_settings(self, site: SiteSettings) -> GatewaySettings:
        certificate = make_certificate(self.folder)
        return GatewaySettings(
            site=site.name,
            feed_dir=site.feed_dir,
            usage_dir=site.usage_dir,
            port=self.port,
            peer_port=int(site.peer_url.rsplit(":", 1)[1]),
            admin_port=free_port(),
            site_api_url=f"http://127.0.0.1:{site.port}",
            site_api_token_file=gateway_token_file(site),
            tls_port=self.tls_port,
            tls_certificate_file=certificate.chain,
            tls_key_file=certificate.key,
        )

    def groups(self) -> Mapping[str, list[int]]:
        """Return process ids; `worker` and `site` together are the gateway."""
        return {name: tree(program.pid) for name, program in self.programs.items() if name != "node"}

    def find_trouble(self) -> str:
        """Return which program has ended and its last words."""
        for name, program in self.programs.items():
            if not program.is_running():
                return f"{name} has ended: {program.tail()}"
        return ""

    def cut_hub(self) -> None:
        """End the hub's NATS server: usage piles up in the outbox."""
        self.programs["hub_nats"].stop()

    def heal_hub(self) -> None:
        """Start it again: the outbox is forwarded."""
        self._start("hub_nats", self.hub_nats, LOAD_CORE)

    def read_backlog(self) -> int:
        """Return how many usage events wait in the site's outbox."""
        return int(self.admin.get("/api/v1/status")["outbox_depth"])

    def stop(self) -> None:
        """End everything, gateway first."""
        for name in ("worker", "site", "node", "nats", "hub", "hub_nats"):
            program = self.programs.pop(name, None)
            if program is not None:
                program.stop()
        shutil.rmtree(self._hub_dir, ignore_errors=True)


def is_answering(client: AdminClient) -> bool:
    """Return whether an admin API answers."""
    try:
        client.get("/healthz")
    except MadangError:
        return False
    return True


def until(condition: Any, what: str, find_trouble: Any) -> None:
    """Wait until a condition holds; raises TimeoutError naming it."""
    deadline_s = time.monotonic() + _READY_S
    while not condition():
        trouble = find_trouble()
        if trouble or time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {_READY_S} s: {what}. {trouble}")
        time.sleep(0.05)


def make_facts(hub: AdminClient) -> str:
    """Make a tenant with budgets, a model, a service and its price at the hub, and return a key with limits."""
    artifact = Artifact(
        artifact_id="none", engine="llama_cpp", chip_kinds=(CHIP_KIND,), files=(FILE,), memory_bytes=1 << 20
    )
    entry = CatalogEntry(
        name="synthetic-model", task=Task.CHAT, title="Synthetic, for the bench", licence="none", artifacts=(artifact,)
    )
    hub.call("POST", "/api/v1/models", entry)
    hub.call("PUT", f"/api/v1/services/{SERVICE}", Service(name=SERVICE, model=entry.name, slots=SLOTS))
    tenant = Tenant(
        tenant_id=TENANT,
        title="Bench",
        residency=Residency(scope=ResidencyScope.REGION, places=("bench",)),
        budget=Budget(day_micro_won=BUDGET, month_micro_won=BUDGET),
    )
    hub.call("POST", "/api/v1/tenants", tenant)
    tariff = Tariff(
        tariff_id="",
        service=SERVICE,
        priority=PriorityClass.INTERACTIVE,
        valid_from=kst_day(time.time()),
        prompt_micro_won_per_million=300 * MICRO_WON_PER_WON,
        completion_micro_won_per_million=1200 * MICRO_WON_PER_WON,
    )
    body = {name: value for name, value in msgspec.to_builtins(tariff).items() if name != "tariff_id"}
    hub.call("POST", "/api/v1/tariffs", body)
    key = {"tenant_id": TENANT, "requests_per_minute": RATE, "tokens_per_minute": RATE, "streams_max": SLOTS}
    return str(hub.call("POST", "/api/v1/keys", key)["api_key"])


class Ours(Carrier):
    """Our gateway with every feature on."""

    def __init__(
        self,
        python: str,
        *,
        name: str = "madang",
        gateway_module: str = "madang.gateway",
        streamed_only: bool = False,
        note: str = "every feature on; CPU of worker and site process",
    ) -> None:
        self.name = name
        self._python, self._module, self._streamed_only, self._note = python, gateway_module, streamed_only, note
        self._count = 0

    def describe(self) -> str:
        return f"{madang.__version__}; {self._note}"

    def find_missing(self) -> str:
        return ""

    def start(self, upstream_port: int, folder: Path) -> Site:
        self._count += 1
        place = folder / f"{self.name}-{self._count}"
        return Site(place, upstream_port, self._python, self._module, streamed_only=self._streamed_only)
