"""What a federation remembers between starts: versions, damage, modes, and which folder is meant."""

import json
import stat

import msgspec
import pytest

from madang.core import Rejected, Unavailable
from madang.federation.state import (
    Credentials,
    FederationState,
    SiteCredentials,
    TenantCredentials,
    choose_state_dir,
    read_credentials,
    read_layout,
    read_state,
    write_credentials,
    write_state,
)
from madang.model import Residency, ResidencyScope

CREDENTIALS = Credentials(
    hub_url="http://h",
    national_url="http://n",
    admin_token="t",
    sites=(SiteCredentials(name="daegu", url="http://d", admin_url="http://da", admin_token="dt"),),
    tenants=(
        TenantCredentials(
            name="daegu-clinic",
            residency=Residency(scope=ResidencyScope.SITE, places=("daegu",)),
            api_key="mdg_x",
        ),
    ),
    national_admin_token="nt",
)


def test_state_round_trips_and_an_empty_folder_has_none(tmp_path):
    assert read_state(tmp_path) is None
    state = FederationState(base_port=17700, cache_dir="/cache", is_enrolled=True)
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert read_layout(tmp_path).base_port == 17700


def test_state_of_a_newer_release_is_refused_and_left_alone(tmp_path):
    newer = {"version": 99, "release": "9.0", "base_port": 1, "something_new": True}
    (tmp_path / "federation.json").write_text(json.dumps(newer))
    with pytest.raises(Rejected, match=r"written by release 9.0 \(layout 99\)") as caught:
        read_state(tmp_path)
    assert "--state" in caught.value.next_step
    assert json.loads((tmp_path / "federation.json").read_text()) == newer


def test_damage_names_the_file_and_the_key(tmp_path):
    (tmp_path / "federation.json").write_text('{"version": 1, "base_port": "x"}')
    with pytest.raises(Rejected, match=r"federation.json is damaged: .*base_port"):
        read_state(tmp_path)
    path = tmp_path / "credentials.json"
    path.write_text("{}")
    path.chmod(0o600)
    with pytest.raises(Rejected, match=r"credentials.json is damaged: .*hub_url"):
        read_credentials(path)


def test_without_a_federation_the_next_step_is_named(tmp_path):
    with pytest.raises(Rejected, match="there is no federation") as caught:
        read_layout(tmp_path)
    assert "madang up" in caught.value.next_step


def test_credentials_have_the_shape_of_the_contract_and_are_the_owners_alone(tmp_path):
    path = tmp_path / "credentials.json"
    assert read_credentials(path) is None
    write_credentials(path, CREDENTIALS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_credentials(path) == CREDENTIALS
    found = json.loads(path.read_text())
    assert {"hub_url", "national_url", "admin_token", "sites", "tenants"} <= set(found)
    assert found["sites"] == [{"name": "daegu", "url": "http://d", "admin_url": "http://da", "admin_token": "dt"}]
    assert found["tenants"][0]["api_key"] == "mdg_x"
    path.chmod(0o644)
    with pytest.raises(Unavailable, match="open to others"):
        read_credentials(path)


def test_tokens_are_found_by_site():
    assert CREDENTIALS.token_of("daegu") == "dt"
    assert CREDENTIALS.token_of("national") == "nt"
    with pytest.raises(Rejected, match=r"'busan' is not of this federation .*national, daegu"):
        CREDENTIALS.token_of("busan")


def test_a_field_of_a_later_release_does_not_disturb(tmp_path):
    path = tmp_path / "credentials.json"
    write_credentials(path, CREDENTIALS)
    found = json.loads(path.read_text()) | {"later": 1}
    path.write_bytes(msgspec.json.encode(found))
    assert read_credentials(path) == CREDENTIALS


def test_the_state_folder_is_as_given_else_of_the_environment_else_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MADANG_STATE", raising=False)
    assert choose_state_dir(None) == tmp_path / ".madang"
    monkeypatch.setenv("MADANG_STATE", str(tmp_path / "named"))
    assert choose_state_dir(None) == tmp_path / "named"
    assert choose_state_dir(tmp_path / "given") == tmp_path / "given"
