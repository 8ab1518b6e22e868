"""The tesseract engine's texts: the command line of its child, its model's signature, and Tesseract's table of words.

Owns the reading of all three and the limits. Refuses to run anything. Vendor-free, for the twin imports it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from madang.engine.child_options import ChildOptions, many
from madang.engine.oip_tensors import Port, Signature, split_elements
from madang.wire.oip import BYTES, InferRequest, Tensor
from madang.wire.openai_errors import ApiError, ErrorCode

BODY_BYTES_MAX = 16 * 1024 * 1024
IMAGES_MAX = 8
QUEUE_REQUESTS_MAX = 64
IMAGE_S_MAX = 60.0
PLATFORM = "tesseract"
PAGE_SEGMENTATION = "page_segmentation"
PAGE_SEGMENTATIONS = (6, 3, 4, 7, 11)
"""Of tesseract(1): a block, a page, a column, a line, sparse text; the first where a request does not say.

Not Tesseract's own default, a page: with gaps between lines as wide as letters it took lines for columns of vertical
Korean, and 66 to 99 % of the characters of a clean page were wrong, where as a block none was (5.3.0)."""
SIGNATURE = Signature((Port("image", BYTES, (-1,)),), (Port("text", BYTES, (-1,)), Port("confidence", "FP32", (-1,))))
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"P4", b"P5", b"P6")
_COLUMNS = 12
_WORD = "5"


def _read_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChildOptions):
    """Command line of the engine's child.

    Attributes:
        program: Tesseract's executable.
        files: language files by name, the main language first.
        slots: images at a time.
        threads: CPU threads of one image.
    """

    program: Path
    files: tuple[tuple[str, Path], ...] = field(metadata=many(_read_file, lambda file: f"{file[0]}={file[1]}"))
    slots: int
    threads: int

    @property
    def languages(self) -> str:
        """Return what Tesseract calls them, joined; `osd` finds orientations and is no language."""
        names = [name.removesuffix(".traineddata") for name, _ in self.files]
        return "+".join(name for name in names if name != "osd")


def read_images(request: InferRequest) -> list[bytes]:
    """Return the image files of a request; raises ApiError 400 when they are none, or too many."""
    tensors = {tensor.name: tensor for tensor in request.inputs}
    tensor = tensors.pop("image", None)
    if tensor is None or tensors:
        raise _refused("inputs", f"one input `image`, found {', '.join(one.name[:50] for one in request.inputs)}")
    images = _elements(tensor)
    if not 1 <= len(images) <= IMAGES_MAX:
        raise _refused("image", f"1 to {IMAGES_MAX} images, found {len(images)}")
    for number, image in enumerate(images):
        if not image.startswith(_MAGIC):
            raise _refused("image", f"PNG, JPEG, TIFF or PNM files; image {number} begins with {image[:8]!r}")
    return images


def _elements(tensor: Tensor) -> list[bytes]:
    if tensor.binary is None:
        raise _refused("image", "binary_data_size: image files have no form in JSON")
    if tensor.datatype == BYTES and len(tensor.shape) == 1:
        return split_elements(tensor)
    if tensor.datatype == "UINT8" and len(tensor.shape) == 2 and tensor.shape[0] == 1:
        return [bytes(tensor.binary)]
    raise _refused("image", f"BYTES of shape [n] or UINT8 of shape [1, bytes], found {tensor.datatype} {tensor.shape}")


def read_page_segmentation(request: InferRequest) -> int:
    """Return how pages are taken apart; raises ApiError 400 for a way that is not offered."""
    value = request.parameters.get(PAGE_SEGMENTATION, PAGE_SEGMENTATIONS[0])
    if type(value) is not int or value not in PAGE_SEGMENTATIONS:
        raise _refused(PAGE_SEGMENTATION, f"one of {', '.join(map(str, PAGE_SEGMENTATIONS))}")
    return value


def check_outputs(request: InferRequest) -> tuple[str, ...]:
    """Return the outputs that are wanted; raises ApiError 400 for others than there are."""
    known = tuple(port.name for port in SIGNATURE.outputs)
    wanted = tuple(one.name for one in request.outputs) or known
    for name in wanted:
        if name not in known:
            raise _refused("outputs", f"{' or '.join(known)}, found {name[:50]!r}")
    return wanted


def parse_words(table: str) -> tuple[str, float]:
    """Return text and confidence, 0 to 1, of Tesseract's table (TSV): words in lines, paragraphs apart.

    A row that is no word's, or is damaged, is passed over. Confidence is the mean over characters; 0 without any.
    """
    lines: dict[tuple[str, ...], list[str]] = {}
    weight = certain = 0.0
    for row in table.split("\n"):
        cells = row.rstrip("\r").split("\t", _COLUMNS - 1)
        if len(cells) != _COLUMNS or cells[0] != _WORD or not cells[11].strip():
            continue
        try:
            confidence = float(cells[10])
        except ValueError:
            continue
        if not math.isfinite(confidence):
            continue
        word = cells[11].strip()
        lines.setdefault(tuple(cells[1:5]), []).append(word)
        weight += len(word)
        certain += len(word) * min(max(confidence / 100.0, 0.0), 1.0)
    return _join(lines), certain / weight if weight else 0.0


def _join(lines: dict[tuple[str, ...], list[str]]) -> str:
    parts: list[str] = []
    before: Sequence[str] | None = None
    for place, words in lines.items():
        if before is not None:
            parts.append("\n" if before[:3] == place[:3] else "\n\n")
        parts.append(" ".join(words))
        before = place
    return "".join(parts)


def _refused(param: str, expected: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, f"'{param}': expected {expected}", param=param)
