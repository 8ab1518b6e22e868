"""A process that serves a folder and cuts the link when told: `cut` and `heal` on standard input.

Its server is the one that sites run. Cutting closes the port and breaks every connection, as a lost line does.
"""

import sys
from pathlib import Path

from madang.runtime.artifacts.serving import ArtifactServer


def main() -> int:
    """Serve until standard input ends."""
    folder = Path(sys.argv[1])

    def start(port: int) -> ArtifactServer:
        server = ArtifactServer(folder, lambda path, headers: None, lambda sha256: None, "127.0.0.1", port)
        server.start()
        return server

    server = start(0)
    port = server.port
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        if line.strip() == "cut":
            server.stop()
        elif line.strip() == "heal":
            server = start(port)
        sys.stdout.write("done\n")
        sys.stdout.flush()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
