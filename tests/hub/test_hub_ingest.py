"""Usage from real leaf sites into the ledger: once each under repeats, forgery, garbage and kills."""

import asyncio

import msgspec
import pytest
from tests.hub.hub_harness import connected, enrol, js_api, leaf_sites, running_hub, until
from tests.hub.usage_events import make_batch, make_event

from madang.core import Unavailable

pytestmark = pytest.mark.peer


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 115))


async def send(bus, site, data, message_id):
    """Forward like a site does: until the hub's stream confirms; returns whether it was a repeat."""
    headers = {"Nats-Msg-Id": message_id}
    while True:
        try:
            answer = await bus.request(f"usage.{site}.batch", data, timeout_s=1, headers=headers)
        except Unavailable:
            await asyncio.sleep(0.05)
            continue
        decoded = msgspec.json.decode(answer.data)
        # A refusal carries a sequence number too, which is 0.
        if "error" not in decoded:
            return decoded.get("duplicate", False)


async def totals(hub):
    return (await hub.call("GET", "/api/v1/status"))["ledger"]


async def has(hub, **wanted):
    found = await totals(hub)
    return all(found[key] == value for key, value in wanted.items())


def test_usage_is_entered_once_whatever_is_repeated(tmp_path):
    run(repeats(tmp_path))


async def repeats(folder, **settings):
    async with running_hub(folder, **settings) as hub, leaf_sites(hub, "daegu", "gumi") as (leaf_a, leaf_b):
        a, b = leaf_a.bus(), leaf_b.bus()
        async with connected(a), connected(b):
            events = [make_event(number) for number in range(500)]
            await send(a, "daegu", make_batch("daegu", *events), "m1")
            assert await send(a, "daegu", make_batch("daegu", *events), "m1") is True
            # Other batches with the same events, as after a restored outbox.
            await send(a, "daegu", make_batch("daegu", *events[100:300]), "m2")
            await send(a, "daegu", make_batch("daegu", *events[250:], make_event(999)), "m3")
            # The second attempt was served elsewhere, and arrives before the first.
            await send(b, "gumi", make_batch("gumi", make_event(7000, 2, site="gumi", completion_tokens=50)), "n1")
            await send(a, "daegu", make_batch("daegu", make_event(7000, 1, completion_tokens=3)), "m4")
            await until(lambda: has(hub, events=503, requests=502, refused=0), "all are in the ledger")
            usage = await hub.call("GET", "/api/v1/usage?group_by=site")
            assert {row["site"]: row["completion_tokens"] for row in usage["rows"]} == {"daegu": 501 * 5, "gumi": 50}
            assert usage["totals"]["superseded"] == 1
            assert await hub.metric("madang_hub_ledger_events_total", result="inserted") == 503
            eyes = hub.bus()
            async with connected(eyes):
                await until(lambda: is_all_acknowledged(eyes), "nothing waits for an acknowledgement")


async def is_all_acknowledged(eyes):
    info = await js_api(eyes, "CONSUMER.INFO.USAGE_ALL.ingest")
    return info["num_ack_pending"] == 0 and info["num_pending"] == 0


def test_forged_and_malformed_usage_is_recorded_and_stops_nothing(tmp_path):
    run(forged(tmp_path))


async def forged(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "daegu") as (leaf,):
        a = leaf.bus()
        async with connected(a):
            await send(a, "daegu", make_batch("gumi", make_event(1, site="gumi")), "m1")
            await send(a, "daegu", make_batch("daegu", make_event(2, site="gumi"), make_event(3)), "m2")
            await send(a, "daegu", make_batch("daegu", make_event(4, entry_site="gumi")), "m3")
            await send(a, "daegu", b"\xff\xfe garbage", "m4")
            await send(a, "daegu", make_batch("daegu", make_event(3, completion_tokens=10**6)), "m5")
            await send(a, "daegu", make_batch("daegu", make_event(5)), "m6")
            await until(lambda: has(hub, events=2, refused=5), "good ones in, bad ones recorded")
            refused = await hub.call("GET", "/api/v1/usage/refused")
            assert {row["subject_site"] for row in refused} == {"daegu"}
            assert sorted(row["what"] for row in refused) == ["batch", "batch", "event", "event", "event"]
            eyes = hub.bus()
            async with connected(eyes):
                await until(lambda: is_all_acknowledged(eyes), "bad messages come no more")
                # Whoever holds the hub's own rights still cannot write for a site that does not exist.
                await send(eyes, "nowhere", make_batch("daegu", make_event(9)), "x1")
                await until(lambda: has(hub, events=2, refused=6), "refused too")


def test_usage_survives_kills_of_server_and_program(tmp_path):
    run(kills(tmp_path))


