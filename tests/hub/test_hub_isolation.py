"""What a site can and cannot do at the hub, over real leaf links: the probe matrix, revocation, the ack leak."""

import asyncio
import contextlib

import msgspec
import pytest
from tests.hub.hub_harness import DEADLINE_S, connected, enrol, fails_to_arrive, js_api, leaf_sites, running_hub, until

from madang.core import Unavailable
from madang.runtime.bus import NoResponders
from madang.wire.bus import CommandReply, encode
from madang.wire.leases import LeaseAsk, decode_answer, encode_lease

pytestmark = pytest.mark.peer


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 115))


async def usage_passes(bus, site):
    """Whether the site's own usage is taken by the hub's stream."""
    try:
        answer = await bus.request(f"usage.{site}.probe", b"{}", timeout_s=1)
    except Unavailable:
        return False
    return "seq" in msgspec.json.decode(answer.data)


async def holds_no_secret(inbox, wait_s=0.2):
    """Whether nothing of B's or the hub's came; what A itself said is seen by A's own server."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while True:
                message = await inbox.next()
                assert b"secret" not in message.data, f"it saw {message.subject}"
    return True


def test_a_site_does_its_own_and_nothing_of_anybody_else(tmp_path):
    run(probe_everything(tmp_path))


async def probe_everything(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "site_a", "site_b") as (leaf_a, leaf_b):
        eyes, a, b = hub.bus(), leaf_a.bus(), leaf_b.bus()
        seen = eyes.listen(">", pending_max=10000)
        spied = [
            a.listen(s, pending_max=1000)
            for s in ("cmd.site_b.>", "$KV.>", "hb.*", "status.>", "reply.>", "usage.>", "lease.>")
        ]
        spied_inbox = a.listen("_INBOX.site_b.>", pending_max=1000)
        a_commands = a.listen("cmd.site_a.>", pending_max=10)
        a_digests = a.listen("digest.*", pending_max=10)
        async with connected(eyes), connected(a), connected(b):
            await until(lambda: usage_passes(a, "site_a"), "usage of A passes")
            await until(lambda: usage_passes(b, "site_b"), "usage of B passes")
            await may_do_its_own(hub, eyes, a, b, a_commands, a_digests)
            await cannot_say_as_b(eyes, a, seen)
            await cannot_read_or_change_b(eyes, a)
            await eyes.publish("cmd.site_b.secret", b"secret")
            await b.publish("hb.site_b", b"secret")
            await b.publish("status.site_b.observed", b"secret")
            await b.publish("lease.site_b", b"secret")
            await eyes.publish("$KV.desired.site_b.key.k9", b"secret")
            await eyes.publish("_INBOX.site_b.x", b"secret")
            for inbox in [*spied, spied_inbox]:
                await holds_no_secret(inbox)
            await creds_are_for_leafs_only(hub, leaf_a)


async def may_do_its_own(hub, eyes, a, b, a_commands, a_digests):
    info = await a.request("$JS.hub.API.CONSUMER.INFO.KV_desired.site_a", b"", timeout_s=3)
    assert msgspec.json.decode(info.data)["name"] == "site_a"
    own = await a.request("$JS.hub.API.DIRECT.GET.KV_desired.$KV.desired.site_a.site.site_a", b"", timeout_s=3)
    assert b'"item_id":"site_a"' in own.data
    await b.publish("digest.site_b", b"load of b")
    async with asyncio.timeout(3):
        assert (await a_digests.next()).data == b"load of b"
    ask = encode_lease(LeaseAsk(site="site_a", life="1", pots=()))
    assert decode_answer((await a.request("lease.site_a", ask, timeout_s=3)).data).life == "1"
    answers = asyncio.create_task(hub_asks(eyes, a, a_commands))
    assert await answers == CommandReply(is_ok=True)


async def hub_asks(eyes, a, a_commands):
    """The way the hub's own caller asks, with the site answering under its own name."""
    await eyes.publish("cmd.site_a.ping", b"{}", reply="reply.site_a.n1")
    async with asyncio.timeout(3):
        message = await a_commands.next()
    assert message.reply == "reply.site_a.n1"
    await a.publish(message.reply, encode(CommandReply(is_ok=True)))
    return CommandReply(is_ok=True)


