"""One site of real programs under a real supervisor, for loads that no model could answer.

Hub, NATS servers, site process, gateway workers and supervisor are real; the engine is a fake that answers at once
(`tests.gateway.paced_engine`), and the bench's stand-in says so in the node program's place.
"""

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from bench.gateway.site import SITE, is_answering, make_facts
from tests.e2e.embedded import wait_for

from madang.federation.enrolment import enrol_site
from madang.federation.programs import SitePrograms, plan_site_programs
from madang.federation.supervise import PROGRAMS_FILE, RECORD_FILE
from madang.federation.toml_text import render_toml
from madang.gateway.settings import GatewaySettings
from madang.hub.bootstrap import prepare_hub
from madang.hub.settings import HubSettings
from madang.node.settings import NodeSettings
from madang.runtime.admin_client import AdminClient
from madang.runtime.files import write_secret
from madang.runtime.nats import nats_server_path
from madang.runtime.process import ProcessRef, is_alive
from madang.runtime.supervision import ProcessSpec, encode_specs
from madang.site.bootstrap import gateway_token_file, prepare_site
from madang.site.settings import NodeLink, SiteSettings
from madang.testing.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
_SUPERVISE = (
    "import sys, pathlib; from madang.federation.supervise import main; sys.exit(main(pathlib.Path(sys.argv[1])))"
)