async def kills(folder):
    count, batches = 40, 60
    async with running_hub(folder) as hub, leaf_sites(hub, "daegu", "gumi") as leafs:

        async def forward(leaf):
            bus = leaf.bus()
            async with connected(bus):
                for batch in range(batches):
                    events = [
                        make_event(batch * count + n, site=leaf.name, entry=leaf.name, completion_tokens=n)
                        for n in range(count)
                    ]
                    await send(bus, leaf.name, make_batch(leaf.name, *events), f"{leaf.name}-{batch}")

        async with asyncio.TaskGroup() as group:
            for leaf in leafs:
                group.create_task(forward(leaf))
            for wanted in (10 * count, 40 * count):
                await until(lambda wanted=wanted: at_least(hub, wanted), f"{wanted} events are in", 30)
                hub.nats.kill()
                await hub.stop()
                await hub.nats.start()
                await hub.start()
        total = 2 * count * batches
        await until(lambda: has(hub, events=total, requests=total, refused=0), "all events are in", 30)
        usage = await hub.call("GET", "/api/v1/usage?group_by=site")
        sums = [row["completion_tokens"] for row in usage["rows"]]
        assert sums == [batches * sum(range(count))] * 2


async def at_least(hub, wanted):
    return (await totals(hub))["events"] >= wanted


def test_a_lost_consumer_and_a_lost_stream_are_made_again(tmp_path):
    run(lost_consumer(tmp_path))


async def lost_consumer(folder):
    async with running_hub(folder) as hub:
        await enrol(hub, "daegu")
        eyes = hub.bus()
        async with connected(eyes):
            await send(eyes, "daegu", make_batch("daegu", make_event(1)), "m1")
            await until(lambda: has(hub, events=1), "the first is in")
            await js_api(eyes, "CONSUMER.DELETE.USAGE_ALL.ingest")
            await send(eyes, "daegu", make_batch("daegu", make_event(2)), "m2")
            await until(lambda: has(hub, events=2), "the second is in, the first not twice")
            await js_api(eyes, "STREAM.DELETE.USAGE_ALL")
            await until(lambda: stream_is_back(eyes), "the stream is back")
            await send(eyes, "daegu", make_batch("daegu", make_event(3)), "m3")
            await until(lambda: has(hub, events=3), "the third is in")


async def stream_is_back(eyes):
    return "error" not in await js_api(eyes, "STREAM.INFO.USAGE_ALL")


def test_a_ledger_restored_from_an_older_copy_is_filled_from_the_stream(tmp_path):
    run(restore_ledger(tmp_path))


async def restore_ledger(folder):
    async with running_hub(folder) as hub:
        eyes = hub.bus()
        async with connected(eyes):
            for number in range(3):
                await send(eyes, "daegu", make_batch("daegu", make_event(number)), f"m{number}")
            await until(lambda: has(hub, events=3), "three are in")
            await hub.stop()
            copy = {path.name: path.read_bytes() for path in hub.settings.state_dir.glob("hub.db*")}
            await hub.start()
            for number in range(3, 9):
                await send(eyes, "daegu", make_batch("daegu", make_event(number)), f"m{number}")
            await until(lambda: has(hub, events=9), "nine are in")
            await until(lambda: is_all_acknowledged(eyes), "and acknowledged")
            await hub.stop()
            for path in hub.settings.state_dir.glob("hub.db*"):
                path.unlink()
            for name, data in copy.items():
                (hub.settings.state_dir / name).write_bytes(data)
            await hub.start()
            await until(lambda: has(hub, events=9, refused=0), "nine are in again")


def test_nothing_can_be_deleted_from_the_usage_stream(tmp_path):
    run(append_only(tmp_path))


async def append_only(folder):
    async with running_hub(folder) as hub:
        eyes = hub.bus()
        async with connected(eyes):
            await send(eyes, "daegu", make_batch("daegu", make_event(1)), "m1")
            assert "error" in await js_api(eyes, "STREAM.PURGE.USAGE_ALL")
            assert "error" in await js_api(eyes, "STREAM.MSG.DELETE.USAGE_ALL", {"seq": 1})
            assert (await js_api(eyes, "STREAM.INFO.USAGE_ALL"))["state"]["messages"] == 1


def test_a_full_stream_pushes_back_and_loses_nothing(tmp_path):
    run(full_stream(tmp_path))


async def full_stream(folder):
    async with running_hub(folder, usage_stream_bytes_max=200_000) as hub:
        eyes = hub.bus()
        async with connected(eyes):
            accepted = 0
            for number in range(100):
                data = make_batch("daegu", *(make_event(number * 20 + n) for n in range(20)))
                answer = await eyes.request("usage.daegu.batch", data, timeout_s=3)
                decoded = msgspec.json.decode(answer.data)
                if "error" in decoded:
                    assert decoded["error"]["err_code"] == 10077
                    break
                accepted += 20
            assert 0 < accepted < 2000
            await until(lambda: has(hub, events=accepted), "all that was accepted is in")


def test_a_server_with_too_little_room_is_named_in_readiness(tmp_path):
    run(too_little_room(tmp_path))


async def too_little_room(folder):
    async with running_hub(folder, usage_stream_bytes_max=2**20) as hub:
        await hub.stop()
        # The setting was raised and nats-server not restarted.
        hub.settings = msgspec.structs.replace(hub.settings, usage_stream_bytes_max=2**40)
        await hub.start()

        async def named():
            problems = (await hub.client.get("/readyz")).json()["problems"]
            return any("too little for stream USAGE_ALL" in text and "restart it" in text for text in problems)

        await until(named, "readiness names the stream and the next step")
        assert (await hub.client.get("/healthz")).status_code == 200
