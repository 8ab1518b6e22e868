"""The Redfish driver keeps the contract on its twin, stays on its origin, and never takes a cap for one that is not."""

import asyncio
import datetime
import hashlib
import json
import ssl

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.facility.redfish_parts import BMC, CDU, RACK_PDU, SECRET, LiveTwin, device_of, driver_on, read

from madang.core import Rejected, Unavailable
from madang.facility.contract import Secret, TwinFault
from madang.facility.redfish.client import BYTES_MAX, LOGIN_PAUSE_S
from madang.facility.redfish.driver import REQUESTS_MAX
from madang.facility.redfish.twin import RedfishTwin
from madang.facility.redfish.twin_sessions import IDLE_S_MAX, SESSIONS_MAX, Sessions
from madang.facility.twin_http import TwinAnswer, TwinHost
from madang.model import Quality
from madang.testing.facility_contract import (
    HANG_S,
    FacilityReadContract,
    FacilityWriteContract,
    HeldPlant,
    StandingClock,
)

DRIVES = {"drive0": "drive_a", "drive3": "drive_d"}
OUTLETS = {"outlet1": "server_a", "outlet12": "server_b"}
ENVIRONMENT = "/redfish/v1/Chassis/1/EnvironmentMetrics"


class TestBmc(FacilityReadContract, FacilityWriteContract):
    device = device_of("redfish", "bmc", parts=DRIVES)
    values = BMC
    secret = SECRET
    half_names = ("energy", "temperature_outlet", "alarm_leak", "health[drive3]")
    sentinel_names = ("power", "temperature_inlet", "speed_fan", "state_health")
    command = ("power_limit", 650.0)
    read_only_name = "power"


class TestRackPdu(FacilityReadContract, FacilityWriteContract):
    device = device_of("redfish", "rack_pdu", parts=OUTLETS)
    values = RACK_PDU
    half_names = ("load", "current_l2", "power[outlet12]")
    sentinel_names = ("voltage_l1", "energy", "state_switch[outlet1]")
    command = ("state_switch[outlet1]", 0.0)
    read_only_name = "power[outlet1]"


class TestCdu(FacilityReadContract, FacilityWriteContract):
    device = device_of("redfish", "cdu", options={"auth": "basic"})
    values = CDU
    secret = SECRET
    half_names = ("flow", "alarm_pump_2", "dew_point")
    sentinel_names = ("temperature_supply", "level_reservoir")
    command = ("temperature_supply_setpoint", 30.0)
    read_only_name = "flow"


def bmc(values=BMC, **more):
    return LiveTwin(device_of("redfish", "bmc", parts=DRIVES), values, **more)


def play(scene):
    async def run():
        async with asyncio.timeout(2 * HANG_S):
            await scene()

    asyncio.run(run())


def test_a_reading_that_was_cut_off_anywhere_does_not_keep_the_only_connection():
    device = device_of("redfish", "bmc", parts=DRIVES, options={"auth": "basic"})

    async def scene():
        async with LiveTwin(device, BMC, SECRET) as live, live.session(auth="basic") as driver:
            for turns in range(40):
                reading = asyncio.create_task(driver.read())
                for _ in range(turns):
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                power = (await read(driver))["unit1.power"]
                assert power.quality is Quality.GOOD, f"cut off after {turns} turns of the loop: {power.reason}"

    play(scene)


def test_a_set_point_that_is_not_in_force_is_no_cap():
    async def scene():
        async with bmc(BMC | {"state_power_limit": 0.0}) as live, live.session() as driver:
            sample = (await read(driver))["unit1.power_limit"]
            assert (sample.value, sample.quality) == (1500.0, Quality.UNCERTAIN)
            assert sample.reason == "ControlMode is Disabled: the set point 800 is not in force"

    play(scene)


def test_setting_a_cap_puts_it_in_force_and_it_can_be_let_go():
    async def scene():
        async with bmc(BMC | {"state_power_limit": 0.0}) as live, live.session() as driver:
            await driver.write("unit1.power_limit", 700.0)
            assert sorted(live.plant.commands) == [("power_limit", 700.0), ("state_power_limit", 1.0)]
            sample = (await read(driver))["unit1.power_limit"]
            assert (sample.value, sample.quality) == (700.0, Quality.GOOD)
            await driver.write("unit1.state_power_limit", 0.0)
            assert (await read(driver))["unit1.power_limit"].quality is Quality.UNCERTAIN

    play(scene)


def test_a_cap_outside_of_what_the_device_allows_is_rejected_with_its_range():
    async def scene():
        async with bmc() as live, live.session() as driver:
            for watts in 299.0, 1501.0:
                with pytest.raises(Rejected, match="allows 300 to 1500"):
                    await driver.write("unit1.power_limit", watts)
            with pytest.raises(Rejected, match="none of the states"):
                await driver.write("unit1.state_power_limit", 1.5)
            with pytest.raises(Rejected, match="no action for powering_on"):
                await driver.write("unit1.state_power", 2.0)
            assert live.plant.commands == []

    play(scene)


