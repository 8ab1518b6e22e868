"""Settings of a gateway worker."""

from pathlib import Path
from typing import Annotated

import msgspec


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gateway of one site; every worker reads the same file.

    Attributes:
        site: whose gateway it is.
        feed_dir: where the site process writes `snapshot` and `live`.
        usage_dir: where workers append usage logs.
        access_dir: where workers append access records; `access` beside usage_dir by default.
        access_open_ratio: share of the requests for data of class `open` of which it is recorded who made them; of data
            of any other class all are, always.
        listen_host, port: the tenants' port.
        peer_port: the port for other gateways, on the same host address.
        admin_host, admin_port: `/healthz`, `/readyz`, `/metrics` of worker 0, which ask for no key: keep it inside.
            Worker k listens k ports higher.
        tls_host, tls_port, peer_tls_port: where the tenants' and the peers' ports are offered with TLS, beside the
            plain ones; port 0 for not at all. The plain ones belong on an address that only the site itself reaches.
        tls_certificate_file, tls_key_file: PEM: the certificate with its chain, and its key without a passphrase, mode
            0600; a newer pair is taken within seconds.
        tls_handshake_timeout_s, tls_handshakes_max: limits of the handshakes of one port.
        peer_ca_file: who vouches for peers whose URL is `https://`, read at the start; none for the system's roots.
        workers: processes sharing the listening sockets.
        head_bytes_max, headers_max, body_bytes_max: limits of one request; over them 431, 431 and 413.
        body_memory_bytes_max: request bodies that one worker holds at once, over all connections; over it 503. Answers
            that are kept until they are whole count too, and may take a quarter more. The peak is three times as much
            or so: a body is joined once and rewritten once.
        head_timeout_s, body_timeout_s, idle_timeout_s: limits of each phase of a connection.
        upload_bytes_max, upload_timeout_s: limits of an upload to `/v1/files`, which flows through to the site process
            instead of being kept; in it no piece may take longer than body_timeout_s.
        connect_timeout_s, first_byte_timeout_s, stall_timeout_s: limits towards an engine.
        connections_max: connections of tenants per worker; over it the newest is refused.
        connections_per_address_max: of them, from one IPv4 address or one /64 of IPv6; over it the newest is refused. A
            half of `connections_max` unless it is set; 0 for no limit, as behind a proxy, which is one address for all.
        upstreams_max: connections per worker to engines and peers, and again as many from peers.
        drain_timeout_s: how long a worker that was told to stop waits for the requests in progress.
        site_api_url: where the site's own process listens, `http://host:port`; empty: files and batches answer 503.
        site_api_token_file: holds the token that it asks gateways for; mode 0600.
        otlp_traces_url: where an OpenTelemetry collector takes traces by OTLP over HTTP, `http://host:4318/v1/traces`;
            empty: none are made, and contexts of callers are passed on as they came, but for data of class
            `classified`.
        trace_ratio: share of requests that are traced when their caller has not decided.
        debug_ratio: share of requests that are told in the log, one line each, never a word of their content.
    """

    site: str
    feed_dir: Path
    usage_dir: Path
    access_dir: Path | None = None
    access_open_ratio: float = 1.0
    listen_host: str = "127.0.0.1"
    port: int = 7710
    peer_port: int = 7714
    admin_host: str = "127.0.0.1"
    admin_port: int = 7713
    tls_host: str = "127.0.0.1"
    tls_port: int = 0
    peer_tls_port: int = 0
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    tls_handshake_timeout_s: float = 5.0
    tls_handshakes_max: int = 256
    peer_ca_file: Path | None = None
    workers: int = 1
    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    body_bytes_max: int = 10 * 1024 * 1024
    body_memory_bytes_max: int = 256 * 1024 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    connect_timeout_s: float = 1.0
    first_byte_timeout_s: float = 120.0
    stall_timeout_s: float = 60.0
    upload_bytes_max: int = 210 * 1024 * 1024
    upload_timeout_s: float = 900.0
    connections_max: int = 12_000
    connections_per_address_max: int | None = None
    upstreams_max: int = 2_560
    drain_timeout_s: float = 10.0
    site_api_url: str = ""
    site_api_token_file: Path | None = None
    otlp_traces_url: str = ""
    trace_ratio: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.01
    debug_ratio: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
