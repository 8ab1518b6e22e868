"""Bootstrap and start of the hub program: what it makes, and how it refuses."""

import json
import os
import socket
import stat

import msgspec
import pytest

from madang.core import Unavailable
from madang.hub.app import MIGRATIONS, main
from madang.hub.bootstrap import hub_paths, prepare_hub
from madang.hub.seeds import compose_account, load_seeds
from madang.hub.settings import HubSettings
from madang.runtime.files import write_secret
from madang.runtime.nats import decode_claims
from madang.runtime.store import Store, sqlite_url, upgrade_schema


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".seed", ".jwt")
    }


def test_bootstrap_makes_secrets_that_nobody_else_reads_and_repeats_without_change(tmp_path):
    settings = HubSettings(state_dir=tmp_path / "hub")
    config = prepare_hub(settings).nats_config
    before = snapshot(settings.state_dir)
    assert len(before) == 7
    for path in settings.state_dir.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    text = config.read_text()
    for name, content in before.items():
        if name.endswith(".seed"):
            assert content.decode() not in text
    prepare_hub(settings)
    assert snapshot(settings.state_dir) == before


def test_bootstrap_follows_the_settings_and_keeps_revocations(tmp_path):
    settings = HubSettings(state_dir=tmp_path / "hub")
    prepare_hub(settings)
    paths = hub_paths(settings)
    seeds = load_seeds(paths.keys)
    write_secret(paths.account_jwt, compose_account(seeds, {"UREVOKED": 5}, 2_000_000_000).encode())
    moved = msgspec.structs.replace(settings, nats_port=19999, nats_leaf_host="0.0.0.0")
    text = prepare_hub(moved).nats_config.read_text()
    assert "127.0.0.1:19999" in text
    assert "0.0.0.0:7704" in text
    preloaded = next(line.split('"')[1] for line in text.splitlines() if line.strip().startswith(seeds.account_key))
    assert decode_claims(preloaded)["nats"]["revocations"] == {"UREVOKED": 5}


def test_a_seed_that_others_can_read_is_refused(tmp_path):
    settings = HubSettings(state_dir=tmp_path / "hub")
    prepare_hub(settings)
    path = hub_paths(settings).keys / "operator.seed"
    path.chmod(0o644)
    with pytest.raises(Unavailable, match=r"operator\.seed is open to others") as caught:
        prepare_hub(settings)
    assert "chmod 600" in caught.value.next_step


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot make folder"):
        prepare_hub(HubSettings(state_dir=tmp_path / "file" / "hub"))


@pytest.fixture
def refusal(tmp_path, capsys):
    """Start the program with some settings and return the one event with which it refused."""

    def run(extra=""):
        config = tmp_path / "hub.toml"
        config.write_text(f'state_dir = "{tmp_path / "hub"}"\n{extra}\n')
        assert main(config) == 1
        events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return next(event for event in events if event["event"] == "hub_refused_to_start")

    return run


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("port = 'many'", "hub.toml: key port: expected `int`, got `str`"),
        ("prot = 7700", "unknown field `prot`"),
        ("port = ", "is not TOML"),
    ],
)
def test_a_broken_configuration_names_file_and_key(refusal, extra, said):
    event = refusal(extra)
    assert said in event["reason"]


@pytest.mark.peer
def test_missing_seeds_a_newer_database_and_a_taken_port_are_named(tmp_path, refusal):
    assert "operator.seed" in refusal()["reason"]
    prepare_hub(HubSettings(state_dir=tmp_path / "hub"))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        event = refusal(f"port = {port}")
        assert f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}" in event["reason"]
        assert event["next_step"]
    store = Store(sqlite_url(tmp_path / "hub" / "hub.db"))
    upgrade_schema(store.engine, MIGRATIONS)
    store.write_now(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    event = refusal()
    assert "schema 9999, newer than this release" in event["reason"]
    assert "backup" in event["next_step"]
