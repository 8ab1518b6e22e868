"""Settings of the hub. Refuses secrets: only the files that hold them are named."""

from pathlib import Path

import msgspec


class HubSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One hub.

    Attributes:
        state_dir: database, NATS store, seeds (mode 0600), logs.
        listen_host, port: admin API.
        database_url: SQLAlchemy URL; empty means SQLite at `state_dir/hub.db`.
        admin_token_sha256: hex digest of the admin API's bearer token.
        artifact_dir: the federation's content-addressed artifact store, served at `/artifacts/<sha256>`.
        nats_host, nats_port, nats_leaf_port, nats_monitor_port: its NATS server.
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
    heartbeat_stale_after_s: float = 6.0
    heartbeat_lost_after_s: float = 20.0
