"""The onnx engine's texts: the command line of its child, and its limits.

Owns both directions of the command line. Refuses to compute. Vendor-free, for the twin imports it.
"""

from dataclasses import dataclass
from pathlib import Path

from madang.engine.child_options import ChildOptions

BODY_BYTES_MAX = 64 * 1024 * 1024
QUEUE_REQUESTS_MAX = 64
QUEUE_BYTES_MAX = 256 * 1024 * 1024
"""Of bodies that wait or are being computed."""
BATCH_ROWS_MAX = 32
BATCH_WAIT_S = 0.002
"""What a lone request may wait for company; requests that queued while another was computed wait no more."""
PLATFORM = "onnxruntime_onnx"


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChildOptions):
    """Command line of the engine's child.

    Attributes:
        threads: CPU threads of one computation.
        batch_rows: rows of one computation over several requests, at most; 1 for none.
    """

    model: Path
    threads: int
    batch_rows: int
