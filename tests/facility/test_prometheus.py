"""The Prometheus driver keeps the contract on its twin, and makes no number of what is no whole exposition."""

import asyncio
import contextlib
import datetime
import gzip
import ipaddress
import ssl
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.facility.redfish_parts import SECRET, LiveTwin, device_of, driver_on, read

from madang.core import Rejected, Unavailable
from madang.facility.contract import Secret
from madang.facility.prometheus.exposition import BYTES_MAX
from madang.facility.prometheus.link import Link
from madang.facility.prometheus.twin import CONTENT_TYPE
from madang.facility.twin_http import TwinAnswer, TwinHost
from madang.model import Quality
from madang.testing.facility_contract import HANG_S, FacilityReadContract

TOKEN = Secret(words={"token": "Birch-leaf-31"})
HOST_PARTS = {name: "unit1" for name in ("data", "link0", "link1", "ecc", "hwmon", "nvme0", "disk0")}
HOST_OPTIONS = {
    "data": '/srv/"new" data\\1',
    "link0": "eth0",
    "link1": "eth1",
    "hwmon": "platform_coretemp_0",
    "nvme0": "nvme0n1",
    "disk0": "/dev/sda",
}
HOST = {
    "level_root": 41.25,
    "alarm_read_only_root": 0.0,
    "alarm_lost_root": 0.0,
    "level_data[data]": 91.5,
    "alarm_read_only_data[data]": 1.0,
    "alarm_lost_data[data]": 1.0,
    "load_memory": 62.5,
    "errors_corrected[ecc]": 12.0,
    "errors_uncorrected[ecc]": 1.0,
    "temperature_chip[hwmon]": 61.0,
    "state_clock": 1.0,
    "duration_clock_error": 0.015,
    "duration_clock_offset": -0.002,
    "duration_up": 86400.0,
    "state_link_0[link0]": 1.0,
    "data_rate_link_0[link0]": 1e10,
    "errors_in_link_0[link0]": 3.0,
    "errors_out_link_0[link0]": 4.0,
    "state_link_1[link1]": 0.0,
    "data_rate_link_1[link1]": 1e9,
    "errors_in_link_1[link1]": 5.0,
    "errors_out_link_1[link1]": 6.0,
    "health_nvme_0[nvme0]": -20.0,
    "spare_nvme_0[nvme0]": 7.0,
    "alarm_spare_nvme_0[nvme0]": 1.0,
    "alarm_hot_nvme_0[nvme0]": 0.0,
    "alarm_degraded_nvme_0[nvme0]": 1.0,
    "alarm_read_only_nvme_0[nvme0]": 0.0,
    "errors_media_nvme_0[nvme0]": 8.0,
    "temperature_nvme_0[nvme0]": 47.0,
    "alarm_smart_disk_0[disk0]": 1.0,
    "errors_reallocated_disk_0[disk0]": 9.0,
    "errors_pending_disk_0[disk0]": 10.0,
    "temperature_disk_0[disk0]": 38.0,
}
DISK_PARTS = {"nvme0": "ssd_a", "nvme3": "ssd_b", "disk1": "disk_c", "wear1": "disk_c"}
DISK_OPTIONS = {"nvme0": "nvme0", "nvme3": "nvme3", "disk1": "sda", "wear1": "sda"}
DISKS = {
    "health_nvme_0[nvme0]": 93.0,
    "spare_nvme_0[nvme0]": 100.0,
    "alarm_spare_nvme_0[nvme0]": 0.0,
    "alarm_hot_nvme_0[nvme0]": 1.0,
    "alarm_degraded_nvme_0[nvme0]": 0.0,
    "alarm_read_only_nvme_0[nvme0]": 1.0,
    "errors_media_nvme_0[nvme0]": 1.0,
    "alarm_smart_nvme_0[nvme0]": 0.0,
    "temperature_nvme_0[nvme0]": 45.0,
    "duration_on_nvme_0[nvme0]": 7200000.0,
    "health_nvme_3[nvme3]": 4.0,
    "spare_nvme_3[nvme3]": 9.0,
    "alarm_spare_nvme_3[nvme3]": 1.0,
    "alarm_hot_nvme_3[nvme3]": 0.0,
    "alarm_degraded_nvme_3[nvme3]": 0.0,
    "alarm_read_only_nvme_3[nvme3]": 0.0,
    "errors_media_nvme_3[nvme3]": 2.0,
    "alarm_smart_nvme_3[nvme3]": 1.0,
    "temperature_nvme_3[nvme3]": 46.0,
    "duration_on_nvme_3[nvme3]": 3600.0,
    "alarm_smart_disk_1[disk1]": 0.0,
    "errors_reallocated_disk_1[disk1]": 3.0,
    "errors_pending_disk_1[disk1]": 4.0,
    "temperature_disk_1[disk1]": 33.0,
    "health_disk_1[wear1]": 71.0,
}


