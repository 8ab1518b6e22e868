"""Which devices the bench reads: at least 500 points by SNMP and 400 by Modbus."""

import msgspec

from madang.facility.contract import Device, Secret

SECRET = Secret(user="bench", words={"community": "bench-word", "auth_key": "bench-auth", "priv_key": "bench-priv"})
OUTLETS = {f"outlet{number}": f"outlet_{number}" for number in range(1, 25)}


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """Some devices of one profile."""

    name: str
    driver: str
    profile: str
    count: int
    parts: dict[str, str] = {}
    options: dict[str, str | int | float | bool] = {}

    def device(self, address: str) -> Device:
        """Return one of them."""
        return Device(
            device_id=self.name,
            driver=self.driver,
            address=address,
            profile=self.profile,
            equipment=self.name,
            parts=self.parts,
            options=self.options,
            poll_s=1.0,
            timeout_s=1.0,
        )


FLEET = (
    Kind(name="rack_pdu", driver="snmp", profile="apc_rpdu2", count=4, parts=OUTLETS),
    Kind(name="ups", driver="snmp", profile="ups_rfc1628", count=2),
    Kind(name="ups_v3", driver="snmp", profile="ups_rfc1628", count=1, options={"version": "3"}),
    Kind(name="meter", driver="modbus", profile="eastron_sdm630", count=18),
    Kind(name="cooling", driver="modbus", profile="cooling_unit", count=6),
    Kind(name="battery", driver="modbus", profile="sunspec_battery", count=5),
)
