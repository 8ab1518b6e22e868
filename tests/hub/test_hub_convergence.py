"""Desired state reaches the bucket and the sites, whatever is deleted, restored or killed in between."""

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import sys

import msgspec
import pytest
from tests.depth import depth
from tests.hub.hub_harness import (
    Hub,
    connected,
    enrol,
    fake_site,
    js_api,
    leaf_sites,
    running_hub,
    until,
)

from madang.hub.streams import desired_stream, usage_stream
from madang.policy.desired import GENERATION_JUMP_MAX
from madang.wire import bus as wire

pytestmark = pytest.mark.peer

TENANT = {"tenant_id": "city", "title": "City", "residency": {"scope": "nation", "places": ["kr"]}}


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 115))


async def bucket(eyes):
    """Return what the bucket holds, read by the hub's own rights: subject to bytes."""
    info = await js_api(eyes, "STREAM.INFO.KV_desired", {"subjects_filter": ">"})
    held = {}
    for subject in info.get("state", {}).get("subjects") or {}:
        answer = await js_api(eyes, "STREAM.MSG.GET.KV_desired", {"last_by_subj": subject})
        # Between the two questions the bucket may have been deleted, as these tests do.
        if "message" in answer:
            held[subject] = base64.b64decode(answer["message"]["data"])
    return held


async def in_sync(hub, site):
    view = await hub.call("GET", f"/api/v1/sites/{site.name}")
    await site.heartbeat()
    return view["in_sync"]


async def make_key(hub, key_id):
    return await hub.call("POST", "/api/v1/keys", {"tenant_id": "city", "key_id": key_id})


def test_a_change_is_in_the_bucket_well_under_a_second(tmp_path):
    run(change_to_bucket(tmp_path))


async def change_to_bucket(folder):
    async with running_hub(folder) as hub:
        await enrol(hub, "daegu")
        await hub.call("POST", "/api/v1/tenants", TENANT)
        eyes = hub.bus()
        inbox = eyes.listen("$KV.desired.>", pending_max=100)
        loop = asyncio.get_running_loop()
        async with connected(eyes):
            latencies = []
            for number in range(10):
                start_s = loop.time()
                await make_key(hub, f"k{number}")
                async with asyncio.timeout(3):
                    while not (await inbox.next()).subject.endswith(f".k{number}"):
                        pass
                latencies.append(loop.time() - start_s)
            assert sorted(latencies)[5] < 0.5, latencies
            await hub.call("POST", "/api/v1/keys/k3/revoke")
            await hub.call("DELETE", "/api/v1/tenants/city", expect=(409,))

            async def is_revoked():
                item = wire.decode_desired((await bucket(eyes))["$KV.desired.daegu.key.k3"])
                return b'"is_revoked":true' in bytes(item.spec)

            await until(is_revoked, "the revocation is in the bucket")


def test_a_site_pulls_what_is_wanted_and_says_so(tmp_path):
    run(pull_and_agree(tmp_path))


async def pull_and_agree(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "daegu") as (leaf,), fake_site(leaf) as site:
        await hub.call("POST", "/api/v1/tenants", TENANT)
        await make_key(hub, "k1")

        async def holds():
            await site.pull()
            return ("key", "k1") in site.live()

        await until(holds, "the site pulled the key")
        await until(lambda: in_sync(hub, site), "in sync")
        view = await hub.call("GET", "/api/v1/sites/daegu")
        assert view["state"] == "connected"
        assert view["applied_generation"] == view["desired_generation"] == site.generation
        assert (view["outbox_depth"], view["oldest_unsent_age_s"]) == (7, 1.5)
        assert site.resyncs == 0
        assert await site.pull() == 0


def test_a_deleted_bucket_is_made_again_with_its_consumers(tmp_path):
    run(delete_bucket(tmp_path))


