"""`python -m madang.node --config FILE`: runs one node until SIGTERM.

Owns the command line of the process. Called by supervisors and by `madang node run`.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from madang.core import MadangError
from madang.node.program import NodeProgram
from madang.node.settings import NodeSettings
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.settings import load_settings
from madang.runtime.telemetry import EventLog


def main(config: Path) -> int:
    """Run the node that a settings file describes; return 0 after an orderly stop and 1 when it cannot start."""
    clock = SystemClock()
    log = EventLog(clock, program="node")
    try:
        settings = load_settings(NodeSettings, config, env_prefix="MADANG_NODE_")
        named = log.bind(site_id=settings.site, node_id=settings.name)
        return asyncio.run(_run(settings, clock, named))
    except MadangError as error:
        log.error("node_not_started", reason=str(error))
        return 1


async def _run(settings: NodeSettings, clock: SystemClock, log: EventLog) -> int:
    return await NodeProgram(settings, clock, SystemEntropy(), log).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m madang.node", allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, help="TOML file with the node's settings")
    sys.exit(main(parser.parse_args().config))