class LoadedSite:
    """A hub and one site; use as a context manager."""

    def __init__(self, folder: Path, *, tokens: int, rate_hz: float) -> None:
        self.folder = folder
        self.port = free_port()
        self.hub = HubSettings(
            state_dir=folder / "hub",
            port=free_port(),
            nats_port=free_port(),
            nats_leaf_port=free_port(),
            nats_monitor_port=free_port(),
        )
        self.token = secrets.token_urlsafe(16)
        self.hub = msgspec.structs.replace(self.hub, admin_token_sha256=digest(self.token))
        self.run_dir = folder / "run"
        self._engine = ["-m", "tests.gateway.paced_engine", str(tokens), str(rate_hz)]
        self._processes: list[subprocess.Popen[str]] = []
        self.key = ""

    @property
    def hub_db(self) -> Path:
        return self.hub.state_dir / "hub.db"

    def __enter__(self) -> "LoadedSite":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
            if process.stdout is not None:
                process.stdout.close()

    def processes(self) -> dict[str, ProcessRef]:
        """Return the supervised processes that run now, by name."""
        record = json.loads((self.run_dir / RECORD_FILE).read_text())
        refs = {one["name"]: ProcessRef(**one["ref"]) for one in record["processes"] if one.get("ref")}
        return {name: ref for name, ref in refs.items() if is_alive(ref)}

    def kill(self, *names: str) -> list[str]:
        """kill -9 processes of the site, and return which of them were alive."""
        alive = self.processes()
        found = [name for name in names if name in alive]
        for name in found:
            os.kill(alive[name].pid, signal.SIGKILL)
        return found

    def restart_supervisor(self) -> None:
        """kill -9 the supervisor, wait until what it ran has ended by itself, and start another."""
        supervisor = self._processes.pop()
        supervisor.kill()
        supervisor.wait(20)
        wait_for("nothing of the site runs", lambda: not self.processes(), 60)
        self._supervise()

    def restarts(self) -> dict[str, int]:
        record = json.loads((self.run_dir / RECORD_FILE).read_text())
        return {one["name"]: one["restarts"] for one in record["processes"]}

    def logs(self) -> str:
        texts = [path for path in sorted(self.folder.rglob("*.log")) if path.parent.name != "usage"]
        return "\n".join(f"{path.name}: {path.read_bytes()[-1500:].decode(errors='replace')}" for path in texts)

    # --- start

    def _run(self, name: str, words: Sequence[str], *, is_piped: bool = False) -> subprocess.Popen[str]:
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                words, stdout=subprocess.PIPE if is_piped else log, stderr=log, text=True, cwd=ROOT
            )
        self._processes.append(process)
        return process

    def _start(self) -> None:
        for folder in (self.folder, self.run_dir, self.folder / "logs", self.hub.state_dir):
            folder.mkdir(parents=True, exist_ok=True)
        engine = self._run("engine", [sys.executable, *self._engine], is_piped=True)
        assert engine.stdout is not None
        engine_port = int(engine.stdout.readline())
        nats = str(nats_server_path())
        self._run("hub-nats", [nats, "-c", str(prepare_hub(self.hub).nats_config)])
        hub_toml = self.folder / "hub.toml"
        hub_toml.write_text(render_toml(self.hub, "Of a test."))
        self._run("hub", [sys.executable, "-P", "-m", "madang.hub", "--config", str(hub_toml)])
        site = self._site_settings()
        nats_config = prepare_site(site).nats_config
        write_secret(site.nodes[0].token_file, secrets.token_hex(16).encode())
        with AdminClient(f"http://127.0.0.1:{self.hub.port}", self.token, name="the hub") as client:
            wait_for("the hub answers", lambda: is_answering(client), 60)
            enrol_site(site, client)
            self.key = make_facts(client)
        specs = plan_site_programs(
            SitePrograms(
                config_dir=self.folder,
                log_dir=self.folder / "logs",
                site=site,
                gateway=self._write_gateway(site),
                node=self._node_settings(site),
                nats_server=nats_server_path(),
                nats_config=nats_config,
            )
        )
        specs = tuple(self._play_node(spec, site, engine_port) for spec in specs)
        (self.run_dir / PROGRAMS_FILE).write_bytes(encode_specs(specs))
        self._supervise()

    def _supervise(self) -> None:
        self._run("supervisor", [sys.executable, "-P", "-c", _SUPERVISE, str(self.run_dir)])

    def _site_settings(self) -> SiteSettings:
        state = self.folder / "site"
        state.mkdir()
        node = NodeLink(name=f"{SITE}-1", url=f"http://127.0.0.1:{free_port()}", token_file=self.folder / "node.token")
        site = SiteSettings(
            name=SITE,
            region="bench",
            state_dir=state,
            port=free_port(),
            admin_token_sha256=digest(self.token),
            nats_port=free_port(),
            nats_monitor_port=free_port(),
            hub_leaf_url=f"nats://127.0.0.1:{self.hub.nats_leaf_port}",
            tenant_url=f"http://127.0.0.1:{self.port}",
            peer_url=f"http://127.0.0.1:{free_port()}",
            nodes=(node,),
            feed_dir=state / "feed",
            usage_dir=state / "usage",
        )
        (self.folder / "site.toml").write_text(render_toml(site, "Of a test."))
        return site

    def _write_gateway(self, site: SiteSettings) -> GatewaySettings:
        gateway = GatewaySettings(
            site=site.name,
            feed_dir=site.feed_dir,
            usage_dir=site.usage_dir,
            port=self.port,
            peer_port=int(site.peer_url.rsplit(":", 1)[1]),
            admin_port=free_port(),
            workers=WORKERS,
            site_api_url=f"http://127.0.0.1:{site.port}",
            site_api_token_file=gateway_token_file(site),
        )
        (self.folder / "gateway.toml").write_text(render_toml(gateway, "Of a test."))
        return gateway

    def _node_settings(self, site: SiteSettings) -> NodeSettings:
        link = site.nodes[0]
        return NodeSettings(
            name=link.name,
            site=site.name,
            state_dir=self.folder / "node",
            port=int(link.url.rsplit(":", 1)[1]),
            token_file=link.token_file,
            cache_dir=self.folder / "cache",
        )

    def _play_node(self, spec: ProcessSpec, site: SiteSettings, engine_port: int) -> ProcessSpec:
        """Put the bench's node into the place of the node program."""
        if spec.name != f"{SITE}-node":
            return spec
        link = site.nodes[0]
        words = ["--port", link.url.rsplit(":", 1)[1], "--name", link.name, "--token-file", str(link.token_file)]
        words += ["--endpoint", f"http://127.0.0.1:{engine_port}"]
        argv = (sys.executable, "-m", "bench.gateway.node", *words)
        return msgspec.structs.replace(spec, argv=argv, cwd=ROOT)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