async def delete_bucket(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "daegu", "gumi") as (leaf, _), fake_site(leaf) as site:
        await hub.call("POST", "/api/v1/tenants", TENANT)
        eyes = hub.bus()
        async with connected(eyes):
            await until(lambda: has_consumers(eyes, {"daegu", "gumi"}), "consumers are there")
            await until(lambda: holds_subject(eyes, "$KV.desired.gumi.tenant.city"), "published")
            before = await bucket(eyes)
            await js_api(eyes, "STREAM.DELETE.KV_desired")
            await until(lambda: same_bucket(eyes, before), "the bucket holds the same again")
            await until(lambda: has_consumers(eyes, {"daegu", "gumi"}), "consumers are there again")
            # Made again by somebody else, empty, with a foreign item.
            await js_api(eyes, "STREAM.DELETE.KV_desired")
            await js_api(eyes, "STREAM.CREATE.KV_desired", desired_stream())
            await eyes.request("$KV.desired.gumi.key.foreign", b"{}", timeout_s=3)
            await until(lambda: same_bucket(eyes, before), "the foreign item is gone and the rest is back")
            await until(lambda: has_consumers(eyes, {"daegu", "gumi"}), "consumers are there again")
            # Parts of it are removed, and one consumer.
            await js_api(eyes, "STREAM.PURGE.KV_desired", {"filter": "$KV.desired.daegu.site.>"})
            await js_api(eyes, "CONSUMER.DELETE.KV_desired.daegu")
            await make_key(hub, "after")
            await until(lambda: pulled(site, ("key", "after")), "the site pulls again")
            await until(lambda: holds_subject(eyes, "$KV.desired.daegu.site.daegu"), "purged items are back")


async def has_consumers(eyes, names):
    answer = await js_api(eyes, "CONSUMER.NAMES.KV_desired")
    return names <= set(answer.get("consumers") or [])


async def same_bucket(eyes, wanted):
    if "error" in await js_api(eyes, "STREAM.INFO.KV_desired"):
        return False
    return await bucket(eyes) == wanted


def test_a_site_that_lost_an_item_is_resynced(tmp_path):
    run(lose_an_item(tmp_path))


async def lose_an_item(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "daegu") as (leaf,), fake_site(leaf) as site:
        await hub.call("POST", "/api/v1/tenants", TENANT)
        await until(lambda: pulled(site, ("tenant", "city")), "pulled")
        await until(lambda: in_sync(hub, site), "in sync")
        site.items.pop(("tenant", "city"))
        site.items[("key", "ghost")] = wire.make_desired_item("daegu", "key", "ghost", 1, TENANT)

        async def is_whole():
            await site.heartbeat()
            return ("tenant", "city") in site.live() and ("key", "ghost") not in site.live()

        await until(is_whole, "resynced")
        assert site.resyncs >= 1
        await until(lambda: in_sync(hub, site), "in sync again")
        assert await hub.metric("madang_hub_resyncs_total", result="applied") >= 1
        assert (await hub.call("POST", "/api/v1/sites/daegu/resync"))["generation"] == site.generation


async def pulled(site, key):
    await site.pull()
    return key in site.live()


def test_a_hub_restored_from_an_older_copy_wins_over_a_site_that_is_ahead(tmp_path):
    run(restore_older(tmp_path))