async def cannot_say_as_b(eyes, a, seen):
    forged = b"forged by a"
    subjects = [
        "usage.site_b.batch",
        "status.site_b.observed",
        "hb.site_b",
        "digest.site_b",
        "reply.site_b.n1",
        "lease.site_b",
        "lease.site_a.more",
        "cmd.site_b.resync",
        "cmd.site_a.resync",
        "$KV.desired.site_b.key.k1",
        "$KV.desired.site_a.key.k1",
        "$JS.hub.API.$KV.desired.site_b.key.k1",
        "$JS.hub.API.$KV.desired.site_a.key.k1",
        "$JS.API.$KV.desired.site_a.key.k1",
        "_INBOX.hub.anything",
        "$SYS.REQ.CLAIMS.UPDATE",
        "local.anything",
    ]
    for subject in subjects:
        await a.publish(subject, forged)
    # What is in order is forwarded in order: once this came, nothing before it is still on its way.
    await a.publish("hb.site_a", b"last word")
    arrived = set()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            message = await seen.next()
            if message.data == forged:
                arrived.add(message.subject)
            if message.data == b"last word":
                break
    assert arrived == set()
    answer = await eyes.request(
        "$JS.API.STREAM.MSG.GET.KV_desired", b'{"last_by_subj":"$KV.desired.site_a.key.k1"}', timeout_s=3
    )
    assert "error" in msgspec.json.decode(answer.data)


async def cannot_read_or_change_b(eyes, a):
    before = await js_api(eyes, "STREAM.INFO.KV_desired")
    consumer = msgspec.json.encode(
        {"stream_name": "KV_desired", "config": {"durable_name": "site_a", "deliver_subject": "x"}}
    )
    requests = {
        "$JS.hub.API.DIRECT.GET.KV_desired.$KV.desired.site_b.site.site_b": b"",
        "$JS.hub.API.DIRECT.GET.KV_desired": b'{"last_by_subj":"$KV.desired.site_b.site.site_b"}',
        "$JS.hub.API.STREAM.MSG.GET.KV_desired": b'{"last_by_subj":"$KV.desired.site_b.site.site_b"}',
        "$JS.hub.API.STREAM.INFO.KV_desired": b"",
        "$JS.hub.API.STREAM.INFO.USAGE_ALL": b"",
        "$JS.hub.API.STREAM.PURGE.KV_desired": b"",
        "$JS.hub.API.STREAM.DELETE.USAGE_ALL": b"",
        "$JS.hub.API.STREAM.CREATE.EVIL": b'{"name":"EVIL","subjects":["usage.>"]}',
        "$JS.hub.API.CONSUMER.CREATE.KV_desired.site_a": consumer,
        "$JS.hub.API.CONSUMER.DURABLE.CREATE.KV_desired.site_a": consumer,
        "$JS.hub.API.CONSUMER.DELETE.KV_desired.site_b": b"",
        "$JS.hub.API.CONSUMER.MSG.NEXT.KV_desired.site_b": b'{"batch":10,"no_wait":true}',
        "$JS.hub.API.CONSUMER.INFO.KV_desired.site_b": b"",
        "$JS.hub.API.CONSUMER.MSG.NEXT.USAGE_ALL.ingest": b"1",
        "$JS.site_b.API.INFO": b"",
        "$JS.hub.API.INFO": b"",
        "$SYS.REQ.SERVER.PING": b"",
    }
    results = await asyncio.gather(*(fails_to_arrive(a, subject, data) for subject, data in requests.items()))
    answered = [subject for subject, silent in zip(requests, results, strict=True) if not silent]
    assert answered == []
    # This one is answered by the site's own server, about itself alone.
    answer = await a.request("$SYS.REQ.ACCOUNT.PING.CONNZ", b"", timeout_s=3)
    assert msgspec.json.decode(answer.data)["server"]["name"] == "site_a"
    after = await js_api(eyes, "STREAM.INFO.KV_desired")
    assert (before["created"], before["state"]["messages"]) == (after["created"], after["state"]["messages"])
    assert (await js_api(eyes, "STREAM.INFO.USAGE_ALL")).get("error") is None
    assert "site_b" in (await js_api(eyes, "CONSUMER.NAMES.KV_desired"))["consumers"]
    assert "error" in await js_api(eyes, "STREAM.INFO.EVIL")


async def creds_are_for_leafs_only(hub, leaf):
    target = hub.settings.state_dir / "nats" / "as-client.creds"
    target.write_text(leaf.creds)
    intruder = hub.bus(creds="as-client.creds", name=leaf.name)
    task = asyncio.create_task(intruder.run())
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await intruder.wait_connected()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        intruder._log._stream.close()