def test_a_server_shuts_down_in_its_own_time():
    class SlowServer(HeldPlant):
        def set(self, name, value):
            self.commands.append((name, value))
            self.values[name] = 3.0  # powering_off

    async def scene():
        async with bmc(plant=SlowServer(BMC)) as live, live.session() as driver:
            await driver.write("unit1.state_power", 0.0)
            assert live.plant.commands == [("state_power", 0.0)]
            assert (await read(driver))["unit1.state_power"].text == "powering_off"
            live.plant.values["state_power"] = 0.0
            assert (await read(driver))["unit1.state_power"].text == "off"

    play(scene)


def test_the_service_says_what_is_wrong_with_a_write():
    async def scene():
        async with bmc() as live, httpx.AsyncClient(base_url=live.address) as http:
            got = await http.get(ENVIRONMENT)
            etag = got.headers["ETag"]
            assert "PATCH" in got.headers["Allow"]

            async def patch(body, **headers):
                return await http.patch(ENVIRONMENT, content=json.dumps(body), headers=headers)

            def words(answer):
                [one] = answer.json()["error"]["@Message.ExtendedInfo"]
                return answer.status_code, one["MessageId"].rpartition(".")[2]

            assert words(await patch({"PowerLimitWatts": {"SetPoint": 100}})) == (400, "PropertyValueOutOfRange")
            assert words(await patch({"PowerLimitWatts": {"SetPoint": "x"}})) == (400, "PropertyValueTypeError")
            assert words(await patch({"PowerLimitWatts": {"AllowableMax": 9}})) == (400, "PropertyNotWritable")
            assert words(await patch({"NoSuch": 1})) == (400, "PropertyUnknown")
            assert words(await patch([1])) == (400, "MalformedJSON")
            wanted = {"PowerLimitWatts": {"SetPoint": 500, "ControlMode": "Override"}}
            assert words(await patch(wanted, **{"If-Match": '"old"'})) == (412, "PreconditionFailed")
            assert live.plant.commands == []
            assert (await patch(wanted, **{"If-Match": etag})).status_code == 204
            assert sorted(live.plant.commands) == [("power_limit", 500.0), ("state_power_limit", 2.0)]
            assert (await http.get(ENVIRONMENT)).headers["ETag"] != etag
            assert words(await http.patch("/redfish/v1/Chassis/1", content="{}")) == (405, "OperationNotAllowed")
            assert words(await http.get("/redfish/v1/Chassis/2")) == (404, "ResourceMissingAtURI")
            assert words(await http.get("/redfish/v1/Chassis?$expand=.")) == (501, "QueryNotSupported")

    play(scene)


def test_a_session_that_was_ended_is_opened_anew():
    async def scene():
        async with bmc(secret=SECRET) as live, live.session() as driver:
            assert all(one.quality is Quality.GOOD for one in (await read(driver)).values())
            async with httpx.AsyncClient(base_url=live.address, auth=(SECRET.user, "Pine-needle-47")) as http:
                sessions = (await http.get("/redfish/v1/SessionService/Sessions")).json()["Members"]
                assert len(sessions) == 1
                assert (await http.delete(sessions[0]["@odata.id"])).status_code == 204
                assert all(one.quality is Quality.GOOD for one in (await read(driver)).values())
                await driver.close()
                assert (await http.get("/redfish/v1/SessionService/Sessions")).json()["Members"] == []

    play(scene)


@pytest.mark.parametrize("auth", ["session", "basic"])
def test_refused_credentials_are_not_tried_again_at_once(auth):
    async def scene():
        clock = StandingClock()
        wrong = Secret(user="madang", words={"password": "Oak-leaf-11"})
        async with bmc(secret=SECRET) as live, live.session(secret=wrong, clock=clock, auth=auth) as driver:
            [reason] = {one.reason for one in (await read(driver)).values()}
            assert "401" in reason or "refuses the credentials" in reason
            [reason] = {one.reason for one in (await read(driver)).values()}
            assert "no new attempt" in reason
            clock.now_s += LOGIN_PAUSE_S
            [reason] = {one.reason for one in (await read(driver)).values()}
            assert "no new attempt" not in reason

    play(scene)


def test_one_dead_resource_hides_the_others_once_only():
    async def scene():
        async with bmc() as live:
            live.twin.fault(TwinFault(kind="silent", names=("temperature_inlet",)))
            device = device_of("redfish", "bmc", address=live.address, parts=DRIVES, timeout_s=0.5)
            async with driver_on(device) as driver:
                while True:
                    bad = {one.point_id for one in (await read(driver)).values() if one.quality is Quality.BAD}
                    if bad == {"unit1.temperature_inlet", "unit1.temperature_outlet"}:
                        return

    play(scene)


