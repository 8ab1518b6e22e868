"""Settings of a site process. Refuses secrets: only the files that hold them are named."""

from pathlib import Path

import msgspec


class NodeLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the site reaches one of its nodes.

    Attributes:
        name: as in the node's own settings.
        url: base URL of its admin port.
        token_file: holds the bearer token that it asks for; mode 0600.
    """

    name: str
    url: str
    token_file: Path


class SiteSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One site.

    Attributes:
        name, region, nation: as enrolled at the hub.
        state_dir: `site.db`, `identity.key` (Ed25519 seed, 0600), `files.key` (master key of the tenants' files, 0600),
            `gateway.token` (0600), `files/`, `batches/`, `nats/`, and by default `feed/` and `usage/`.
        listen_host, port: admin API.
        admin_token_sha256: hex digest of the admin API's bearer token.
        nats_host, nats_port, nats_monitor_port: its own NATS server.
        hub_leaf_url: where that server dials the hub's leaf port.
        tenant_url, peer_url: what is announced to others.
        is_entry_only: a pseudo-site without chips, such as the national entry.
        peer_overrides: site name → base URL, where this site must dial a peer by another way (VPN, NAT, relay).
        encrypted_links: names of sites to which the way is encrypted below HTTP, end to end (WireGuard, IPsec, MACsec).
            Their peer URLs may be `http://` for data of every class; any other such URL that leaves this machine
            carries data of class `open` alone.
        peer_ca_file: who vouches for peers whose URL is `https://`, read at the start; none for the system's roots. The
            gateway has a setting of its own.
        nodes: its servers; none for an entry-only site.
        feed_dir: where the gateway's feed is written.
        usage_dir: where gateway workers append usage logs.
        heartbeat_period_s, digest_period_s: how often it speaks.
        outbox_rows_max: admission is closed when so many events wait for the hub.
        own_gateway_url: the peer port of its own gateway, where batches are run; empty: no batches are taken here.
        file_bytes_max: of one file of a tenant.
        file_lifetime_s: how long a file is kept unless its owner asks for less.
        withdrawn_files_kept_s: how long files lie, out of reach, whose tenant may have none here any more.
        tenant_files_max, tenant_file_bytes_max: what one tenant may keep at this site, results included.
        tenant_batches_max: batches of one tenant that are not over.
        batch_lines_max: requests in one batch.
        batch_concurrency: requests of all batches together that are in flight at once.
        access_dir: where gateway workers append access records; `access` beside usage_dir by default.
        access_days: how long access records are kept; 365 at least, 730 where sensitive data are served.
        access_bytes_max: of all access records together; there is an alarm at 80 %, and no new requests at all of it.
        receipt_days: how long the receipts of what this site served can be had.
        artifact_dir: the site's artifact cache, for its nodes and for other sites; none: nodes ask the hub's store.
        artifact_port: where the cache is served, in plain HTTP, with the nodes' tokens and with passes of other sites.
        artifact_tls_port: the same with TLS, for other sites; 0: none.
        artifact_tls_host: where that one listens; empty: listen_host.
        artifact_tls_certificate_file, artifact_tls_key_file: PEM, as the gateway's `tls_certificate_file` and
            `tls_key_file`, and they may be the same files.
        artifact_ca_file: PEM; whose certificates are believed of other sites and stores; none: the system's roots.
        artifact_url: where other sites reach the cache: announced to them at the enrolment; empty: they do not ask.
        artifact_stores: base URLs of the hub's store, asked after other sites.
        artifact_peers: site name → base URL of its artifact port, in place of what it announces; empty: never asked.
        artifact_keys: Ed25519 public keys, in hex, whose manifests are believed: the hub's, and publishers'.
        artifact_sources_at_once: sources of one file that are asked at the same time.
        artifact_line_bytes_s_max, artifact_source_bytes_s_max: of all sources together, and of each; 0: no limit.
        artifact_bytes_max: what the cache may hold; the least recently used leaves, never what is wanted here. 0: as
            much as the disk has, less a margin.
        facility_file: describes power, cooling and security of the box; none: the site has no facility.
        facility_secrets_dir: files `NAME.toml` (0600) with what devices want to know; `secrets` in `state_dir` by
            default.
        facility_armed: actuators that are armed from the start, `NODE.cap`, `NODE.state`, `SITE.shed`, `SITE.spill`, …;
            all others only say what they would do, until somebody arms them.
        facility_notify_file: where alarms are told (webhook, e-mail); none: they are shown and journalled only.
        facility_trap_host: where notifications of SNMP devices are listened for.
        facility_trap_port: its UDP port; 0: nobody listens. Below 1024 the program needs CAP_NET_BIND_SERVICE: 1162 is
            usual, with devices told so or 162 forwarded to it.
    """

    name: str
    region: str
    nation: str = "kr"
    state_dir: Path
    listen_host: str = "127.0.0.1"
    port: int = 7711
    admin_token_sha256: str = ""
    nats_host: str = "127.0.0.1"
    nats_port: int = 7715
    nats_monitor_port: int = 7716
    hub_leaf_url: str = "nats://127.0.0.1:7704"
    tenant_url: str = ""
    peer_url: str = ""
    is_entry_only: bool = False
    peer_overrides: dict[str, str] = {}
    encrypted_links: tuple[str, ...] = ()
    peer_ca_file: Path | None = None
    nodes: tuple[NodeLink, ...] = ()
    feed_dir: Path
    usage_dir: Path
    heartbeat_period_s: float = 2.0
    digest_period_s: float = 0.5
    outbox_rows_max: int = 5_000_000
    own_gateway_url: str = ""
    file_bytes_max: int = 200 * 1024 * 1024
    file_lifetime_s: float = 30 * 24 * 3600.0
    withdrawn_files_kept_s: float = 24 * 3600.0
    tenant_files_max: int = 1000
    tenant_file_bytes_max: int = 2 * 1024 * 1024 * 1024
    tenant_batches_max: int = 20
    batch_lines_max: int = 50_000
    batch_concurrency: int = 2
    access_dir: Path | None = None
    access_days: float = 730.0
    access_bytes_max: int = 128 * 1024 * 1024 * 1024
    receipt_days: float = 90.0
    artifact_dir: Path | None = None
    artifact_port: int = 7717
    artifact_tls_port: int = 0
    artifact_tls_host: str = ""
    artifact_tls_certificate_file: Path | None = None
    artifact_tls_key_file: Path | None = None
    artifact_ca_file: Path | None = None
    artifact_url: str = ""
    artifact_stores: tuple[str, ...] = ()
    artifact_peers: dict[str, str] = {}
    artifact_keys: tuple[str, ...] = ()
    artifact_sources_at_once: int = 1
    artifact_line_bytes_s_max: int = 0
    artifact_source_bytes_s_max: int = 0
    artifact_bytes_max: int = 0
    facility_file: Path | None = None
    facility_secrets_dir: Path | None = None
    facility_armed: tuple[str, ...] = ()
    facility_notify_file: Path | None = None
    facility_trap_host: str = "127.0.0.1"
    facility_trap_port: int = 0
