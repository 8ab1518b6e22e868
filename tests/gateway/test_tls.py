"""TLS on the tenants' and the peers' port: who is let in, what is shown, and what a new certificate changes."""

import random
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx
import openai
import pytest
from tests.gateway.certificates import Root
from tests.gateway.lab import CHAT, CITY, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post

from madang.core import Rejected
from madang.gateway.target import parse_target
from madang.gateway.tls import peer_context
from madang.runtime.tls_pair import load_pair

KEY = CITY.key
HANDSHAKE_S = 0.4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return Root(tmp_path_factory.mktemp("root"))


def hold_secure_sockets(site: LabSite) -> None:
    """What the supervisor does for the ports with TLS."""
    for name in ("tenant-tls", "peer-tls"):
        held = site.sockets[name] = socket.create_server(("127.0.0.1", 0))
        site.ports[name] = held.getsockname()[1]


def start_secure(lab: Lab, site: LabSite, root: Root, **settings: object) -> None:
    certificate, key = root.issue(site.folder / "tls")
    hold_secure_sockets(site)
    lab.start(
        site,
        tls_port=site.ports["tenant-tls"],
        peer_tls_port=site.ports["peer-tls"],
        tls_certificate_file=certificate,
        tls_key_file=key,
        stall_timeout_s=0.5,
        peer_ca_file=root.file,
        **{"tls_handshake_timeout_s": HANDSHAKE_S, **settings},
    )


@pytest.fixture
def site(lab: Lab, root: Root) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    start_secure(lab, site, root, tls_handshakes_max=2)
    return site


def secure(site: LabSite, context: ssl.SSLContext, *, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    plain = site.connect("tenant-tls")
    try:
        return context.wrap_socket(plain, server_hostname="localhost", session=session, suppress_ragged_eofs=False)
    except BaseException:
        plain.close()
        raise


def test_requests_over_tls_are_as_over_plain(site: LabSite, root: Root) -> None:
    with closing(RawClient(secure(site, root.client()))) as client:
        assert client.sock.version() == "TLSv1.3"
        assert client.sock.selected_alpn_protocol() == "http/1.1"
        client.send(post(chat_body(), KEY) + post(chat_body(stream=True), KEY))
        whole, stream = client.answer(), client.answer()
        assert (whole.status, stream.status) == (200, 200)
        assert stream.body.endswith(b"data: [DONE]\n\n")
        for byte in post(chat_body(), KEY):
            client.send(bytes([byte]))
        assert client.answer().status == 200
        client.send(b"GET /v1/models HTTP/1.1\nhost: x\n\n")
        assert client.answer().status == 400
        assert client.rest() == b"", "the end is one that TLS confirms"
    assert site.chat(CITY).status == 200, "the plain port goes on"
    wait_until(lambda: site.worker.meter.handshakes == {"ok": 1}, "one handshake is counted")


def test_the_official_client_over_tls(site: LabSite, root: Root) -> None:
    with openai.OpenAI(
        base_url=f"https://localhost:{site.ports['tenant-tls']}/v1",
        api_key=KEY,
        max_retries=0,
        http_client=httpx.Client(verify=root.client(), timeout=10),
    ) as client:
        question = [{"role": "user", "content": "대한민국의 수도는?"}]
        assert client.chat.completions.create(model=CHAT, messages=question).choices[0].message.content
        with client.chat.completions.create(model=CHAT, messages=question, stream=True) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "안녕하세요!"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:7710", ("127.0.0.1", 7710, False)),
        ("https://gumi.example:7444/", ("gumi.example", 7444, True)),
        ("https://gumi.example", ("gumi.example", 443, True)),
        ("http://[::1]:80", ("::1", 80, False)),
        ("https://[::1]", ("::1", 443, True)),
        ("http://site_1-gw.internal.:65535", ("site_1-gw.internal.", 65535, False)),
    ],
)
def test_urls_of_peers(url: str, target: tuple[str, int, bool]) -> None:
    assert parse_target(url) == target