async def restore_older(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "daegu") as (leaf,), fake_site(leaf) as site:
        await hub.call("POST", "/api/v1/tenants", TENANT)
        await hub.stop()
        backup = folder / "backup"
        shutil.copytree(hub.settings.state_dir, backup, ignore=shutil.ignore_patterns("nats", "keys"))
        await hub.start()
        for number in range(5):
            await make_key(hub, f"lost{number}")
        await until(lambda: pulled(site, ("key", "lost4")), "pulled")
        ahead = site.generation
        await hub.stop()
        for path in hub.settings.state_dir.glob("hub.db*"):
            path.unlink()
        for path in backup.glob("hub.db*"):
            shutil.copy(path, hub.settings.state_dir / path.name)
        await hub.start()
        await make_key(hub, "after")

        async def converged():
            await site.pull()
            await site.heartbeat()
            return ("key", "after") in site.live() and ("key", "lost0") not in site.live()

        await until(converged, "the site follows the restored hub")
        assert site.generation > ahead
        await until(lambda: in_sync(hub, site), "in sync")
        audit = await hub.call("GET", "/api/v1/audit?limit=1000")
        assert [row["target"] for row in audit if row["action"] == "site.jump_generation"] == ["daegu"]
        assert (await hub.call("GET", "/api/v1/audit/verify"))["is_intact"]
        # A claim to be absurdly far ahead is not followed.
        await site.heartbeat(applied_generation=site.generation + GENERATION_JUMP_MAX * 2)
        await until(lambda: seen_absurd(hub), "counted as absurd")
        assert (await hub.call("GET", "/api/v1/sites/daegu"))["desired_generation"] < GENERATION_JUMP_MAX


async def seen_absurd(hub):
    return await hub.metric("madang_hub_heartbeats_total", verdict="absurd") >= 1


def test_heartbeats_that_lie_or_come_from_nowhere_change_nothing(tmp_path):
    run(lying_heartbeats(tmp_path))


async def lying_heartbeats(folder):
    async with running_hub(folder) as hub:
        await enrol(hub, "daegu")
        eyes = hub.bus()
        async with connected(eyes):
            beat = wire.Heartbeat(
                site="daegu",
                boot_id="b",
                seq=1,
                sent_at_s=0.0,
                applied_generation=1,
                state_hash="x",
                outbox_depth=0,
                oldest_unsent_age_s=0.0,
            )
            await eyes.publish("hb.gumi", wire.encode(beat))
            await eyes.publish("hb.daegu", b"\xff not json")
            huge = {"applied_generation": 2**63, "seq": 2**70, "outbox_depth": -1, "boot_id": "b" * 65}
            for name, value in huge.items():
                await eyes.publish("hb.daegu", wire.encode(msgspec.structs.replace(beat, **{name: value})))
            await eyes.publish("hb.gumi", wire.encode(msgspec.structs.replace(beat, site="gumi")))

            async def counted():
                refused = await hub.metric("madang_hub_heartbeats_total", verdict="refused")
                unknown = await hub.metric("madang_hub_heartbeats_total", verdict="unknown_site")
                return (refused, unknown) == (6, 1)

            await until(counted, "refused and unknown are counted")
            assert (await hub.call("GET", "/api/v1/sites/daegu"))["state"] == "never_seen"


def test_statuses_are_shown_with_their_age_and_survive_a_restart(tmp_path):
    run(statuses(tmp_path))


async def statuses(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "daegu") as (leaf,), fake_site(leaf) as site:
        status = wire.SiteStatus(
            site="daegu",
            boot_id="b",
            seq=1,
            sent_at_s=0.0,
            chips=(msgspec.Raw(b'{"chip_id":"cpu0","node":"n1","kind":"cpu"}'),),
            replicas=(msgspec.Raw(b'{"replica_id":"r1","node":"n1","phase":"ready"}'),),
        )

        async def shown():
            await site.bus.publish("status.daegu.observed", wire.encode(status))
            return await hub.call("GET", "/api/v1/chips")

        chips = await until(shown, "chips are shown")
        assert chips[0]["site"] == "daegu"
        assert 0 <= chips[0]["observed_age_s"] < 5
        await hub.stop()
        await hub.start()
        replicas = await until(lambda: hub.call("GET", "/api/v1/replicas"), "shown again from the stream")
        assert replicas[0]["replica_id"] == "r1"
        nodes = await hub.call("GET", "/api/v1/nodes")
        assert (nodes[0]["node"], nodes[0]["chips"], nodes[0]["replicas_ready"]) == ("n1", 1, 1)


