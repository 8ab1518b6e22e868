"""`python -m madang.hub --config FILE`: light, so that the embedded federation starts quickly."""

import argparse
import sys
from pathlib import Path

from madang.hub.app import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="madang.hub", description="Run the hub of a federation.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file of HubSettings")
    sys.exit(main(parser.parse_args().config))
