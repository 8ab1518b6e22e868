"""A gateway worker as a process of its own, for a site of the lab."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.gateway.lab import LabSite, wait_until

ROOT = Path(__file__).resolve().parents[2]


class WorkerProcess:
    """`python -m madang.gateway` for a lab's site; its sockets are held by the test, as a supervisor holds them."""

    def __init__(
        self,
        site: LabSite,
        *,
        worker: int = 0,
        files_max: int = 0,
        module: str = "madang.gateway",
        **settings: object,
    ) -> None:
        """Start it.

        Args:
            site: whose gateway it is.
            worker: its number.
            files_max: limit of open files, soft and hard; 0 for that of the test.
            module: what runs it.
            settings: of the gateway, beside the usual ones.
        """
        self.site = site
        site.folder.mkdir(parents=True, exist_ok=True)
        config = site.folder / "gateway.toml"
        values = {
            "site": site.name,
            "feed_dir": str(site.feed_dir),
            "usage_dir": str(site.usage_dir),
            "port": site.ports["tenant"],
            "peer_port": site.ports["peer"],
            "admin_port": site.ports["admin"] - worker,
            **settings,
        }
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
        self.log_file = site.folder / f"worker{worker}.log"
        fds = {name: held.fileno() for name, held in site.sockets.items()}
        listen_fds = ",".join(f"{name}={number}" for name, number in fds.items())
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "MADANG_LISTEN_FDS": listen_fds}
        with self.log_file.open("wb") as log:
            limit = ["/bin/sh", "-c", f'ulimit -n {files_max}; exec "$@"', "sh"] if files_max else []
            self.process = subprocess.Popen(
                [*limit, sys.executable, "-m", module, "--config", str(config), "--worker", str(worker)],
                stderr=log,
                env=env,
                cwd=ROOT,
                pass_fds=tuple(fds.values()),
            )

    def wait_ready(self) -> "WorkerProcess":
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log_file.read_text()
            with contextlib.suppress(OSError):
                return self.site.request("GET", "/readyz", port="admin").status == 200
            return False

        wait_until(is_ready, "the worker is ready", 20)
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)

    @property
    def log(self) -> list[dict]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]
