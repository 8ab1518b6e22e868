"""The NUT driver keeps the contract on its twin, and says what upsd says when it knows nothing."""

import asyncio

import pytest
from tests.facility.redfish_parts import SECRET, UPS, LiveTwin, device_of, driver_on, read

from madang.core import Rejected, Unavailable
from madang.facility.contract import Secret
from madang.facility.nut import codec
from madang.model import Quality
from madang.testing.facility_contract import HANG_S, FacilityReadContract

BY_PHASE = {"voltage_input": 221.0, "voltage": 230.0, "current": 20.0, "power": 4600.0, "load": 15.0}
THREE_PHASE = {name: value for name, value in UPS.items() if name not in BY_PHASE and name != "power_apparent"} | {
    f"{name}_l{phase}": start + 2.5 * phase for name, start in BY_PHASE.items() for phase in (1, 2, 3)
}


class TestUps(FacilityReadContract):
    device = device_of("nut", "ups", options={"ups": "rack1"})
    values = UPS
    half_names = ("charge", "voltage", "state_on_battery")
    sentinel_names = ("runtime", "temperature_battery")


class TestUpsOfThreePhases(FacilityReadContract):
    device = device_of("nut", "ups_three_phase")
    values = THREE_PHASE
    secret = SECRET
    half_names = ("voltage_input_l2", "load_l3")
    sentinel_names = ("charge",)


def ups(values=UPS, **more):
    return LiveTwin(device_of("nut", "ups"), values, **more)


def play(scene):
    async def run():
        async with asyncio.timeout(2 * HANG_S):
            await scene()

    asyncio.run(run())


@pytest.mark.parametrize("error", ["DATA-STALE", "DRIVER-NOT-CONNECTED"])
def test_a_ups_that_upsd_has_lost_gives_bad_samples_with_its_word(error):
    async def scene():
        async with ups() as live, live.session() as driver:
            assert all(one.quality is Quality.GOOD for one in (await read(driver)).values())
            live.twin.error = error
            [reason] = {one.reason for one in (await read(driver)).values()}
            assert error in reason
            live.twin.error = ""
            assert all(one.quality is Quality.GOOD for one in (await read(driver)).values())

    play(scene)


def test_unknown_tokens_are_counted_and_named():
    async def scene():
        async with ups() as live, live.session() as driver:
            live.twin.tokens = ("HE",)
            sample = (await read(driver))["unit1.status_unknown"]
            assert (sample.value, sample.quality) == (1.0, Quality.UNCERTAIN)
            assert sample.reason.endswith("HE")

    play(scene)


def test_a_ups_that_is_not_there_is_said():
    async def scene():
        async with ups() as live, live.session(ups="other") as driver:
            [reason] = {one.reason for one in (await read(driver)).values()}
            assert "UNKNOWN-UPS" in reason

    play(scene)


@pytest.mark.parametrize(("word", "is_good"), [("Pine-needle-47", True), ("wrong", False)])
def test_login_is_done_when_asked_for(word, is_good):
    async def scene():
        async with ups(secret=SECRET) as live:
            secret = Secret(user=SECRET.user, words={"password": word})
            async with live.session(secret=secret, login=True) as driver:
                samples = await read(driver)
                assert {one.quality is Quality.GOOD for one in samples.values()} == {is_good}
                assert is_good or "ACCESS-DENIED" in samples["unit1.charge"].reason

    play(scene)


def test_nothing_is_commanded():
    async def scene():
        async with ups() as live, live.session() as driver:
            with pytest.raises(Rejected, match="cannot be commanded through NUT"):
                await driver.write("unit1.charge", 1.0)
            assert live.plant.commands == []

    play(scene)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"x" * 2 * codec.LINE_BYTES_MAX, "a line over"),
        (b"BEGIN LIST VAR ups\n" + b'VAR ups a.b "1"\n' * (codec.LINES_MAX + 1), "lists more than"),
        (b"BEGIN LIST VAR other\n", "was not asked for"),
        (b'BEGIN LIST VAR ups\nVAR other a.b "1"\nEND LIST VAR ups\n', "was not asked for"),
        (b"", "closes the connection"),
    ],
)
def test_what_upsd_sends_is_bounded_and_checked(said, reason):
    async def scene():
        async def answer(reader, writer):
            await reader.readline()
            writer.write(said)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with driver_on(device_of("nut", "ups", address=address, options={"ups": "ups"})) as driver:
            assert reason in (await read(driver))["unit1.charge"].reason
        server.close()
        await server.wait_closed()

    play(scene)


def test_a_port_that_is_taken_is_named():
    async def scene():
        async with ups() as live:
            with pytest.raises(Unavailable, match="cannot listen on"):
                async with LiveTwin(device_of("nut", "ups", address=live.address), UPS):
                    pass

    play(scene)


@pytest.mark.parametrize("address", ["", ":1", "host:x"])
def test_an_address_that_is_none_is_rejected(address):
    async def scene():
        with pytest.raises(Rejected, match="no address of upsd"):
            async with driver_on(device_of("nut", "ups", address=address)):
                pass

    play(scene)
