"""`python -m madang.hub --config FILE`: light, so that the embedded federation starts quickly."""

import argparse
import sys
from pathlib import Path

from madang.runtime.collector import resting_collector

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="madang.hub", description="Run the hub of a federation.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file of HubSettings")
    config = parser.parse_args().config
    with resting_collector():
        from madang.hub.app import main
    sys.exit(main(config))
