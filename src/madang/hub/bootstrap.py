"""What must be on disk before the hub's NATS server and program can start: seeds, credentials, configuration.

Owns `state_dir/keys` and `state_dir/nats`. Refuses to start anything and to touch the database, which the program
brings up to date itself. Called by the embedded federation and by the command line; doing it again changes nothing
but what settings changed.
"""

from pathlib import Path

import msgspec

from madang.core import Clock, Entropy
from madang.hub.artifact_key import load_artifact_key
from madang.hub.seeds import (
    HubSeeds,
    compose_account,
    compose_hub_users,
    compose_operator,
    compose_system,
    prepare_seeds,
)
from madang.hub.settings import HubSettings
from madang.hub.streams import file_bytes_max
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.files import make_private_folder, replace_file, write_secret
from madang.runtime.nats import HubNats, format_creds, render_hub_conf


class HubPrepared(msgspec.Struct, frozen=True, kw_only=True):
    """What is ready.

    Attributes:
        nats_config: to start nats-server with.
        artifact_key: public key, in hex, that nodes and sites believe manifests of.
    """

    nats_config: Path
    artifact_key: str


class HubPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Where the hub keeps what, under its state folder."""

    keys: Path
    nats: Path

    @property
    def artifact_key(self) -> Path:
        """Return the Ed25519 seed, in hex, that signs manifests of artifacts."""
        return self.keys / "artifact.key"

    @property
    def hub_creds(self) -> Path:
        """Return the credentials of the hub program in account FED."""
        return self.nats / "hub.creds"

    @property
    def system_creds(self) -> Path:
        """Return the credentials of the hub program in account SYS."""
        return self.nats / "system.creds"

    @property
    def account_jwt(self) -> Path:
        """Return the file of account FED's newest JWT, revocations included."""
        return self.nats / "account.jwt"


def hub_paths(settings: HubSettings) -> HubPaths:
    """Return where things are."""
    return HubPaths(keys=settings.state_dir / "keys", nats=settings.state_dir / "nats")


def prepare_hub(settings: HubSettings, *, clock: Clock | None = None, entropy: Entropy | None = None) -> HubPrepared:
    """Make what is missing and render the server's configuration.

    Raises:
        Unavailable: a folder or file cannot be written or read, naming it.
    """
    clock = clock or SystemClock()
    paths = hub_paths(settings)
    make_private_folder(settings.state_dir, is_ours_alone=False)
    for folder in (paths.keys, paths.nats):
        make_private_folder(folder)
    now_s = int(clock.wall_s())
    entropy = entropy or SystemEntropy()
    seeds = prepare_seeds(paths.keys, entropy)
    artifact_key = load_artifact_key(paths.artifact_key, entropy)
    _write_creds(paths, seeds, now_s)
    config = paths.nats / "hub.conf"
    facts = HubNats(
        host=settings.nats_host,
        port=settings.nats_port,
        leaf_host=settings.nats_leaf_host or settings.nats_host,
        leaf_port=settings.nats_leaf_port,
        monitor_port=settings.nats_monitor_port,
        store_dir=paths.nats / "jetstream",
        resolver_dir=paths.nats / "resolver",
        operator_jwt=compose_operator(seeds, now_s),
        system_account=seeds.system_key,
        account_jwts={
            seeds.system_key: compose_system(seeds, now_s),
            seeds.account_key: _keep_account_jwt(paths, seeds, now_s),
        },
        max_file_bytes=file_bytes_max(settings.usage_stream_bytes_max),
    )
    replace_file(config, render_hub_conf(facts).encode(), mode=0o600)
    return HubPrepared(nats_config=config, artifact_key=artifact_key.public_hex)


def _write_creds(paths: HubPaths, seeds: HubSeeds, now_s: int) -> None:
    hub_jwt, system_jwt = compose_hub_users(seeds, now_s)
    write_secret(paths.hub_creds, format_creds(hub_jwt, seeds.hub_user).encode())
    write_secret(paths.system_creds, format_creds(system_jwt, seeds.system_user).encode())


def _keep_account_jwt(paths: HubPaths, seeds: HubSeeds, now_s: int) -> str:
    """Return the account's JWT, made once: a newer one without revocations would admit who was revoked."""
    if not paths.account_jwt.exists():
        write_secret(paths.account_jwt, compose_account(seeds, {}, now_s).encode())
    return paths.account_jwt.read_text().strip()
