"""Meters, notices, and whom a node serves: the small parts of a site's facility."""

import asyncio
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from fastapi import APIRouter
from tests.machine.alarm_world import key
from tests.site.facility_box import FakeClock
from tests.site.fresh_database import open_database

from madang.core import Rejected, SiteId, Unavailable
from madang.machine.alarm_events import Notice
from madang.machine.sample_book import SampleBook
from madang.model import (
    AlarmPriority,
    Point,
    PointKind,
    PriorityClass,
    Quality,
    Quantity,
    Residency,
    ResidencyScope,
    Sample,
    Service,
    Site,
    Tenant,
)
from madang.runtime.clock import SystemEntropy
from madang.runtime.telemetry import EventLog
from madang.site.desired import DesiredView
from madang.site.facility.meters import INTERVAL_S, MeterLog
from madang.site.facility.notify import Mail, Notifier, NotifySettings, Webhook, load_notify
from madang.site.facility.routes import add_facility_routes
from madang.site.facility.use import find_classes, list_open_peers
from madang.site.guard import GuardedStore
from madang.wire.bus import ServiceLoad
from madang.wire.feed import Peer

HANG_S = 60.0
NOTICE = Notice(
    notice_id="n1",
    channel="webhook",
    level=0,
    key=key("leak1", "state", "leak"),
    priority=AlarmPriority.CRITICAL,
    what="raised",
    at_s=1.0,
    text_ko="누수",
    text_en="leak",
)


# Meters


def meter(name, kind=PointKind.METER, quantity=Quantity.ENERGY):
    owner, _, base = name.partition(".")
    return Point(
        point_id=name, equipment_id=owner, name=base, kind=kind, quantity=quantity, stale_s=10.0, is_simulated=True
    )


def test_a_meter_is_written_down_once_for_each_instant_and_never_made_up(tmp_path):
    clock = FakeClock()
    book = SampleBook([meter("m1.energy"), meter("m2.energy"), meter("m1.power", quantity=Quantity.POWER)])

    async def scene():
        database = open_database(tmp_path / "site.db")
        log = MeterLog(book=book, store=GuardedStore(database, EventLog(clock, io.StringIO())), clock=clock)
        assert log.points == ("m1.energy", "m2.energy")
        at_s = int(clock.now_s)
        book.take([Sample(point_id="m1.energy", value=5.0, quality=Quality.GOOD, observed_at_s=clock.now_s)])
        await log.write(at_s)
        book.take([Sample(point_id="m1.energy", value=9.0, quality=Quality.GOOD, observed_at_s=clock.now_s + 1.0)])
        await log.write(at_s)
        clock.now_s += INTERVAL_S
        await log.write(at_s + INTERVAL_S)
        rows = await log.read(since_s=0.0, until_s=clock.now_s)
        found = {(row["point_id"], row["at_s"]): (row["value_wh"], row["quality"]) for row in rows}
        assert found == {
            ("m1.energy", at_s): (5.0, "good"),
            ("m2.energy", at_s): (None, "bad"),
            ("m1.energy", at_s + INTERVAL_S): (None, "stale"),
            ("m2.energy", at_s + INTERVAL_S): (None, "bad"),
        }
        assert all(row["is_simulated"] for row in rows)
        assert len(await log.read(since_s=0.0, until_s=at_s, point_id="m1.energy")) == 1
        database.close()

    asyncio.run(scene())


# Notices


class Receiver:
    """A webhook on loopback: keeps what is posted and answers as it is told."""

    def __init__(self):
        self.posts = []
        self.status = 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.posts.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_):
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join(HANG_S)
        self.server.server_close()


def test_a_webhook_gets_the_notice_with_its_token_at_the_level_of_its_escalation(tmp_path):
    token = tmp_path / "token"
    token.write_text("word\n")
    token.chmod(0o600)
    with Receiver() as receiver:
        webhook = Webhook(urls=(f"{receiver.url}/duty", f"{receiver.url}/boss"), token_file=token)
        notifier = Notifier(NotifySettings(webhook=webhook), title="Daegu")
        for level in (0, 1, 7):
            asyncio.run(notifier.send(msgspec.structs.replace(NOTICE, level=level)))
        assert [path for path, _, _ in receiver.posts] == ["/duty", "/boss", "/boss"]
        _, headers, body = receiver.posts[0]
        assert headers["authorization"] == "Bearer word"
        assert headers["idempotency-key"] == "n1"
        assert (body["site_title"], body["text_ko"], body["what"]) == ("Daegu", "누수", "raised")
        receiver.status = 500
        with pytest.raises(Unavailable, match="answered 500") as refused:
            asyncio.run(notifier.send(NOTICE))
        assert "word" not in str(refused.value)
    with pytest.raises(Unavailable, match="did not take"):
        asyncio.run(notifier.send(NOTICE))