class Service:
    """A fake Redfish service: documents by path, what it was asked, and how it answers a write."""

    def __init__(self, documents, write_status=204, headers=None):
        self.documents = documents
        self.asked = []
        self.write_status = write_status
        self.headers = headers or {}
        self._host = TwinHost(self._answer)

    def _answer(self, request):
        self.asked.append((request.method, request.path, request.body))
        if request.method != "GET":
            return TwinAnswer(self.write_status)
        found = self.documents.get(request.path)
        if isinstance(found, TwinAnswer):
            return found
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        return TwinAnswer(404 if found is None else 200, body, self.headers)

    async def __aenter__(self):
        self.origin = f"http://127.0.0.1:{await self._host.start('127.0.0.1', 0)}"
        return self

    async def __aexit__(self, *_):
        await self._host.stop()

    def driver(self, **options):
        return driver_on(device_of("redfish", "bmc", address=self.origin, options=options), SECRET_OF_NOBODY)


SECRET_OF_NOBODY = Secret()


def tree(*chassis, members=None, **environment):
    root = {"Chassis": {"@odata.id": "/redfish/v1/Chassis"}}
    links = members if members is not None else [{"@odata.id": f"/redfish/v1/Chassis/{one}"} for one in chassis]
    found = {"/redfish/v1/": root, "/redfish/v1/Chassis": {"Members": links}}
    for one in chassis:
        found[f"/redfish/v1/Chassis/{one}"] = {"EnvironmentMetrics": {"@odata.id": f"/redfish/v1/Chassis/{one}/E"}}
        found[f"/redfish/v1/Chassis/{one}/E"] = environment
    return found


def test_a_link_or_redirect_to_another_place_is_never_followed():
    async def scene():
        async with Service(tree("1", PowerWatts={"Reading": 5})) as other:
            away = [{"@odata.id": f"{other.origin}/redfish/v1/Chassis/1"}]
            async with Service(tree(members=away)) as service, service.driver() as driver:
                reason = (await read(driver))["unit1.power"].reason
                assert "leads away from the device" in reason
            moved = TwinAnswer(302, b"", {"Location": f"{other.origin}/redfish/v1/"})
            async with Service({"/redfish/v1/": moved}) as service, service.driver() as driver:
                assert "redirects to another place" in (await read(driver))["unit1.power"].reason
            assert other.asked == []

    play(scene)


def test_a_redirect_within_the_device_is_followed_but_not_for_ever():
    async def scene():
        documents = tree("1", PowerWatts={"Reading": 5})
        documents["/redfish/v1/Chassis"] = TwinAnswer(308, b"", {"Location": "/redfish/v1/Chassis/"})
        documents["/redfish/v1/Chassis/"] = tree("1")["/redfish/v1/Chassis"]
        async with Service(documents) as service, service.driver() as driver:
            assert (await read(driver))["unit1.power"].value == 5.0
            documents["/redfish/v1/Chassis/1/E"] = TwinAnswer(308, b"", {"Location": "/redfish/v1/Chassis/1/E"})
            assert "redirects more than" in (await read(driver))["unit1.power"].reason

    play(scene)


def test_of_several_chassis_the_option_names_one():
    async def scene():
        async with Service(tree("Self", "Expander10", "Expander9", PowerWatts={"Reading": 5})) as service:
            async with service.driver() as driver:
                reason = (await read(driver))["unit1.power"].reason
                assert "the option 'chassis' names one of: Expander9, Expander10, Self" in reason
            async with service.driver(chassis="Self") as driver:
                assert (await read(driver))["unit1.power"].value == 5.0

    play(scene)


@pytest.mark.parametrize("hint", [{"headers": {"Allow": "GET, HEAD"}}, {"write_status": 405}, {"write_status": 501}])
def test_a_bmc_that_lets_the_cap_be_read_only_says_so(hint):
    async def scene():
        limit = {"SetPoint": 990, "AllowableMin": 500, "AllowableMax": 2000, "ControlMode": "Automatic"}
        async with Service(tree("1", PowerLimitWatts=limit), **hint) as service, service.driver() as driver:
            assert (await read(driver))["unit1.power_limit"].value == 990.0
            with pytest.raises(Rejected, match="read only"):
                await driver.write("unit1.power_limit", 600.0)

    play(scene)


