"""`python -m madang.gateway --config FILE --worker K`."""

import argparse
import sys
from pathlib import Path

from madang.gateway.app import main

__all__ = ["main"]


def _run() -> int:
    parser = argparse.ArgumentParser(prog="python -m madang.gateway", description="One gateway worker of a site.")
    parser.add_argument("--config", type=Path, required=True, help="the gateway's TOML settings")
    parser.add_argument("--worker", type=int, default=0, help="number of this worker, from 0")
    arguments = parser.parse_args()
    return main(arguments.config, arguments.worker)


if __name__ == "__main__":
    sys.exit(_run())
