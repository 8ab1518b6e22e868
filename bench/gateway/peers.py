"""The gateways beside ours: versions, flags, and how each is started.

Owns their configuration, every choice of which is to their advantage: no authentication where they have none to
offer cheaply, one worker behind them, no access logs, one core. Refuses to measure.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from bench.gateway.loads import Load
from bench.gateway.process import PEER_CORE, Program, tree
from bench.gateway.tls import make_certificate
from bench.gateway.upstream import MODEL

from madang.testing.ports import free_port

KEY = "mdg_bench_0000000000000000000000000000000000000000000"
START_S = 90.0
HAPROXY = Path("/usr/sbin/haproxy")
HAPROXY_CONF = """global
    nbthread 1
    maxconn 4096
defaults
    mode http
    option http-no-delay
    option http-keep-alive
    http-reuse always
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend tenants
    bind 127.0.0.1:{port}
    bind 127.0.0.1:{tls_port} ssl crt {certificate} ssl-min-ver TLSv1.3 no-tls-tickets
    http-request deny deny_status 401 unless {{ req.hdr(authorization) -m beg "Bearer mdg_" }}
    default_backend engines
backend engines
    server engine 127.0.0.1:{upstream} maxconn 1024
"""
LITELLM_CONF = {
    "model_list": [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": "http://127.0.0.1:{upstream}/v1",
                "api_key": "none",
            },
        }
    ],
    "general_settings": {"master_key": KEY},
    "litellm_settings": {"telemetry": False, "request_timeout": 60, "num_retries": 0},
}


class Running(Protocol):
    """A gateway that answers.

    Attributes:
        port, tls_port: where; 0 when it has no TLS here.
        key: what it asks for.
        model: what it calls the synthetic engine.
    """

    port: int
    tls_port: int
    key: str
    model: str

    def groups(self) -> Mapping[str, list[int]]:
        """Return the process ids whose CPU is measured, by what they are."""
        ...

    def find_trouble(self) -> str:
        """Return why it does not run, empty while it does."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


class Peer(Protocol):
    """How to start a gateway."""

    name: str

    def describe(self) -> str:
        """Return its version and flags."""
        ...

    def find_missing(self) -> str:
        """Return what has to be installed first; empty when nothing has."""
        ...

    def adapt(self, load: Load) -> Load | None:
        """Return the load that it can carry in place of one; None to leave it out."""
        ...

    def start(self, upstream_port: int, folder: Path) -> Running:
        """Start it; it may take a while to answer."""
        ...


class Carrier:
    """A gateway that carries every load."""

    def adapt(self, load: Load) -> Load | None:
        """Take it as it is."""
        return load


class OneProgram:
    """A gateway of one program."""

    def __init__(self, program: Program, port: int, tls_port: int = 0) -> None:
        self.program, self.port, self.tls_port, self.key, self.model = program, port, tls_port, KEY, MODEL

    def groups(self) -> Mapping[str, list[int]]:
        return {"peer": tree(self.program.pid)}

    def find_trouble(self) -> str:
        return "" if self.program.is_running() else self.program.tail()

    def stop(self) -> None:
        self.program.stop()


class Direct(Carrier):
    """No gateway: what the synthetic engine itself costs. Its process belongs to the bench."""

    name = "direct"

    def __init__(self, upstream: Program) -> None:
        self._upstream = upstream
        self.key, self.model, self.port, self.tls_port = KEY, MODEL, 0, 0

    def describe(self) -> str:
        return "clients to the synthetic engine; CPU is the engine's"

    def find_missing(self) -> str:
        return ""

    def start(self, upstream_port: int, folder: Path) -> Running:
        self.port = upstream_port
        return self

    def groups(self) -> Mapping[str, list[int]]:
        return {"peer": [self._upstream.pid]}

    def find_trouble(self) -> str:
        return ""

    def stop(self) -> None:
        """Nothing to end."""


class Splice(Carrier):
    """The floor of a relay in Python."""

    name = "splice"

    def describe(self) -> str:
        return "blind TCP splice, Python on uvloop"

    def find_missing(self) -> str:
        return ""

    def start(self, upstream_port: int, folder: Path) -> Running:
        port = free_port()
        argv = [sys.executable, "-P", str(Path(__file__).with_name("splice.py")), str(upstream_port), str(port)]
        return OneProgram(Program(argv, core=PEER_CORE, log=folder / "splice.log"), port)


