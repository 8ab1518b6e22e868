"""A site program that is set up wrongly, whose disk is full, or whose usage nobody takes."""

import asyncio
import resource
import signal
import socket

import pytest
from tests.hub.hub_harness import running_hub, until
from tests.site.site_harness import RealSite, running_sites
from tests.site.usage_files import Worker, records

from madang.site.app import main
from madang.site.bootstrap import identity_file
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer


@pytest.fixture
def site(tmp_path):
    """A site that was never enrolled and whose NATS server does not run."""
    made = RealSite(tmp_path, "daegu", f"nats://127.0.0.1:{free_port()}")
    yield made
    made.kill()


def run(site, play):
    async def go():
        async with site.client:
            await play()

    asyncio.run(go())


@pytest.fixture
def refused(capfd):
    """Run the program in this process and return what it says; it must refuse to start."""

    def run_to_end(config):
        assert main(config) == 1
        return capfd.readouterr().err

    return run_to_end


def test_wrong_settings_name_file_key_and_what_was_expected(site, refused):
    sound = site.config.read_text()
    for text, words in (
        ("colour = 'red'\n" + sound, ["site.toml", "colour"]),
        (sound.replace(f"port = {site.settings.port}", "port = 'x'"), ["site.toml", "port", "`int`"]),
        ("name = ", ["site.toml", "TOML"]),
    ):
        site.config.write_text(text)
        said = refused(site.config)
        for word in words:
            assert word in said
    assert "nowhere.toml" in refused(site.folder / "nowhere.toml")


def test_a_damaged_identity_and_a_taken_port_are_named(site, refused):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", site.settings.port))
        holder.listen()
        said = refused(site.config)
    assert str(site.settings.port) in said
    assert "taken by" in said
    identity_file(site.settings).write_text("junk")
    assert "identity.key" in refused(site.config)


def test_a_damaged_database_is_named_and_not_replaced(site, refused):
    database = site.folder / "site.db"
    database.write_bytes(b"this is no database, and never was one" * 100)
    assert "site.db" in refused(site.config)
    assert database.read_bytes().startswith(b"this is no database")


def test_without_nats_and_hub_it_serves_imports_and_says_what_is_missing(site):
    async def play():
        (site.settings.feed_dir / ".live.msgpack.1.new").write_bytes(b"half")
        site.start()
        await until(site.is_serving, "it serves")
        worker = Worker(site.settings.usage_dir)
        worker.write(records(*range(30)))

        async def has_imported():
            return (await site.status())["outbox_depth"] == 30

        await until(has_imported, "usage is imported")
        status = await site.status()
        assert status["hub_link"] == {"state": "never_seen", "last_contact_age_s": None}
        assert (await site.client.get("/readyz")).status_code == 503
        await until(lambda: site.live() is not None, "the feed is written")
        assert site.live().admission_closed_reason == ""
        assert site.snapshot() is None, "nothing was ever applied, so there is nothing to say"
        assert not list(site.settings.feed_dir.glob(".*.new"))
        assert await asyncio.to_thread(site.kill, signal.SIGTERM) == 0
        worker.die()

    run(site, play)


def test_a_disk_that_takes_no_more_closes_admission_and_loses_nothing(site):
    async def play():
        site.start()
        await until(site.is_serving, "it serves")
        worker = Worker(site.settings.usage_dir)
        # A file of this process may not grow over this: its database and log are beyond it, its feed is not.
        resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE, (32_768, resource.RLIM_INFINITY))
        worker.write(records(*range(2000)))
        await until(lambda: site.live() is not None and site.live().admission_closed_reason, "admission is closed")
        assert "site.db" in site.live().admission_closed_reason
        status = await site.status()
        assert status["store_trouble"]
        assert (await site.client.get("/readyz")).status_code == 503
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE, unlimited)

        async def has_imported():
            return (await site.status())["outbox_depth"] == 2000

        await until(has_imported, "all was imported")
        await until(lambda: site.live().admission_closed_reason == "", "admission is open")
        names = [event["event"] for event in site.events()]
        assert names.count("site_store_unwritable") == names.count("site_store_writable") == 1
        worker.die()

    run(site, play)


@pytest.mark.deep
def test_usage_that_nobody_takes_closes_admission_in_the_end(tmp_path):
    """The hub's stream is full: its own acknowledgement says so, and events stay at the site."""

    async def play():
        async with (
            running_hub(tmp_path, usage_stream_bytes_max=600_000) as hub,
            running_sites(hub, "daegu", outbox_rows_max=1500) as (daegu,),
        ):
            worker = Worker(daegu.settings.usage_dir)
            worker.write(records(*range(4000)))

            async def is_full():
                status = await daegu.status()
                return status["usage_trouble"] == "stream_full" and status["outbox_depth"] >= 1500

            await until(is_full, "the site says that the stream is full")
            await until(lambda: "most allowed" in daegu.live().admission_closed_reason, "admission is closed")
            assert "1500 are the most allowed" in str(await daegu.status())
            assert "1500 are the most allowed" in (await daegu.client.get("/readyz")).text
            failures = [event for event in daegu.events() if event["event"] == "usage_forward_failed"]
            assert len(failures) == 1, "said once, not at each trial"
            assert "10077" in failures[0]["reason"]
            worker.die()

    asyncio.run(play())
