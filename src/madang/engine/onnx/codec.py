"""The onnx engine's texts: the command line of its child, and its limits.

Owns both directions of the command line. Refuses to compute. Vendor-free, for the twin imports it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

BODY_BYTES_MAX = 64 * 1024 * 1024
QUEUE_REQUESTS_MAX = 64
QUEUE_BYTES_MAX = 256 * 1024 * 1024
"""Of bodies that wait or are being computed."""
BATCH_ROWS_MAX = 32
BATCH_WAIT_S = 0.002
"""What a lone request may wait for company; requests that queued while another was computed wait no more."""
PLATFORM = "onnxruntime_onnx"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Command line of the engine's child.

    Attributes:
        threads: CPU threads of one computation.
        batch_rows: rows of one computation over several requests, at most; 1 for none.
    """

    model: Path
    alias: str
    host: str
    port: int
    key_file: Path
    threads: int
    batch_rows: int

    def to_argv(self) -> tuple[str, ...]:
        """Return the arguments that `from_argv` reads."""
        return (
            f"--model={self.model}",
            f"--alias={self.alias}",
            f"--host={self.host}",
            f"--port={self.port}",
            f"--key-file={self.key_file}",
            f"--threads={self.threads}",
            f"--batch-rows={self.batch_rows}",
        )

    @staticmethod
    def from_argv(argv: list[str]) -> "ServeOptions":
        """Return the options in `argv`; exits with code 2 and a usage text when they are wrong."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("--model", type=Path, required=True)
        parser.add_argument("--alias", required=True)
        parser.add_argument("--host", required=True)
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--key-file", type=Path, required=True)
        parser.add_argument("--threads", type=int, required=True)
        parser.add_argument("--batch-rows", type=int, required=True)
        return ServeOptions(**vars(parser.parse_args(argv)))