class HaProxy(Carrier):
    """HAProxy of the distribution."""

    name = "haproxy"

    def describe(self) -> str:
        done = subprocess.run([HAPROXY, "-v"], capture_output=True, text=True, check=True)
        version = done.stdout.split()[2].split("-")[0]
        return f"{version}; nbthread 1, option http-no-delay, http-reuse always, key prefix by ACL, no log"

    def find_missing(self) -> str:
        return "" if HAPROXY.exists() else "HAProxy is not installed: as root, apt-get install haproxy"

    def start(self, upstream_port: int, folder: Path) -> Running:
        port, tls_port = free_port(), free_port()
        conf = folder / "haproxy.cfg"
        certificate = make_certificate(folder).joined
        conf.write_text(
            HAPROXY_CONF.format(port=port, tls_port=tls_port, certificate=certificate, upstream=upstream_port)
        )
        argv = [str(HAPROXY), "-db", "-f", str(conf)]
        return OneProgram(Program(argv, core=PEER_CORE, log=folder / "haproxy.log"), port, tls_port)


class VllmRouter(Carrier):
    """vllm-router, written in Rust."""

    name = "vllm-router"
    flags = ("--policy", "round_robin", "--log-level", "error", "--disable-retries", "--disable-circuit-breaker")

    def __init__(self, venvs: Path) -> None:
        self._bin = venvs / "vllm-router" / "bin"

    def describe(self) -> str:
        return f"{version_of(self._bin, 'vllm-router')}; {' '.join(self.flags)}, no authentication"

    def find_missing(self) -> str:
        return "" if (self._bin / "vllm-router").exists() else "vllm-router is not installed: scripts/make-bench-peers"

    def start(self, upstream_port: int, folder: Path) -> Running:
        port = free_port()
        argv = [
            *(str(self._bin / "vllm-router"), "--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{upstream_port}", "--prometheus-port", str(free_port())),
            *("--worker-startup-check-interval", "1", *self.flags),
        ]
        return OneProgram(Program(argv, core=PEER_CORE, log=folder / "vllm-router.log"), port)


class LiteLlm:
    """The LiteLLM proxy."""

    name = "litellm"

    def __init__(self, venvs: Path) -> None:
        self._bin = venvs / "litellm" / "bin"

    def describe(self) -> str:
        words = "one worker, master key, no database, no callbacks, production mode; streams with 8 clients"
        return f"{version_of(self._bin, 'litellm')}; {words}"

    def find_missing(self) -> str:
        return "" if (self._bin / "litellm").exists() else "LiteLLM is not installed: scripts/make-bench-peers"

    def adapt(self, load: Load) -> Load | None:
        """Send few streams and measure longer: of 64 that begin together none is over within 5 s."""
        if load.name == "many":
            return None
        connections = min(load.connections, 8) if load.is_stream else load.connections
        return msgspec.structs.replace(load, connections=connections, warm_s=2.0, measure_s=2 * load.measure_s)

    def start(self, upstream_port: int, folder: Path) -> Running:
        port = free_port()
        conf = folder / "litellm.yaml"
        # JSON is YAML.
        conf.write_text(json.dumps(LITELLM_CONF).replace("{upstream}", str(upstream_port)))
        argv = [str(self._bin / "litellm"), "--config", str(conf), "--host", "127.0.0.1", "--port", str(port)]
        env = {
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False",
        }
        log = folder / "litellm.log"
        return OneProgram(Program([*argv, "--num_workers", "1"], core=PEER_CORE, log=log, env=env, cwd=folder), port)


def version_of(folder: Path, package: str) -> str:
    """Return the version of a package in a venv."""
    words = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([folder / "python", "-c", words], capture_output=True, text=True, check=True).stdout.strip()


def request_bytes(running: Running, *, is_stream: bool, max_tokens: int = 100) -> bytes:
    """Return the request that every gateway gets, a chat of one short question."""
    body = {
        "model": running.model,
        "messages": [{"role": "user", "content": "대한민국의 수도는 어디인가요? 한 문장으로 답해 주세요."}],
        "max_tokens": max_tokens,
        **({"stream": True} if is_stream else {}),
    }
    data = msgspec.json.encode(body)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (running.key.encode(), len(data), data)
    )
