"""How many rows of a batch a request by the Open Inference Protocol has, and what they are counted as.

Owns that count and its bound. Refuses to know prices. Called by admission for the most that a request can cost, by the
journey, which refuses what cannot be counted, and by the leg, which enters the count once the answer is there. All
three read the same request, so what is charged is never more than what was reserved.
"""

from typing import NamedTuple

from madang.model import CatalogEntry, Unit
from madang.wire.oip import InferRequest
from madang.wire.openai_errors import ApiError, ErrorCode

ROWS_MAX = 500_000
"""In one request. At the dearest price of a row that a tariff may have, this many cost half of what the ledger believes
of one event."""


class Counted(NamedTuple):
    """Rows, under the unit that they are counted in."""

    images: int
    samples: int


NOTHING_COUNTED = Counted(0, 0)


def count_rows(model: CatalogEntry | None, request: InferRequest) -> Counted:
    """Return what a request is counted as; costs a walk over its tensors' names.

    A shape that says more rows than its values have bytes is a lie that the engine refuses, and is not counted.

    Args:
        model: its catalog entry; None where that is not here, and then the request is one sample.
        request: as it was read.

    Raises:
        ApiError: 400 for more than ROWS_MAX rows.
    """
    rows = 1
    if model is not None and model.unit_input:
        for tensor in request.inputs:
            if tensor.name == model.unit_input and tensor.shape:
                size_bytes = len(tensor.data) if tensor.binary is None else len(tensor.binary)
                rows = min(tensor.shape[0], size_bytes)
    if rows > ROWS_MAX:
        assert model is not None
        message = f"'{model.unit_input}': expected at most {ROWS_MAX} rows in a request, found {rows}"
        raise ApiError(ErrorCode.INVALID_REQUEST, message, param=model.unit_input)
    is_image = model is not None and model.counted_in is Unit.IMAGE
    return Counted(rows, 0) if is_image else Counted(0, rows)
