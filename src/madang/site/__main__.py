"""`python -m madang.site --config FILE`: light, so that the embedded federation starts quickly."""

import argparse
import sys
from pathlib import Path

from madang.site.app import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="madang.site", description="Run the site process of one site.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file of SiteSettings")
    sys.exit(main(parser.parse_args().config))
