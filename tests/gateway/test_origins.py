"""How many connections one address may have: what is one address, who is refused and how, and that nothing leaks."""

import random
import socket
from collections import Counter
from contextlib import ExitStack, closing

import pytest
from tests.gateway.certificates import Root
from tests.gateway.lab import CITY, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post
from tests.gateway.test_tls import secure, start_secure

from madang.core import Rejected
from madang.gateway.origins import NO_VISIT, REFUSALS_MAX, Origins, most_of_one, origin_of


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (("10.0.0.1", 1), ("10.0.0.1", 2), True),
        (("10.0.0.1", 1), ("10.0.0.2", 1), False),
        (("::ffff:10.0.0.1", 1, 0, 0), ("10.0.0.1", 9), True),
        (("2001:db8:1:2::1", 1, 0, 0), ("2001:db8:1:2:ffff::9", 1, 0, 0), True),
        (("2001:db8:1:2::1", 1, 0, 0), ("2001:db8:1:3::1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::2%eth1", 1, 0, 3), True),
        (("", 1), b"", True),
        (("not:an:address", 1), ("not:an:address", 2), True),
    ],
)
def test_what_is_one_address(one: object, other: object, is_same: bool) -> None:
    assert (origin_of(one) == origin_of(other)) is is_same


def test_a_half_unless_it_is_set() -> None:
    assert [most_of_one(12_000, value) for value in (None, 0, 7, 20_000)] == [6_000, 0, 7, 20_000]
    assert most_of_one(1, None) == 1, "somebody is let in"
    with pytest.raises(Rejected, match="connections_per_address_max: -1"):
        most_of_one(12_000, -1)
    assert Origins(0).enter(("10.0.0.1", 1)) is NO_VISIT


def test_whatever_comes_and_goes_the_counts_are_right() -> None:
    """Against a plain count of who is there, over random arrivals and departures, each of which is told twice."""
    rng = random.Random(3)
    origins, here, unwelcome = Origins(5), [], []
    for _ in range(20_000):
        if rng.random() < 0.55:
            address = f"10.0.0.{rng.randrange(8)}"
            count = Counter(name for name, _ in here)[address]
            visit = origins.enter((address, rng.randrange(65_536)))
            if count < 5:
                assert visit is not None
                assert visit.is_welcome
                here.append((address, visit))
            elif len(unwelcome) < REFUSALS_MAX:
                assert visit is not None
                assert not visit.is_welcome
                unwelcome.append((address, visit))
            else:
                assert visit is None
        else:
            them = here if rng.random() < 0.7 or not unwelcome else unwelcome
            if them:
                _, visit = them.pop(rng.randrange(len(them)))
                visit.leave()
                visit.leave()
    for _, visit in here + unwelcome:
        visit.leave()
    assert origins.addresses == 0
    assert origins.refusals > 1000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return Root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def site(lab: Lab, root: Root) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    start_secure(lab, site, root, connections_per_address_max=3, tls_handshake_timeout_s=60.0)
    return site


def refusals(site: LabSite) -> dict[str, int]:
    return site.worker.ports["tenant"].refusals_by_reason


def test_one_address_over_its_share_is_told_and_others_are_served(site: LabSite, root: Root) -> None:
    with ExitStack() as held:
        clients = [held.enter_context(closing(RawClient(site.connect()))) for _ in range(3)]
        wait_until(lambda: site.worker.ports["tenant"].connections == 3, "three are taken")
        refused = held.enter_context(closing(RawClient(site.connect())))
        answer = refused.answer()
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (429, "overloaded", "1")
        assert answer.headers["connection"] == "close"
        assert "from this address" in answer.error["message"]
        with pytest.raises(OSError, match=r"EOF|reset|closed"):
            secure(site, root.client())
        assert site.worker.meter.handshakes == {}, "no handshake is spent on it"
        other = socket.create_connection(("127.0.0.1", site.ports["tenant"]), 10, source_address=("127.0.0.9", 0))
        client = held.enter_context(closing(RawClient(other)))
        for one in (clients[0], client):
            one.send(post(chat_body(), CITY.key))
            assert one.answer().status == 200
        assert refusals(site) == {"full": 0, "address": 2}
        series = 'madang_gateway_connections_refused_total{reason="address"} 2.0'
        wait_until(lambda: series in site.request("GET", "/metrics", port="admin").body.decode(), "it is counted")
    wait_until(lambda: site.worker.origins.addresses == 0, "all have left")
    assert site.chat(CITY).status == 200


def test_those_who_never_become_connections_are_counted_out(site: LabSite, root: Root) -> None:
    """Handshakes count while they hang, and no longer: an address cannot take all of them, nor lock itself out."""
    hanging = [site.connect("tenant-tls") for _ in range(3)]
    wait_until(lambda: site.worker.origins.addresses == 1, "they are counted")
    with closing(RawClient(site.connect())) as client:
        assert client.answer().status == 429
    for one, sent in zip(hanging, (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"), strict=True):
        one.sendall(sent)
        one.close()
    wait_until(lambda: site.worker.origins.addresses == 0, "nothing of them is left")
    for _ in range(4):
        with closing(secure(site, root.client())):
            pass
        wait_until(lambda: site.worker.origins.addresses == 0, "nor of those who said no more")
    assert site.worker.meter.handshakes["ok"] == 4


def test_a_flood_from_one_address_leaves_room_for_another(site: LabSite) -> None:
    with ExitStack() as held:
        for _ in range(3 + 2 * REFUSALS_MAX):
            held.enter_context(closing(site.connect()))
        wait_until(lambda: refusals(site)["address"] >= 2 * REFUSALS_MAX, "the rest is refused")
        assert site.worker.ports["tenant"].connections <= 3 + REFUSALS_MAX
        other = socket.create_connection(("127.0.0.1", site.ports["tenant"]), 10, source_address=("127.0.0.9", 0))
        client = held.enter_context(closing(RawClient(other)))
        client.send(post(chat_body(), CITY.key))
        assert client.answer().status == 200
    wait_until(lambda: site.worker.origins.addresses == 0, "all have left")
