"""Asks the vendor's own bindings (furiosa-smi) for every card and prints JSON. Run inside a private mount namespace."""

import json
import sys

import furiosa_smi


def describe(device):
    memory = device.memory_usage().values()
    return {
        "name": device.device_name(),
        "serial": device.serial(),
        "bdf": str(device.bdf()),
        "numa_node": device.numa_node(),
        "cores": device.core_num(),
        "is_alive": device.liveness(),
        "firmware": str(device.firmware_version()),
        "temperature_c": device.device_temperature().soc_peak(),
        "power_w": device.power_consumption(),
        "power_limit_mw": device.power_limit(),
        "clocks_mhz": sorted(set(device.core_frequency().values())),
        "occupied": sum("Occupied" in str(status) for status in device.core_status().values()),
        "memory_total_bytes": sum(part.total_bytes() for part in memory),
        "memory_used_bytes": sum(part.in_use_bytes() for part in memory),
        "throttle": [str(reason) for reason in device.throttle_reason()],
    }


def main():
    devices = furiosa_smi.list_devices()
    answer = {
        "driver": str(furiosa_smi.driver_info()) if devices else "",
        "devices": [describe(one) for one in devices],
    }
    json.dump(answer, sys.stdout)


main()
