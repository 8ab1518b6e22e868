"""A fake hub, and the command line run in this process against it."""

import functools

import pytest
import typer
from tests.cli.fake_hub import FakeHub
from typer.testing import CliRunner

from madang.cli.main import app


@pytest.fixture(scope="session", autouse=True)
def _tree_built_once():
    """Keep typer's runner from building the whole tree of commands anew for each command it runs: 60 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture
def hub():
    fake = FakeHub()
    yield fake
    fake.close()


@pytest.fixture
def madang(tmp_path):
    """Run the command with nothing of the caller's environment."""

    def run(*words, env=None):
        unset = dict.fromkeys(("MADANG_HUB_URL", "MADANG_SITE_URL", "MADANG_ADMIN_TOKEN"))
        clean = {**unset, "MADANG_STATE": str(tmp_path / "state")}
        return CliRunner().invoke(app, words, env={**clean, **(env or {})}, prog_name="madang")

    return run


@pytest.fixture
def ask(madang, hub):
    """Run the command against the fake hub."""

    def run(*words):
        return madang(*words, env={"MADANG_HUB_URL": hub.url, "MADANG_ADMIN_TOKEN": hub.token})

    return run