class TestHost(FacilityReadContract):
    device = device_of("prometheus", "node_exporter", parts=HOST_PARTS, options=HOST_OPTIONS)
    values = HOST
    secret = SECRET
    # Their scale is that of a ratio or of bytes, and its sign that of what is left.
    steps: ClassVar = {
        name: 1.0 for name in HOST if name.startswith(("level_", "load_", "health_", "spare_", "data_rate_"))
    }
    half_names = ("level_root", "state_link_1[link1]", "errors_in_link_0[link0]", "spare_nvme_0[nvme0]")
    sentinel_names = ("data_rate_link_0[link0]", "temperature_disk_0[disk0]")


class TestDisks(FacilityReadContract):
    device = device_of("prometheus", "smartctl_exporter", parts=DISK_PARTS, options=DISK_OPTIONS)
    values = DISKS
    secret = TOKEN
    half_names = ("health_nvme_0[nvme0]", "errors_pending_disk_1[disk1]")
    sentinel_names = ("temperature_nvme_3[nvme3]", "duration_on_nvme_0[nvme0]")


def play(scene):
    async def run():
        async with asyncio.timeout(2 * HANG_S):
            await scene()

    asyncio.run(run())


def host_device(**more):
    return device_of("prometheus", "node_exporter", **more)


class Exporter:
    """A server that answers with what it is given, and remembers what it was asked."""

    def __init__(self, answer, tls=None):
        self.answer = answer
        self.asked = []
        self._scheme = "http" if tls is None else "https"
        self._host = TwinHost(self._handle, tls)

    def _handle(self, request):
        self.asked.append(request)
        return self.answer

    async def __aenter__(self):
        self.address = f"{self._scheme}://127.0.0.1:{await self._host.start('127.0.0.1', 0)}/metrics"
        return self

    async def __aexit__(self, *_):
        await self._host.stop()


def text(body, **headers):
    return TwinAnswer(200, body.encode(), {"Content-Type": CONTENT_TYPE, **headers})


CLOCK = "node_timex_sync_status 1\n"
BOMB = gzip.compress(bytes(64 * 1024 * 1024))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (TwinAnswer(200, b"<html>1</html>\n", {"Content-Type": "text/html"}), "the answer is text/html, no exposition"),
        (text("<html>node_timex_sync_status 1</html>\n"), "line 1 of the answer is no series"),
        (TwinAnswer(200, CLOCK.encode()), "of no stated kind"),
        (text(""), "the answer is empty"),
        (text(CLOCK + "node_timex_offset_seconds 0.1"), "ends within a line"),
        (text(CLOCK + "# a comment\n" * 100_000), f"over {BYTES_MAX} bytes"),
        (TwinAnswer(200, BOMB, {"Content-Type": CONTENT_TYPE, "Content-Encoding": "gzip"}), "packs its answer"),
        (TwinAnswer(200, gzip.compress(CLOCK.encode()), {"Content-Type": CONTENT_TYPE}), "is not UTF-8"),
        (TwinAnswer(302, b"", {"Location": "http://127.0.0.1:9/metrics"}), "redirects to another place"),
        (TwinAnswer(503, CLOCK.encode(), {"Content-Type": CONTENT_TYPE}), "answers with 503"),
        (TwinAnswer(401), "refuses the credentials"),
        (
            TwinAnswer(
                raw=b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 99\r\n\r\n" + CLOCK.encode()
            ),
            "does not answer",
        ),
        (
            TwinAnswer(raw=b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + CLOCK.encode()),
            "does not say where its answer ends",
        ),
    ],
)
def test_what_is_no_whole_exposition_gives_no_number(answer, reason):
    async def scene():
        async with Exporter(answer) as exporter, driver_on(host_device(address=exporter.address)) as driver:
            for _ in range(2):
                samples = await read(driver)
                assert {one.quality for one in samples.values()} == {Quality.BAD}
                [said] = {one.reason for one in samples.values()}
                assert reason in said
            exporter.answer = text(CLOCK)
            assert (await read(driver))["unit1.state_clock"].text == "synchronised"

    play(scene)