def test_a_revoked_site_loses_its_link_at_once_and_for_good_and_others_stay(tmp_path):
    run(revoke(tmp_path))


async def revoke(folder):
    async with running_hub(folder) as hub, leaf_sites(hub, "site_a", "site_b") as (leaf_a, leaf_b):
        a, b, eyes = leaf_a.bus(), leaf_b.bus(), hub.bus()
        async with connected(a), connected(b), connected(eyes):
            await until(lambda: usage_passes(a, "site_a"), "usage of A passes")
            await until(lambda: usage_passes(b, "site_b"), "usage of B passes")
            await hub.call("POST", "/api/v1/sites/site_a/revoke")
            await until(lambda: is_unlinked(leaf_a), "A's link is gone", 3)
            assert await usage_passes(b, "site_b")
            assert await leaf_b.is_linked()
            await until(lambda: forgot(eyes, "site_a"), "the bucket and the consumers forgot A")
            # The hub's server comes back with the JWT of before the revocation in its configuration.
            hub.nats.kill()
            await hub.nats.start()
            await until(leaf_b.is_linked, "B is back")
            await until(lambda: usage_passes(b, "site_b"), "usage of B passes again")
            await until(hub.is_ready, "hub is ready again")
            assert await is_unlinked(leaf_a)
            # A new identity under the old name is another site.
            again = await enrol(hub, "site_a", identity_ed25519="f" * 64)
            leaf_a.creds_file.write_text(again["creds"])
            leaf_a.nats.kill()
            await leaf_a.nats.start()
            await until(leaf_a.is_linked, "the new A is linked")


async def is_unlinked(leaf):
    return not await leaf.is_linked()


async def forgot(eyes, site):
    names = (await js_api(eyes, "CONSUMER.NAMES.KV_desired"))["consumers"] or []
    state = (await js_api(eyes, "STREAM.INFO.KV_desired", {"subjects_filter": f"$KV.desired.{site}.>"}))["state"]
    return site not in names and not state.get("subjects")


def test_one_site_acknowledging_its_stream_leaves_the_others_alone(tmp_path):
    run(ack_leak(tmp_path))


def with_local_jetstream(folder, name, conf):
    """A site that keeps a stream of its own, as some will."""
    conf = conf.replace("SITE { users", "SITE { jetstream: enabled, users")
    return conf + f'jetstream {{ domain: {name}, store_dir: "{folder}/{name}/js" }}\n'


async def ack_leak(folder):
    """Two sites with the same names of stream and consumer, in one account of the hub: A drains, B must not lose."""
    count = 50
    async with (
        running_hub(folder) as hub,
        leaf_sites(hub, "site_a", "site_b", edit_conf=with_local_jetstream) as (leaf_a, leaf_b),
    ):
        a, b = leaf_a.bus(), leaf_b.bus()
        inbox = a.listen("_INBOX.site_a.pull", pending_max=1000)
        async with connected(a), connected(b):
            for bus, name in ((a, "site_a"), (b, "site_b")):
                await until(lambda bus=bus, name=name: usage_passes(bus, name), f"usage of {name} passes")
                await make_local_stream(bus, count)
            await a.publish(
                "$JS.API.CONSUMER.MSG.NEXT.OUT.fwd", b'{"batch":100,"expires":3000000000}', reply=inbox.subject
            )
            async with asyncio.timeout(10):
                for _ in range(count):
                    message = await inbox.next()
                    await a.publish(message.reply, b"+ACK")
            await until(lambda: has_messages(a, 0), "A's stream is drained")
            assert await usage_passes(a, "site_a")
            assert await usage_passes(b, "site_b")
            assert await has_messages(b, count)


async def make_local_stream(bus, count):
    stream = {"name": "OUT", "subjects": ["out.>"], "retention": "workqueue", "storage": "file"}
    await until(lambda: created(bus, "STREAM.CREATE.OUT", stream), "local stream is made")
    consumer = {"stream_name": "OUT", "config": {"durable_name": "fwd", "ack_policy": "explicit"}}
    await until(lambda: created(bus, "CONSUMER.DURABLE.CREATE.OUT.fwd", consumer), "local consumer is made")
    for number in range(count):
        await bus.request("out.x", str(number).encode(), timeout_s=3)


async def created(bus, subject, body):
    try:
        return "error" not in await js_api(bus, subject, body)
    except (Unavailable, NoResponders):
        return False


async def has_messages(bus, count):
    return (await js_api(bus, "STREAM.INFO.OUT"))["state"]["messages"] == count
