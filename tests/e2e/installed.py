"""Tesseract for the nodes of a federation: the installed one, or Debian's packages unpacked beside the cache."""

from pathlib import Path
from typing import NamedTuple

import pytest
from tests.engine.borrowed import debian

PROGRAM = Path("usr/bin/tesseract")
LANGUAGES = Path("usr/share/tesseract-ocr/5/tessdata")
HOW = "apt-get install tesseract-ocr tesseract-ocr-kor"


class Tesseract(NamedTuple):
    """What nodes must be told to find it, and why it is not to be had; empty when it is."""

    environ: dict[str, str]
    missing: str


def find_tesseract() -> Tesseract:
    """Return where Tesseract with Korean is; where it is installed, nodes need no word about it."""
    root = Path("/")
    if (root / PROGRAM).exists() and (root / LANGUAGES / "kor.traineddata").exists():
        return Tesseract({}, "")
    try:
        root = debian("tesseract", with_needs=("tesseract-ocr", "tesseract-ocr-kor", "tesseract-ocr-eng"))
    except pytest.skip.Exception as error:
        return Tesseract({}, f"no Tesseract with Korean is here ({HOW}), and none can be borrowed: {error}")
    if not (root / PROGRAM).exists() or not (root / LANGUAGES / "kor.traineddata").exists():
        return Tesseract({}, f"Tesseract is here without its Korean: {HOW}")
    libraries = ":".join(str(path) for path in root.glob("usr/lib/*-linux-gnu*"))
    runtime = f'{{program = "{root / PROGRAM}", env = {{LD_LIBRARY_PATH = "{libraries}"}}}}'
    environ = {
        "MADANG_NODE_ENGINE_RUNTIMES": f"{{tesseract = {runtime}}}",
        "MADANG_NODE_ARTIFACT_DIRS": f'["{root / LANGUAGES}"]',
    }
    return Tesseract(environ, "")
