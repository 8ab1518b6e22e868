"""A real site on free loopback ports: its NATS server, and its program as a process of its own.

The hub of `tests.hub.hub_harness` is the real one. A node and gateway workers are played by the tests.
"""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys

import httpx
from tests import loopback
from tests.hub.hub_harness import NatsProcess, enrol, make_bus, until

from madang.federation.toml_text import render_toml
from madang.runtime.files import read_secret
from madang.site.bootstrap import SITE_USER, install_creds, password_file, prepare_site
from madang.site.settings import SiteSettings
from madang.testing.ports import free_port
from madang.wire.feed import LIVE_FILE, SNAPSHOT_FILE, decode_live, decode_snapshot

SITE_TOKEN = "test-site-token"


class RealSite:
    """One site."""

    def __init__(self, folder, name, leaf_url, **settings):
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = SiteSettings(
            name=name,
            region="yeongnam",
            state_dir=self.folder,
            feed_dir=self.folder / "feed",
            usage_dir=self.folder / "usage",
            port=free_port(),
            nats_port=free_port(),
            nats_monitor_port=free_port(),
            hub_leaf_url=leaf_url,
            admin_token_sha256=hashlib.sha256(SITE_TOKEN.encode()).hexdigest(),
            peer_url=f"http://127.0.0.1:{free_port()}",
            **{"heartbeat_period_s": 0.3, "digest_period_s": 0.1, **settings},
        )
        self.prepared = prepare_site(self.settings)
        self.config = self.folder / "site.toml"
        self.config.write_text(render_toml(self.settings, "Written by a test."))
        self.nats = NatsProcess(self.prepared.nats_config, self.settings.nats_port, self.folder / "nats.log")
        self.log_path = self.folder / "site.log"
        self.process = None
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.settings.port}",
            headers={"authorization": f"Bearer {SITE_TOKEN}"},
            timeout=10,
            verify=loopback.NOBODY,
        )

    async def enrol(self, hub, **fields):
        body = {"identity_ed25519": self.prepared.identity_ed25519, "peer_url": self.settings.peer_url, **fields}
        answer = await enrol(hub, self.settings.name, **body)
        install_creds(self.settings, answer["creds"])

    def start(self):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "madang.site", "--config", str(self.config)], stdout=log, stderr=log
            )

    def kill(self, number=signal.SIGKILL):
        """End the program and return its exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(number)
        return process.wait(10)

    async def is_serving(self):
        assert self.process.poll() is None, self.log_path.read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError):
            return (await self.client.get("/healthz")).status_code == 200
        return False

    async def status(self):
        return await self.get("/api/v1/status")

    async def get(self, path):
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def is_linked(self):
        return await self.is_serving() and (await self.status())["hub_link"]["state"] == "connected"

    def bus(self):
        password = read_secret(password_file(self.settings, SITE_USER)).decode()
        return make_bus(self.settings.nats_port, f"_INBOX.{self.settings.name}", user=SITE_USER, password=password)

    def snapshot(self):
        path = self.settings.feed_dir / SNAPSHOT_FILE
        return decode_snapshot(path.read_bytes()) if path.exists() else None

    def live(self):
        path = self.settings.feed_dir / LIVE_FILE
        return decode_live(path.read_bytes()) if path.exists() else None

    def events(self):
        return [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]


@contextlib.asynccontextmanager
async def running_sites(hub, *names, **settings):
    """Enrol sites, start their NATS servers and programs, wait until each is linked to the hub."""
    leaf_url = f"nats://127.0.0.1:{hub.settings.nats_leaf_port}"
    sites = [RealSite(hub.folder, name, leaf_url, **settings) for name in names]
    try:
        for site in sites:
            await site.enrol(hub)
            await site.nats.start()
            site.start()
        for site in sites:
            await until(site.is_linked, f"{site.settings.name} is linked")
        yield sites
    finally:
        for site in sites:
            site.kill()
            site.nats.kill()
            await site.client.aclose()