def test_an_older_bmc_is_read_and_capped_by_power_control():
    async def scene():
        documents = tree("1")
        documents["/redfish/v1/Chassis/1"] = {
            "Power": {"@odata.id": "/redfish/v1/Chassis/1/Power"},
            "Thermal": {"@odata.id": "/redfish/v1/Chassis/1/Thermal"},
        }
        control = {"PowerConsumedWatts": 344, "PowerLimit": {"LimitInWatts": 500}}
        documents["/redfish/v1/Chassis/1/Power"] = {"PowerControl": [control]}
        documents["/redfish/v1/Chassis/1/Thermal"] = {
            "Temperatures": [
                {"PhysicalContext": "CPU", "ReadingCelsius": 61},
                {"PhysicalContext": "Intake", "ReadingCelsius": 24},
            ]
        }
        async with Service(documents) as service, service.driver() as driver:
            samples = await read(driver)
            found = [samples[f"unit1.{name}"].value for name in ("power", "power_limit", "temperature_inlet")]
            assert found == [344.0, 500.0, 24.0]
            await driver.write("unit1.power_limit", 450.0)
            _, path, body = service.asked[-1]
            assert path == "/redfish/v1/Chassis/1/Power"
            assert json.loads(body) == {"PowerControl": [{"PowerLimit": {"LimitInWatts": 450}}]}

    play(scene)


def test_what_a_device_sends_is_bounded():
    async def scene():
        documents = tree("1", PowerWatts={"Reading": 5})
        documents["/redfish/v1/Chassis/1/E"] = b'{"PowerWatts": {"Reading": 5}, "x": "' + b"y" * BYTES_MAX + b'"}'
        async with Service(documents) as service, service.driver() as driver:
            assert f"over {BYTES_MAX} bytes" in (await read(driver))["unit1.power"].reason
            documents["/redfish/v1/Chassis/1/E"] = b'{"PowerWatts":' + b"[" * 100_000
            assert "no JSON object" in (await read(driver))["unit1.power"].reason
            assert len(service.asked) < REQUESTS_MAX

    play(scene)


def make_certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bmc-without-a-name")])
    # A year long past: BMCs that lost their clock make such ones, and a pin does not mind.
    start = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=30))
    certificate = builder.sign(key, hashes.SHA256())
    pem = folder / "bmc.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def test_a_pinned_certificate_is_believed_and_no_other(tmp_path):
    async def scene():
        context, pin = make_certificate(tmp_path)
        async with bmc(secret=SECRET, make=RedfishTwin, tls=context) as live:
            assert live.address.startswith("https://")
            async with live.session(fingerprint=pin.upper()) as driver:
                assert (await read(driver))["unit1.power"].value == 612.0
            async with live.session(fingerprint="00" * 32) as driver:
                assert f"the SHA-256 fingerprint {pin}" in (await read(driver))["unit1.power"].reason
            async with live.session() as driver:
                assert "certificate" in (await read(driver))["unit1.power"].reason
            async with live.session(ca_file=str(tmp_path / "absent.pem")) as driver:
                assert "cannot be read" in (await read(driver))["unit1.power"].reason

    play(scene)


def test_a_pin_is_checked_before_anything_is_said(tmp_path):
    async def scene():
        context, _ = make_certificate(tmp_path)
        heard = asyncio.Queue()

        async def listen(reader, writer):
            heard.put_nowait(await reader.read())
            writer.close()

        server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
        address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        device = device_of("redfish", "bmc", address=address, options={"fingerprint": "ab" * 32})
        async with driver_on(device, SECRET) as driver:
            with pytest.raises(Unavailable, match="not the pinned one"):
                await driver.write("unit1.power_limit", 500.0)
        server.close()
        await server.wait_closed()
        assert await heard.get() == b""
        assert heard.empty()

    play(scene)


@pytest.mark.parametrize("address", ["ftp://host", "https://user:word@host", "https://host/redfish", "https://"])
def test_an_address_that_is_none_is_rejected(address):
    async def scene():
        with pytest.raises(Rejected, match="no address of a Redfish service"):
            async with driver_on(device_of("redfish", "bmc", address=address)):
                pass

    play(scene)


def test_a_port_that_is_taken_is_named():
    async def scene():
        async with bmc() as live:
            device = device_of("redfish", "bmc", address=live.address)
            with pytest.raises(Unavailable, match="cannot listen on"):
                async with LiveTwin(device, BMC):
                    pass

    play(scene)


def test_sessions_are_bounded_and_run_out():
    sessions = Sessions(SECRET)
    opened = [sessions.open("madang", "Pine-needle-47", float(number)) for number in range(SESSIONS_MAX)]
    assert all(session_id for session_id, _ in opened)
    assert sessions.open("madang", "Pine-needle-47", float(SESSIONS_MAX)) == ("", "")
    assert sessions.open("madang", "wrong", 0.0) is None
    _, token = opened[5]
    assert sessions.allows({"x-auth-token": token}, 100.0)
    assert not sessions.allows({"x-auth-token": token}, 101.0 + IDLE_S_MAX)
    assert not sessions.allows({"authorization": "Basic !!"}, 0.0)
