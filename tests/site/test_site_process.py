"""Real site programs against a real hub over real leaf links: apply, forward, agree on keys, survive kill -9."""

import asyncio
import os
import signal
import time

import msgspec
import pytest
from tests.depth import depth
from tests.hub.hub_harness import connected, until
from tests.site.usage_files import Worker, records

from madang.core import SiteId, TenantId
from madang.model import Residency, ResidencyScope, Tenant
from madang.wire import bus as wire

pytestmark = pytest.mark.peer

ANYWHERE = {"scope": "any", "places": []}
DAEGU_ONLY = {"scope": "site", "places": ["daegu"]}


def make_tenant(name, residency=ANYWHERE):
    return {"tenant_id": name, "title": name, "residency": {**residency, "is_transit_granted": False}}


async def is_in_sync(hub, *names):
    rows = (await hub.call("GET", "/api/v1/status"))["sites"]
    return all(row["in_sync"] for row in rows if row["name"] in names)


def tenants_of(site):
    return {tenant.tenant_id for tenant in site.snapshot().tenants}


async def ledger_events(hub):
    return (await hub.call("GET", "/api/v1/status"))["ledger"]["events"]


def test_what_the_hub_wants_is_applied_and_fed_to_the_gateway(world):
    hub, daegu, gumi = world.hub, world.daegu, world.gumi

    async def play():
        await hub.call("POST", "/api/v1/tenants", make_tenant("clinic", DAEGU_ONLY))
        await hub.call("POST", "/api/v1/tenants", make_tenant("parts"))
        key = await hub.call("POST", "/api/v1/keys", {"tenant_id": "clinic", "key_id": "k1"})
        await until(lambda: tenants_of(daegu) == {"clinic", "parts"}, "daegu holds both tenants")
        await until(lambda: tenants_of(gumi) == {"parts"}, "gumi holds one tenant")
        for site in (daegu, gumi):
            await until(
                lambda site=site: [k.key_id for k in site.snapshot().keys] == ["k1"], "every site holds the key"
            )
        await until(lambda: is_in_sync(hub, "daegu", "gumi"), "in sync")
        await hub.call("POST", "/api/v1/keys/k1/revoke")
        await until(lambda: all(s.snapshot().keys[0].is_revoked for s in (daegu, gumi)), "revoked everywhere")
        shown = await daegu.get("/api/v1/keys")
        assert "sha256" not in shown[0]
        assert key["api_key"] not in str(shown)
        await until(lambda: is_in_sync(hub, "daegu", "gumi"), "in sync again")

    world.run(play())


@pytest.mark.deep
def test_both_sites_hold_the_same_sessions_and_a_restart_keeps_them(world):
    daegu, gumi = world.daegu, world.gumi

    def sessions(site):
        live = site.live()
        peers = [] if live is None else [peer for peer in live.peers if peer.site in ("daegu", "gumi")]
        return {session.kid: session for peer in peers for session in peer.sessions}

    async def play():
        await until(lambda: sessions(daegu) and sessions(daegu) == sessions(gumi), "both derived the same")
        before = sessions(gumi)
        assert all(len(session.key) == 32 for session in before.values())
        daegu.kill()
        daegu.start()
        await until(daegu.is_linked, "daegu is back")
        await until(lambda: daegu.live().boot_id == daegu_boot(daegu), "a new life writes the feed")
        await until(lambda: sessions(daegu) == before, "with the sessions of the one before")
        peer = daegu.live().peers[0]
        assert peer.url == gumi.settings.peer_url
        await until(lambda: 0 <= daegu.live().peers[0].digest_age_s < 0.5, "digests are fresh")
        (row,) = await daegu.get("/api/v1/peers")
        assert next(iter(before.values())).key.hex() not in str(row)

    world.run(play())


def daegu_boot(site):
    return [event["boot_id"] for event in site.events() if event["event"] == "site_serving"][-1]


