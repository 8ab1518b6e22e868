"""The gateway worker with a usage log that keeps nothing, for one comparison of the bench. Never run it elsewhere.

Everything else of the worker is as ever; events are made, then dropped, and whoever waits for the disk is told at the
loop's next turn.
"""

import sys
from pathlib import Path
from typing import Any

from madang.gateway import app
from madang.gateway.usage_log import OnDurable, UsageLog
from madang.model import UsageEvent


class NullUsageLog(UsageLog):
    """Drops every event and says that it is durable."""

    def append(self, event: UsageEvent, on_durable: OnDurable) -> None:
        """Tell `on_durable` at the next turn of the loop."""
        self._loop.call_later(0, on_durable, "")


def main(config: Path, worker: int) -> int:
    """Run the worker."""
    target: Any = app
    target.UsageLog = NullUsageLog
    return app.main(config, worker)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[sys.argv.index("--config") + 1]), 0))
