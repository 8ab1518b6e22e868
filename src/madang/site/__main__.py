"""`python -m madang.site --config FILE`: light, so that the embedded federation starts quickly."""

import argparse
import sys
from pathlib import Path

from madang.runtime.collector import resting_collector

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="madang.site", description="Run the site process of one site.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file of SiteSettings")
    config = parser.parse_args().config
    with resting_collector():
        from madang.site.app import main
    sys.exit(main(config))