NO_URLS = (
    *("", "gumi", "ftp://gumi:1", "http://", "http://:80", "https://gumi/x", "http://gumi:x", "http://gumi:"),
    *("http://gumi:0", "http://gumi:65536", "http://gumi:-1", "http://gumi:８０", "http://me@gumi:80", "http://a b:80"),
    *("http://a..b:80", "http://.a:80", f"http://{'a' * 64}:80", f"http://{'a.' * 127}a:80", "http://구미:80"),
    *(
        "http://a\r\nx-b: c:80",
        "http://a\0b:80",
        "http://::1:80",
        "http://[gumi]:80",
        "http://gumi:80//",
        "http://-a:80",
    ),
)


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_url_of_a_peer(url: str) -> None:
    with pytest.raises(ValueError, match="expected http"):
        parse_target(url)


def test_a_peer_without_a_usable_url_stops_nobody(lab: Lab) -> None:
    """A name that no resolver takes raises there what is no OSError; the site that has it is left out."""
    site, other = lab.site("daegu"), lab.site("gumi")
    other.add_replica(lab.engine())
    site.peers, site.peer_urls = ["gumi"], {"gumi": "http://a..b:80"}
    lab.start(site)
    assert site.chat(CITY).error["code"] == "no_replica"
    site.add_replica(lab.engine())
    site.refresh()
    assert site.chat(CITY).status == 200


def test_versions(site: LabSite, root: Root) -> None:
    with closing(secure(site, root.client(maximum_version=ssl.TLSVersion.TLSv1_2))) as one:
        assert one.version() == "TLSv1.2"
        assert one.cipher()[0].startswith("ECDHE-")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old = root.client(minimum_version=ssl.TLSVersion.TLSv1_1, maximum_version=ssl.TLSVersion.TLSv1_1)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")  # the client would, so it is the server who refuses
    with pytest.raises((ssl.SSLError, ConnectionError)):
        secure(site, old)
    assert site.worker.meter.handshakes == {"ok": 1, "failed": 1}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_taken_up_again(site: LabSite, root: Root, version: ssl.TLSVersion) -> None:
    context = root.client(maximum_version=version)
    with closing(RawClient(secure(site, context))) as client:
        client.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n\r\n" % KEY.encode())
        assert client.answer().status == 200
        session = client.sock.session
    with closing(secure(site, context, session=session)) as again:
        assert again.session_reused


def test_a_new_pair_is_for_new_connections(site: LabSite, root: Root) -> None:
    folder = site.folder / "tls"
    context = root.client()

    def look() -> None:
        site.lab.loop.call_soon_threadsafe(site.worker.tls.look)

    def serial() -> str:
        with closing(secure(site, context)) as one:
            return one.getpeercert()["serialNumber"]

    with closing(RawClient(secure(site, context))) as before:
        first = before.sock.getpeercert()["serialNumber"]
        root.issue(folder)
        second = wait_until(lambda: (now := serial()) != first and now, "the new certificate is shown")
        before.send(post(chat_body(), KEY))
        assert before.answer().status == 200
        (folder / "certificate.pem").write_bytes(root.pem)
        look()
        wait_until(lambda: site.log.named("gateway_certificate_kept"), "a pair that does not match is named")
        assert serial() == second
        assert "does not belong" in site.log.named("gateway_certificate_kept")[0]["reason"]
        root.issue(folder, ends=timedelta(days=3))
        look()
        third = wait_until(lambda: (now := serial()) != second and now, "a whole pair is taken again")
        assert third != first
        wait_until(lambda: site.log.named("gateway_certificate_ends"), "a certificate that ends soon is named")
        before.send(post(chat_body(stream=True), KEY))
        assert before.answer().status == 200
    ready = site.request("GET", "/readyz", port="admin")
    assert ready.status == 200
    assert "expires at" in ready.json["warnings"][0]


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_who_does_not_finish_a_handshake_is_closed_in_time(site: LabSite, sent: bytes) -> None:
    began_s = time.monotonic()
    with closing(RawClient(site.connect("tenant-tls"))) as client:
        client.send(sent)
        client.rest()
    assert time.monotonic() - began_s < HANDSHAKE_S + 2
    result = "failed" if sent.startswith(b"GET") else "timeout"
    wait_until(lambda: site.worker.meter.handshakes == {result: 1}, "it is counted")
    assert site.worker.ports["tenant"].connections == 0


