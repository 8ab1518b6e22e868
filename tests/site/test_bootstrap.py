"""What is on disk before a site runs."""

import re

import pytest

from madang.core import Rejected, Unavailable
from madang.runtime.nats import KeyRole, format_creds, make_seed, mint_scoped_user, public_key
from madang.site.bootstrap import creds_file, identity_file, install_creds, nats_folder, prepare_site
from madang.site.settings import SiteSettings


def make_settings(tmp_path, **changes):
    values = {
        "name": "daegu",
        "region": "yeongnam",
        "state_dir": tmp_path / "daegu",
        "feed_dir": tmp_path / "daegu" / "feed",
        "usage_dir": tmp_path / "daegu" / "usage",
    }
    return SiteSettings(**{**values, **changes})


def test_preparing_twice_changes_nothing(tmp_path):
    settings = make_settings(tmp_path)
    first = prepare_site(settings)
    files = {path: path.read_bytes() for path in settings.state_dir.rglob("*") if path.is_file()}
    assert prepare_site(settings) == first
    assert {path: path.read_bytes() for path in settings.state_dir.rglob("*") if path.is_file()} == files
    assert re.fullmatch(r"[0-9a-f]{64}", first.identity_ed25519)


def test_a_moved_port_is_rendered_and_the_identity_stays(tmp_path):
    first = prepare_site(make_settings(tmp_path))
    moved = prepare_site(make_settings(tmp_path, nats_port=9999))
    assert moved.identity_ed25519 == first.identity_ed25519
    assert "127.0.0.1:9999" in moved.nats_config.read_text()


def test_nothing_secret_is_open_to_others(tmp_path):
    settings = make_settings(tmp_path)
    prepare_site(settings)
    for path in settings.state_dir.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    for folder in (settings.feed_dir, settings.usage_dir, nats_folder(settings)):
        folder.chmod(0o755)
    prepare_site(settings)
    for folder in (settings.feed_dir, settings.usage_dir, nats_folder(settings)):
        assert folder.stat().st_mode & 0o777 == 0o700, "what an older release or a package left open"
    identity_file(settings).chmod(0o644)
    with pytest.raises(Unavailable, match="open to others"):
        prepare_site(settings)


def test_a_damaged_identity_and_a_bad_name_are_named(tmp_path):
    settings = make_settings(tmp_path)
    prepare_site(settings)
    identity_file(settings).write_text("not hex")
    with pytest.raises(Rejected, match=r"identity\.key"):
        prepare_site(settings)
    with pytest.raises(Rejected, match="Daegu"):
        prepare_site(make_settings(tmp_path, name="Daegu"))


def test_credentials_are_installed_and_junk_is_not(tmp_path):
    settings = make_settings(tmp_path)
    account, role, user = (make_seed(KeyRole.ACCOUNT, bytes([n]) * 32) for n in (1, 2, 3))
    user = make_seed(KeyRole.USER, b"u" * 32)
    token = mint_scoped_user(role, public_key(account), public_key(user), "daegu", issued_at_s=1)
    install_creds(settings, format_creds(token, user))
    assert creds_file(settings).stat().st_mode & 0o777 == 0o600
    assert "USER NKEY SEED" in creds_file(settings).read_text()
    with pytest.raises(Rejected, match="enrol"):
        install_creds(settings, "junk")
    assert nats_folder(settings).stat().st_mode & 0o077 == 0
