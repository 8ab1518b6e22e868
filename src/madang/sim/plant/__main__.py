"""`python -m madang.sim.plant --config FILE`, as the supervisor starts it."""

import argparse
import sys
from pathlib import Path

from madang.sim.plant.program import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m madang.sim.plant")
    parser.add_argument("--config", type=Path, required=True)
    sys.exit(main(parser.parse_args().config))