def test_handshakes_at_once_are_bounded_and_the_rest_waits(site: LabSite, root: Root) -> None:
    silent = [site.connect("tenant-tls") for _ in range(5)]
    with closing(RawClient(secure(site, root.client()))) as client:
        client.send(post(chat_body(), KEY))
        assert client.answer().status == 200
        assert site.worker.meter.handshakes["timeout"] >= 4, "two at a time hung until their time was up"
    for one in silent:
        one.close()


def hello_of(context: ssl.SSLContext) -> bytes:
    """The first bytes of a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_no_beginning_of_a_connection_ends_the_worker(lab: Lab, site: LabSite, root: Root) -> None:
    """Whatever a handshake raises is that connection's end alone, be it cut at any byte, changed or reset."""
    hello = hello_of(root.client())
    rng = random.Random(7)
    for number in range(300):
        data = bytearray(hello[: rng.randrange(len(hello) + 1)] if number % 3 else hello)
        for _ in range(rng.randrange(4) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if number % 7 == 0:
            data = bytearray(rng.randbytes(rng.randrange(600)))
        with closing(site.connect("tenant-tls")) as client:
            client.sendall(data)
            if number % 2:  # a reset instead of an orderly end
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with closing(secure(site, root.client())) as good:
        client = RawClient(good)
        client.send(post(chat_body(), CITY.key))
        assert client.answer().status == 200
    assert site.chat(CITY).status == 200


def test_a_client_that_never_reads_is_bounded_and_closed(lab: Lab, site: LabSite, root: Root) -> None:
    engine = lab.engines[0]
    engine.mode = "flood"
    with closing(RawClient(secure(site, root.client()))) as client:
        client.send(post(chat_body(stream=True), KEY))
        wait_until(lambda: engine.left == 1, "the engine is left when the client does not read for too long")
        assert engine.sent_bytes < 64 * 1024 * 1024, "back-pressure reaches the engine"


def test_a_client_that_leaves_frees_the_engine(lab: Lab, site: LabSite, root: Root) -> None:
    engine = lab.engines[0]
    engine.mode = "endless"
    client = RawClient(secure(site, root.client()))
    client.send(post(chat_body(stream=True), KEY))
    client.head()
    client.close()
    wait_until(lambda: engine.left == 1, "the engine is left", 2)


def test_peers_meet_over_tls(lab: Lab, root: Root) -> None:
    entry, serving = lab.site("daegu"), lab.site("gumi")
    serving.add_replica(lab.engine())
    start_secure(lab, serving, root)
    entry.peers = ["gumi"]
    entry.peer_urls = {"gumi": f"https://localhost:{serving.ports['peer-tls']}"}
    serving.peers = ["daegu"]
    start_secure(lab, entry, root)
    serving.refresh()
    for _ in range(3):
        answer = entry.chat(CITY)
        assert (answer.status, answer.headers["x-madang-site"]) == (200, "gumi")
    meter = entry.worker.meter
    assert (meter.upstream_opened, meter.upstream_reused) == (1, 2)
    assert serving.worker.meter.handshakes == {"ok": 1}


def test_a_peer_that_nobody_vouches_for_is_not_asked(lab: Lab, root: Root, tmp_path: Path) -> None:
    entry, serving = lab.site("daegu"), lab.site("gumi")
    serving.add_replica(engine := lab.engine())
    start_secure(lab, serving, Root(tmp_path / "other"))
    entry.peers = ["gumi"]
    entry.peer_urls = {"gumi": f"https://localhost:{serving.ports['peer-tls']}"}
    start_secure(lab, entry, root)
    answer = entry.chat(CITY)
    assert (answer.status, answer.error["code"]) == (503, "no_replica")
    assert engine.requests == []
    assert "verify" in entry.log.named("gateway_route_failing")[0]["reason"]


@pytest.mark.parametrize(
    "content", [None, b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_roots_that_cannot_be_used_are_an_error_at_the_start(lab: Lab, tmp_path: Path, content: bytes | None) -> None:
    site = lab.site("daegu")
    path = tmp_path / "roots.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Rejected, match=r"peer_ca_file .*roots\.pem cannot be used"):
        lab.start(site, peer_ca_file=path)


# --- pairs that are refused


def a_missing_certificate(_root: Root, certificate: Path, _key: Path) -> None:
    certificate.unlink()


def a_missing_key(_root: Root, _certificate: Path, key: Path) -> None:
    key.unlink()


def an_open_key(_root: Root, _certificate: Path, key: Path) -> None:
    key.chmod(0o640)


def an_expired_certificate(root: Root, certificate: Path, _key: Path) -> None:
    root.issue(certificate.parent, begins=timedelta(days=-9), ends=timedelta(days=-1))


def a_certificate_of_tomorrow(root: Root, certificate: Path, _key: Path) -> None:
    root.issue(certificate.parent, begins=timedelta(days=1))


def another_key(root: Root, certificate: Path, key: Path) -> None:
    _, other = root.issue(certificate.parent / "other")
    shutil.copyfile(other, key)


def a_key_with_a_passphrase(root: Root, certificate: Path, _key: Path) -> None:
    root.issue(certificate.parent, passphrase=b"guess")


def no_pem(_root: Root, certificate: Path, _key: Path) -> None:
    certificate.write_bytes(b"\x30\x82\x01\x00 not PEM")


def a_key_that_is_none(_root: Root, _certificate: Path, key: Path) -> None:
    key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


def a_chain_in_disorder(root: Root, certificate: Path, _key: Path) -> None:
    certificate.write_bytes(root.pem + certificate.read_bytes())


def too_large(_root: Root, certificate: Path, _key: Path) -> None:
    certificate.write_bytes(b"x" * 300_000)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (a_missing_certificate, "certificate.pem cannot be read: No such file"),
        (a_missing_key, "key.pem cannot be read: No such file"),
        (an_open_key, "chmod 600"),
        (an_expired_certificate, "certificate.pem expired at 20"),
        (a_certificate_of_tomorrow, "valid only from"),
        (another_key, "does not belong"),
        (a_key_with_a_passphrase, "passphrase"),
        (no_pem, "holds no certificate"),
        (a_key_that_is_none, "key.pem"),
        (a_chain_in_disorder, "certificate 2 does not vouch for certificate 1"),
        (too_large, "over 262144 bytes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_with_a_pair_names_itself(
    tmp_path: Path, root: Root, spoil: Callable[[Root, Path, Path], None], words: str
) -> None:
    certificate, key = root.issue(tmp_path)
    assert load_pair(certificate, key, time.time()).names == ("localhost", "127.0.0.1")
    spoil(root, certificate, key)
    with pytest.raises(Rejected, match=words) as refused:
        load_pair(certificate, key, time.time())
    assert str(tmp_path) in str(refused.value)


def test_roots_that_cannot_be_used_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"peer_ca_file .*none\.pem"):
        peer_context(tmp_path / "none.pem")


@pytest.fixture(autouse=True)
def _no_bugs(lab: Lab) -> Iterator[None]:
    yield
    assert lab.bugs == []
