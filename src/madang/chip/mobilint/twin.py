"""Simulated Mobilint cards: the PCI bus, and the exporter of the vendor's device plugin on a loopback port.

Owns what they show and their faults. Refuses to know the driver. The model's name begins with `MadangTwin`.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from madang.chip.twin_machine import TwinMachine
from madang.chip.values import TWIN_VENDOR

_MEMORY_BYTES = 16 * 1024**3


class TwinAries(msgspec.Struct, kw_only=True):
    """One simulated card; a reading of -1 is unreadable, as there."""

    address: str
    temperature: float = 45
    power: float = 12.5
    clock_hz: float = 1.2e9
    utilisation: float = 0.0
    memory_used_bytes: int = 0
    health: int = 1


class MobilintTwin:
    """Simulated cards of one machine.

    Args:
        root: the machine's folder; other twins may share it.
        cards: how many.
        has_parents: whether the kernel driver made its devices children of the PCI functions.
    """

    def __init__(self, root: Path, *, cards: int = 1, has_parents: bool = True) -> None:
        self.machine = TwinMachine(root)
        self.text: bytes | None = None
        self.hang = threading.Event()
        self.is_hanging = False
        self.cards = [TwinAries(address=f"0000:{0x41 + number:02x}:00.0") for number in range(cards)]
        for number, card in enumerate(self.cards):
            self.machine.add_pci(card.address, "209f:0000", numa_node=0, cpus="0-1")
            if has_parents:
                device = f"/sys/bus/pci/devices/{card.address}/aries/aries{number}/dev"
                self.machine.write(device, f"240:{number}\n")
        twin = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if twin.is_hanging:
                    twin.hang.wait(60)
                body = twin.metrics() if twin.text is None else twin.text
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the exporter."""
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def metrics(self) -> bytes:
        """Return what the exporter writes now."""
        lines: list[str] = []
        for number, card in enumerate(self.cards):
            labels = f'device="aries{number}"'
            lines.append(f"mobilint_npu_health{{{labels}}} {card.health}")
            if not card.health:
                continue
            info = f'{labels},model="{TWIN_VENDOR} MLA100",driver_version="1.11.0",firmware_version="1.3.2"'
            lines += [
                f"mobilint_npu_info{{{info}}} 1",
                f"mobilint_npu_temperature_celsius{{{labels}}} {card.temperature:g}",
                f"mobilint_npu_clock_npu_hz{{{labels}}} {card.clock_hz:g}",
                f"mobilint_npu_power_watts{{{labels}}} {card.power:g}",
                f"mobilint_npu_memory_total_bytes{{{labels}}} {_MEMORY_BYTES}",
                f"mobilint_npu_memory_used_bytes{{{labels}}} {card.memory_used_bytes}",
                f"mobilint_npu_utilization_ratio{{{labels}}} {card.utilisation:g}",
            ]
        return ("\n".join(lines) + "\n").encode()