def test_usage_reaches_the_ledger_exactly_once_whenever_the_site_is_killed(world):
    hub, daegu = world.hub, world.daegu

    async def play():
        before = await ledger_events(hub)
        worker, number = Worker(daegu.settings.usage_dir, boot="c0"), 10_000
        for life in range(depth(2, 8)):
            await until(daegu.is_serving, "daegu serves")
            for burst in range(10):
                worker.write(records(*range(number, number + 40), started_at_s=time.time()))
                number += 40
                # Not a wait for something to be done: the kills shall hit every stage of the way.
                await asyncio.sleep(0.008 * (life + 1) * (burst % 3))
            if life % 2:
                worker.rotate()
            daegu.kill()
            daegu.start()
        await until(daegu.is_linked, "daegu is back")
        worker.write(records(number)[:50])
        worker.die()
        count = number - 10_000
        await until(lambda: has_events(hub, before + count), f"{count} events in the ledger")
        totals = (await hub.call("GET", "/api/v1/usage?group_by=site"))["totals"]
        assert totals["completion_tokens"] == sum(range(10_000, number))
        await until(lambda: not list(daegu.settings.usage_dir.glob("*.log")), "segments are gone")
        status = await daegu.status()
        assert status["outbox_depth"] == 0
        own = await daegu.get("/api/v1/usage")
        assert sum(row["events"] for row in own) == count

    world.run(play())


async def has_events(hub, count):
    found = await ledger_events(hub)
    assert found <= count, "an event was counted twice"
    return found == count


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_usage_and_changes_wait_out_a_lost_hub(world, fault):
    """`killed`: connections are refused. `stopped`: they stay open and nothing passes, as in a hole."""
    hub, daegu = world.hub, world.daegu
    tenant = f"late-{fault}"

    async def play():
        before = await ledger_events(hub)
        process = hub.nats.process
        if fault == "killed":
            hub.nats.kill()
        else:
            process.send_signal(signal.SIGSTOP)
        worker = Worker(daegu.settings.usage_dir, boot="d0" if fault == "killed" else "d1")
        number = 50_000 if fault == "killed" else 60_000
        worker.write(records(*range(number, number + 700)))
        await hub.call("POST", "/api/v1/tenants", make_tenant(tenant))
        await until(lambda: is_waiting(daegu), "usage waits and the hub is said to be away", 25)
        assert tenants_of(daegu) >= {"clinic", "parts"}, "what was applied stays"
        if fault == "killed":
            await hub.nats.start()
        else:
            process.send_signal(signal.SIGCONT)
        loop = asyncio.get_running_loop()
        healed_s = loop.time()
        await until(lambda: has_events(hub, before + 700), "usage arrives", 20)
        await until(lambda: tenant in tenants_of(daegu), "the change arrives", 20)
        print(f"{fault}: {loop.time() - healed_s:.2f} s after the heal")
        await until(lambda: is_flowing(daegu), "all is well again")
        worker.die()

    world.run(play())


async def is_waiting(site):
    status = await site.status()
    return (
        status["outbox_depth"] == 700
        and status["hub_link"]["state"] == "unreachable"
        and status["usage_trouble"] in ("hub_unreachable", "no_answer")
    )


async def is_flowing(site):
    status = await site.status()
    return status["outbox_depth"] == 0 and status["usage_trouble"] == "" and status["hub_link"]["state"] == "connected"


def test_its_own_nats_server_may_die(world):
    hub, daegu = world.hub, world.daegu

    async def play():
        before = await ledger_events(hub)
        daegu.nats.kill()
        worker = Worker(daegu.settings.usage_dir, boot="e0")
        worker.write(records(*range(70_000, 70_100)))
        await until(lambda: is_cut_off(daegu), "it says so")
        await daegu.nats.start()
        await until(lambda: has_events(hub, before + 100), "usage arrives")
        await until(lambda: is_flowing(daegu), "all is well again")
        worker.die()

    world.run(play())


async def is_cut_off(site):
    answer = await site.client.get("/readyz")
    return answer.status_code == 503 and "NATS server" in answer.text and (await site.status())["outbox_depth"] == 100


def test_a_wiped_site_gets_everything_again(world):
    hub, daegu = world.hub, world.daegu

    async def play():
        wanted = tenants_of(daegu)
        daegu.kill(signal.SIGTERM)
        for path in daegu.folder.glob("site.db*"):
            path.unlink()
        (daegu.settings.feed_dir / "snapshot.msgpack").unlink()
        daegu.start()
        await until(daegu.is_serving, "daegu serves")
        await until(lambda: daegu.snapshot() is not None and tenants_of(daegu) == wanted, "all is there again", 30)
        await until(lambda: is_in_sync(hub, "daegu"), "in sync")

    world.run(play())