def test_without_nats_changes_are_taken_and_published_when_it_comes(tmp_path):
    run(nats_comes_late(tmp_path))


async def nats_comes_late(folder):
    hub = Hub(folder)
    try:
        await hub.start()
        answer = await hub.client.get("/readyz")
        assert answer.status_code == 503
        assert str(hub.settings.nats_port) in answer.json()["problems"][0]
        await enrol(hub, "daegu")
        await hub.call("POST", "/api/v1/tenants", TENANT)
        await hub.call("POST", "/api/v1/sites/daegu/resync", expect=(503,))
        await hub.nats.start()
        await until(hub.is_ready, "ready")
        eyes = hub.bus()
        async with connected(eyes):
            assert "$KV.desired.daegu.tenant.city" in await bucket(eyes)
        # kill -9 of the server under a running hub
        hub.nats.kill()
        await until(lambda: not_ready(hub), "not ready")
        await make_key(hub, "offline")
        await hub.nats.start()
        await until(hub.is_ready, "ready again")
        eyes = hub.bus()
        async with connected(eyes):
            await until(lambda: holds_subject(eyes, "$KV.desired.daegu.key.offline"), "published")
            usage = await js_api(eyes, "STREAM.INFO.USAGE_ALL")
            wanted = usage_stream(hub.settings.usage_stream_bytes_max)
            assert {key: usage["config"].get(key) for key in wanted} == wanted
    finally:
        await hub.stop()
        hub.nats.kill()
        await hub.client.aclose()
        hub.events.close()


async def not_ready(hub):
    return not await hub.is_ready()


async def holds_subject(eyes, subject):
    return subject in await bucket(eyes)


def test_the_program_killed_at_any_moment_loses_no_change_that_was_confirmed(tmp_path):
    run(kill_hub(tmp_path))


async def kill_hub(folder):
    hub = Hub(folder)
    config = folder / "hub.toml"
    fields = {name: getattr(hub.settings, name) for name in hub.settings.__struct_fields__}
    lines = [
        f"{key} = {value!r}".replace("'", '"') for key, value in fields.items() if isinstance(value, (int, float, str))
    ]
    config.write_text("\n".join([f'state_dir = "{hub.settings.state_dir}"', *lines]) + "\n")
    log = (folder / "program.log").open("ab")

    def launch():
        argv = [sys.executable, "-m", "madang.hub", "--config", str(config)]
        return subprocess.Popen(argv, stdout=log, stderr=log)

    await hub.nats.start()
    program = launch()
    hub.task = asyncio.create_task(asyncio.sleep(1000))
    try:
        await until(hub.is_serving, "serves")
        await enrol(hub, "daegu")
        await hub.call("POST", "/api/v1/tenants", TENANT)
        confirmed = []
        for round_number in range(depth(1, 6)):
            tasks = [asyncio.create_task(make_key(hub, f"k{round_number}x{n}")) for n in range(20)]
            await until(lambda tasks=tasks: any(task.done() for task in tasks), "one is confirmed")
            os.kill(program.pid, signal.SIGKILL)
            program.wait()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            confirmed += [result["key_id"] for result in results if isinstance(result, dict)]
            program = launch()
            await until(hub.is_serving, "serves again")
        keys = {key["key_id"] for key in await hub.call("GET", "/api/v1/keys")}
        assert set(confirmed) <= keys
        assert confirmed
        verdict = await hub.call("GET", "/api/v1/audit/verify")
        assert verdict["is_intact"]
        await until(hub.is_ready, "ready")
        eyes = hub.bus()
        async with connected(eyes):
            held = await bucket(eyes)
            assert {f"$KV.desired.daegu.key.{key}" for key in keys} <= set(held)
        program.terminate()
        assert await asyncio.to_thread(program.wait, 5) == 0
    finally:
        program.kill()
        program.wait()
        log.close()
        await hub.stop()
        hub.nats.kill()
        await hub.client.aclose()
        hub.events.close()