class Relay:
    """An SMTP relay on loopback that takes one mail a connection."""

    def __init__(self):
        self.mails = []

    async def serve(self, reader, writer):
        async def say(text):
            writer.write(f"{text}\r\n".encode())
            await writer.drain()

        await say("220 relay")
        while line := (await reader.readline()).decode().strip():
            word = line.split()[0].upper()
            if word == "DATA":
                await say("354 go on")
                self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                await say("250 taken")
            elif word == "QUIT":
                await say("221 bye")
                break
            else:
                await say("250 ok")
        writer.close()


def test_mail_goes_to_those_of_the_level_and_a_relay_that_is_away_is_said():
    async def scene():
        relay = Relay()
        server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        mail = Mail(
            host="127.0.0.1", port=port, sender="box@example.org", has_tls=False,
            recipients=(("duty@example.org",), ("boss@example.org", "duty@example.org")),
        )  # fmt: skip
        notifier = Notifier(NotifySettings(email=mail), title="Daegu")
        async with server:
            await notifier.send(msgspec.structs.replace(NOTICE, channel="email", level=1))
        assert "To: boss@example.org, duty@example.org" in relay.mails[0]
        assert "<n1@daegu.madang>" in relay.mails[0]
        with pytest.raises(Unavailable, match="mail relay"):
            await notifier.send(msgspec.structs.replace(NOTICE, channel="email"))

    asyncio.run(asyncio.wait_for(scene(), HANG_S))


def test_a_way_that_is_not_set_up_keeps_nobody_waiting():
    asyncio.run(Notifier(NotifySettings(), title="Daegu").send(NOTICE))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[webhook]\nurls = ['ftp://x']\n", "https"),
        ("[webhook]\nurls = []\n", "without anybody"),
        ("[email]\nhost = 'h'\nsender = 's'\nrecipients = [[]]\n", "without anybody"),
        ("[pager]\n", "not what tells"),
        ("[", "not what tells"),
    ],
)
def test_a_file_that_tells_nobody_stops_the_start(tmp_path, text, reason):
    path = tmp_path / "notify.toml"
    path.write_text(text)
    with pytest.raises(Rejected, match=reason):
        load_notify(path)
    with pytest.raises(Rejected, match="cannot be read"):
        load_notify(tmp_path / "none.toml")


# Use


def tenant(name, scope, places, priority):
    return Tenant(tenant_id=name, title=name, residency=Residency(scope=scope, places=places), priority=priority)


def test_only_those_whom_the_law_lets_be_served_here_protect_a_node():
    view = DesiredView()
    scope = ResidencyScope
    view.tenants = {
        "clinic": tenant("clinic", scope.SITE, ("daegu",), PriorityClass.CLINICAL),
        "parts": tenant("parts", scope.REGION, ("yeongnam",), PriorityClass.INTERACTIVE),
        "night": tenant("night", scope.ANY, (), PriorityClass.BATCH),
    }
    view.services = {
        "chat": Service(name="chat", model="m"),
        "own": Service(name="own", model="m", tenants=("night", "gone")),
    }
    view.sites = {SiteId(name): Site(name=SiteId(name), region="yeongnam") for name in ("daegu", "gumi")}
    classes = PriorityClass
    assert find_classes(view, ["chat"], SiteId("daegu")) == (classes.CLINICAL, classes.INTERACTIVE, classes.BATCH)
    assert find_classes(view, ["chat"], SiteId("gumi")) == (classes.INTERACTIVE, classes.BATCH)
    assert find_classes(view, ["own"], SiteId("daegu")) == (classes.BATCH,)
    assert find_classes(view, ["chat"], SiteId("new")) == (classes.CLINICAL, classes.INTERACTIVE, classes.BATCH)
    assert find_classes(view, [], SiteId("daegu")) == ()


def peer(name, *, age_s=0.1, ready=1, is_spilling=False):
    loads = (ServiceLoad(service="chat", replicas_ready=ready, slots=4, in_flight=0),)
    return Peer(
        site=SiteId(name), url="http://127.0.0.1:1", digest_age_s=age_s, services=loads, sessions=(),
        is_spilling=is_spilling,
    )  # fmt: skip


def test_peers_that_are_silent_empty_or_short_themselves_are_not_open():
    peers = [peer("a"), peer("b", age_s=60.0), peer("c", age_s=-1.0), peer("d", ready=0), peer("e", is_spilling=True)]
    assert list_open_peers(peers) == (SiteId("a"),)


def test_what_a_policy_asked_for_can_be_agreed_to_by_its_name():
    router = APIRouter()
    add_facility_routes(router, "daegu", None, FakeClock(), SystemEntropy())
    path = "/facility/requests/safety/isolate_liquid/loop/approve"
    assert [route.name for route in router.routes if route.path_regex.match(path)] == ["approve"]
