"""Settings of the hub. Refuses secrets: only the files that hold them are named."""

from pathlib import Path

import msgspec


class HubSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One hub.

    Attributes:
        state_dir: database, NATS store, seeds (mode 0600), logs.
        listen_host, port: admin API.
        database_url: SQLAlchemy URL of SQLite or PostgreSQL, without a password; empty means SQLite at
            `state_dir/hub.db`.
        admin_token_sha256: hex digest of the admin API's bearer token.
        artifact_dir: the federation's content-addressed artifact store, served at `/artifacts/<sha256>`.
        nats_host, nats_port, nats_leaf_port, nats_monitor_port: its NATS server.
        nats_leaf_host: where its leaf port listens; empty means `nats_host`.
        usage_stream_bytes_max: disk that the stream of usage events may take; it keeps 30 days, and when it is
            full, sites keep their events until it has room.
        heartbeat_stale_after_s, heartbeat_lost_after_s: a site is `stale`, then `unreachable`.
    """

    state_dir: Path
    listen_host: str = "127.0.0.1"
    port: int = 7700
    database_url: str = ""
    admin_token_sha256: str = ""
    artifact_dir: Path | None = None
    nats_host: str = "127.0.0.1"
    nats_port: int = 7703
    nats_leaf_port: int = 7704
    nats_monitor_port: int = 7705
    nats_leaf_host: str = ""
    usage_stream_bytes_max: int = 8 * 1024**3
    heartbeat_stale_after_s: float = 6.0
    heartbeat_lost_after_s: float = 20.0