def test_an_answer_without_an_end_is_left_at_the_bound():
    async def scene():
        is_left = asyncio.Event()

        async def pour(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"10000\r\n" + b"#" * 0xFFFF + b"\n\r\n")
                    await writer.drain()
            is_left.set()
            writer.close()

        server = await asyncio.start_server(pour, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        # Its time-out is longer than the test's: only the bound ends it.
        async with driver_on(host_device(address=address, timeout_s=10 * HANG_S)) as driver:
            assert f"over {BYTES_MAX} bytes" in (await read(driver))["unit1.state_clock"].reason
            await is_left.wait()
        server.close()
        await server.wait_closed()

    play(scene)


def make_certificate(folder, address):
    """Return a server's TLS with a certificate of its own on an address, and the certificate's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "exporter")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=30))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    public, private = folder / f"{address}.pem", folder / f"{address}.key"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public


def test_a_certificate_is_believed_by_its_file_and_its_name_and_no_other(tmp_path):
    async def scene():
        tls, file = make_certificate(tmp_path, "127.0.0.1")
        async with Exporter(text(CLOCK), tls) as exporter:
            for ca_file, reason in (
                (str(file), ""),
                ("", "certificate"),
                (str(tmp_path / "absent.pem"), "cannot be read"),
                (str(make_certificate(tmp_path, "127.0.0.2")[1]), "certificate"),
            ):
                device = host_device(address=exporter.address, options={"ca_file": ca_file})
                async with driver_on(device, SECRET) as driver:
                    sample = (await read(driver))["unit1.state_clock"]
                assert (sample.quality is Quality.GOOD) == (not reason)
                assert reason in sample.reason
            assert len(exporter.asked) == 1, "nothing is sent to whom nobody believes"
        tls, file = make_certificate(tmp_path, "127.0.0.3")
        async with Exporter(text(CLOCK), tls) as exporter:
            device = host_device(address=exporter.address, options={"ca_file": str(file)})
            async with driver_on(device, SECRET) as driver:
                assert "certificate" in (await read(driver))["unit1.state_clock"].reason
            assert exporter.asked == []

    play(scene)


def test_a_redirect_is_not_followed_and_credentials_go_nowhere_else():
    async def scene():
        async with Exporter(text(CLOCK)) as other:
            moved = TwinAnswer(307, b"", {"Location": other.address})
            async with Exporter(moved) as exporter:
                async with driver_on(host_device(address=exporter.address), SECRET) as driver:
                    assert (await read(driver))["unit1.state_clock"].quality is Quality.BAD
                [asked] = exporter.asked
                assert asked.headers["authorization"].startswith("Basic ")
                assert other.asked == []

    play(scene)


@pytest.mark.parametrize("secret", [SECRET, TOKEN])
def test_a_secret_that_an_exporter_repeats_is_not_said(secret):
    async def scene():
        async with (
            Exporter(text("")) as exporter,
            driver_on(host_device(address=exporter.address), secret) as driver,
        ):
            await read(driver)
            sent = exporter.asked[0].headers["authorization"].split()[1]
            for word in (sent, *secret.words.values()):
                exporter.answer = text(f"{word}!\n")
                said = (await read(driver))["unit1.state_clock"].reason
                assert word not in said
                assert "***" in said

    play(scene)


def test_whom_the_exporter_does_not_know_gets_nothing():
    async def scene():
        device = host_device()
        async with LiveTwin(device, HOST, SECRET) as live:
            async with live.session(secret=Secret(user="madang", words={"password": "wrong"})) as driver:
                assert "refuses the credentials (401)" in (await read(driver))["unit1.state_clock"].reason
            async with live.session() as driver:
                assert (await read(driver))["unit1.state_clock"].quality is Quality.GOOD

    play(scene)


def test_a_query_stays_with_the_address_and_a_path_is_kept():
    async def scene():
        async with Exporter(text(CLOCK)) as exporter:
            address = exporter.address.replace("/metrics", "/probe?collect[]=timex")
            async with driver_on(host_device(address=address)) as driver:
                assert (await read(driver))["unit1.state_clock"].quality is Quality.GOOD
            [asked] = exporter.asked
            assert (asked.path, asked.query) == ("/probe", "collect[]=timex")
            assert asked.headers["accept-encoding"] == "identity"

    play(scene)


def test_what_was_said_long_ago_is_stale_and_from_the_future_doubted():
    async def scene():
        async with (
            Exporter(text("")) as exporter,
            driver_on(host_device(address=exporter.address, poll_s=10)) as driver,
        ):
            now_ms = 1_700_000_000_000
            for age_s, quality in (
                (0, Quality.GOOD),
                (29, Quality.GOOD),
                (31, Quality.STALE),
                (-61, Quality.UNCERTAIN),
            ):
                exporter.answer = text(f"node_timex_sync_status 1 {now_ms - 1000 * age_s}\n")
                sample = (await read(driver))["unit1.state_clock"]
                assert (sample.value, sample.quality) == (1.0, quality), sample
            assert "a clock is wrong" in sample.reason

    play(scene)


@pytest.mark.parametrize(("age_s", "quality"), [(3599, Quality.GOOD), (3601, Quality.STALE)])
def test_a_disk_whose_script_no_longer_runs_is_stale_by_the_hosts_own_clock(age_s, quality):
    body = (
        'nvme_percentage_used_ratio{device="nvme0n1"} 0.07\nnode_time_seconds 5000000\n'
        f'node_textfile_mtime_seconds{{file="/var/lib/prometheus/node-exporter/nvme.prom"}} {5000000 - age_s}\n'
    )

    async def scene():
        async with Exporter(text(body)) as exporter:
            device = host_device(
                address=exporter.address, parts={"nvme0": "unit1"}, options={"nvme0": "nvme0n1"}, poll_s=1
            )
            async with driver_on(device) as driver:
                sample = (await read(driver))["unit1.health_nvme_0"]
                assert (sample.value, sample.quality) == (93.0, quality), sample
                exporter.answer = text(body.partition("node_time")[0])
                sample = (await read(driver))["unit1.health_nvme_0"]
                assert (sample.value, sample.quality) == (93.0, Quality.UNCERTAIN)
                assert "nobody knows when it was written" in sample.reason

    play(scene)


def test_a_disk_that_is_no_nvme_drive_has_no_wear_of_one():
    body = 'smartctl_device{{device="sda",interface="{}"}} 1\nsmartctl_device_percentage_used{{device="sda"}} 0\n'

    async def scene():
        async with Exporter(text(body.format("sat"))) as exporter:
            device = device_of(
                "prometheus",
                "smartctl_exporter",
                address=exporter.address,
                parts={"nvme0": "unit1"},
                options={"nvme0": "sda"},
            )
            async with driver_on(device) as driver:
                sample = (await read(driver))["unit1.health_nvme_0"]
                assert sample.quality is Quality.BAD
                assert "without which this says nothing" in sample.reason
                exporter.answer = text(body.format("nvme"))
                assert (await read(driver))["unit1.health_nvme_0"].value == 100.0

    play(scene)


def test_a_reading_that_was_cut_off_anywhere_does_not_keep_the_only_connection():
    async def scene():
        async with LiveTwin(host_device(), HOST) as live, live.session() as driver:
            for turns in range(30):
                reading = asyncio.create_task(driver.read())
                for _ in range(turns):
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                sample = (await read(driver))["unit1.state_clock"]
                assert sample.quality is Quality.GOOD, f"cut off after {turns} turns of the loop: {sample.reason}"

    play(scene)


def test_nothing_is_commanded():
    async def scene():
        async with LiveTwin(host_device(), HOST) as live, live.session() as driver:
            with pytest.raises(Rejected, match="exporters only tell"):
                await driver.write("unit1.state_clock", 1.0)
            assert live.plant.commands == []

    play(scene)


def test_a_port_that_is_taken_is_named():
    async def scene():
        async with LiveTwin(host_device(), HOST) as live:
            with pytest.raises(Unavailable, match="cannot listen on"):
                async with LiveTwin(host_device(address=live.address), HOST):
                    pass

    play(scene)


@pytest.mark.parametrize("address", ["", "ftp://host/", "http://a:b@host/", "http://", "http://[", "host:x"])
def test_an_address_that_is_none_is_rejected(address):
    with pytest.raises(Rejected, match="no address of an exporter"):
        Link(host_device(address=address), Secret())


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"options": {"link9": "eth0"}}, "unknown options link9"),
        ({"parts": {"link0": "unit1"}}, "which one is link0"),
        ({"parts": {"link0": "unit1"}, "options": {"link0": ""}}, "which one is link0"),
    ],
)
def test_options_that_do_not_fit_are_rejected(more, complaint):
    async def scene():
        with pytest.raises(Rejected, match=complaint):
            async with driver_on(host_device(**more)):
                pass

    play(scene)


@pytest.mark.parametrize("words", [{"token": "a b"}, {"token": "a\nb"}, {"token": "ä"}])
def test_a_token_that_would_break_a_header_is_rejected_without_saying_it(words):
    with pytest.raises(Rejected) as error:
        Link(host_device(), Secret(words=words))
    assert words["token"] not in str(error.value)


def test_a_secret_of_two_kinds_is_rejected():
    with pytest.raises(Rejected, match="a user and a token"):
        Link(host_device(), Secret(user="madang", words={"token": "x", "password": "y"}))