def test_a_malformed_item_is_terminated_and_holds_nothing_up(world):
    hub, daegu = world.hub, world.daegu
    generation = 1_000_000

    def item(name, **changes):
        residency = Residency(scope=ResidencyScope.ANY)
        fact = Tenant(tenant_id=TenantId(name), title=name, residency=residency)
        made = wire.make_desired_item(SiteId("daegu"), "tenant", name, generation, fact)
        return wire.encode(msgspec.structs.replace(made, **changes))

    async def play():
        async with connected(hub.bus()) as bus:
            for name, data in (
                ("bad1", b"not json"),
                ("bad2", item("bad2", sha256="0" * 64)),
                ("bad3", item("bad3", site=SiteId("gumi"))),
                ("good", item("good")),
            ):
                await bus.request(wire.desired_subject("daegu", "tenant", name), data, timeout_s=5)
        await until(lambda: "good" in tenants_of(daegu), "the good one is applied")
        refused = await daegu.get("/api/v1/refused")
        assert {row["subject"].rsplit(".", 1)[1] for row in refused} == {"bad1", "bad2", "bad3"}
        # The hub does not want it: its generation goes above ours, and a resync takes it away.
        await until(lambda: "good" not in tenants_of(daegu), "repaired by resync", 30)
        await until(lambda: is_in_sync(hub, "daegu"), "in sync")
        assert (await daegu.status())["applied_generation"] >= generation

    world.run(play())


def test_commands_are_answered_with_a_typed_reply(world):
    async def ask(bus, verb, data):
        subject = wire.reply_subject("daegu", os.urandom(8).hex())
        await bus.publish(wire.command_subject("daegu", verb), data, reply=subject)
        async with asyncio.timeout(5):
            while True:
                message = await bus.test_inbox.next()
                if message.subject == subject:
                    return wire.decode(message.data, wire.CommandReply)

    async def play():
        bus = world.hub.bus()
        bus.test_inbox = bus.listen("reply.daegu.>", pending_max=100)
        async with connected(bus):
            older = wire.ResyncPart(site=SiteId("daegu"), resync_id="r", part=0, parts=1, generation=0, items=())
            assert (await ask(bus, "resync", wire.encode(older))).code == "older"
            foreign = msgspec.structs.replace(older, site=SiteId("gumi"), resync_id="r2")
            assert (await ask(bus, "resync", wire.encode(foreign))).code == "invalid"
            assert (await ask(bus, "resync", b"junk")).code == "invalid"
            assert (await ask(bus, "explode", b"")).code == "unknown_command"

    world.run(play())


def test_a_part_of_a_snapshot_alone_changes_nothing(world):
    hub, daegu = world.hub, world.daegu

    async def play():
        before = tenants_of(daegu)
        async with connected(hub.bus()) as bus:
            part = wire.ResyncPart(site=SiteId("daegu"), resync_id="r3", part=1, parts=2, generation=10**9, items=())
            await bus.publish(wire.command_subject("daegu", "resync"), wire.encode(part))
        await hub.call("POST", "/api/v1/tenants", make_tenant("after-part"))
        await until(lambda: "after-part" in tenants_of(daegu), "items still come")
        assert tenants_of(daegu) == before | {"after-part"}

    world.run(play())


def test_metrics_health_and_the_orderly_stop(world):
    daegu = world.daegu

    async def play():
        text = (await daegu.client.get("/metrics")).text
        for name in ("madang_site_hub_linked 1.0", "madang_site_outbox_events 0.0", "madang_site_usage_imported_total"):
            assert name in text
        assert (await daegu.client.get("/readyz")).status_code == 200
        assert (await daegu.client.get("/api/v1/status", headers={"authorization": "Bearer no"})).status_code == 401
        assert "/api/v1/nodes/{name}/{verb}" in (await daegu.client.get("/openapi.json")).text
        assert (await daegu.client.post("/api/v1/nodes/nowhere/drain")).status_code == 404
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        assert await asyncio.to_thread(daegu.kill, signal.SIGTERM) == 0
        assert loop.time() - started_s < 5
        assert daegu.events()[-1]["event"] == "site_stopped"
        daegu.start()
        await until(daegu.is_linked, "daegu is back")

    world.run(play())
