"""Asks a clinic's services: what was said, which note fits it, and what a demonstration model makes of an MRI slice.

MADANG_URL and MADANG_KEY say where and with which key; see README.md beside this file.
"""

import argparse
import array
import json
import math
import os
import sys
from pathlib import Path

import httpx

SIDE = 240
"""Pixels of a side of a slice, as the model takes it."""
CLASSES = ("glioma", "meningioma", "no tumor", "pituitary")
"""In the order of the model's outputs, by its publisher."""
WARNING = "DEMO, NEVER CLINICAL: this must not decide about a patient / 시연용입니다. 진료에 절대 사용하지 마십시오."


def main() -> None:
    """Transcribe a sound, find a note, or look at a slice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sound", type=Path, help="a recording")
    parser.add_argument("--find", help="what to look for in the notes")
    parser.add_argument("--notes", type=Path, default=Path(__file__).with_name("notes.txt"))
    parser.add_argument("--slice", type=Path, help="a slice of an MRI of a head, from above")
    options = parser.parse_args()
    headers = {"authorization": f"Bearer {os.environ['MADANG_KEY']}"}
    with httpx.Client(base_url=os.environ["MADANG_URL"], headers=headers, timeout=300) as client:
        if options.sound:
            print(transcribe(client, options.sound))
        if options.find:
            print(find_note(client, options.find, options.notes.read_text(encoding="utf-8").splitlines()))
        if options.slice:
            look(client, options.slice)


def transcribe(client: httpx.Client, path: Path) -> str:
    """Return what is said in a recording."""
    files = {"file": (path.name, path.read_bytes())}
    answer = client.post("/v1/audio/transcriptions", data={"model": "clinic-speech"}, files=files)
    answer.raise_for_status()
    return str(answer.json()["text"])


def find_note(client: httpx.Client, wanted: str, notes: list[str]) -> str:
    """Return the note that is nearest in meaning; the prefixes are what this model was trained with."""
    texts = [f"query: {wanted}", *(f"passage: {note}" for note in notes)]
    answer = client.post("/v1/embeddings", json={"model": "clinic-notes", "input": texts})
    answer.raise_for_status()
    first, *others = (row["embedding"] for row in answer.json()["data"])
    scores = [sum(a * b for a, b in zip(first, other, strict=True)) / math.hypot(*other) for other in others]
    return notes[scores.index(max(scores))]


def look(client: httpx.Client, path: Path) -> None:
    """Print what the demonstration model makes of a slice, after the warning."""
    print(WARNING)
    values = array.array("f", (grey / 255 for grey in read_grey(path) for _ in range(3)))
    if sys.byteorder == "big":
        values.byteswap()
    tensor = {
        "name": "input",
        "shape": [1, SIDE, SIDE, 3],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 4 * len(values)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    fields = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    answer = client.post("/v2/models/clinic-mri-demo/infer", content=head + values.tobytes(), headers=fields)
    answer.raise_for_status()
    shares = answer.json()["outputs"][0]["data"]
    for share, name in sorted(zip(shares, CLASSES, strict=True), reverse=True):
        print(f"{share:.4f}  {name}")


def read_grey(path: Path) -> bytes:
    """Return a picture's pixels as bytes, row by row; PGM as it is, anything else through Pillow."""
    data = path.read_bytes()
    if data[:2] == b"P5":
        _, width, height, largest, _ = data.split(maxsplit=4)
        size = (int(width), int(height))
        if largest == b"255" and size == (SIDE, SIDE):
            return data[-SIDE * SIDE :]
        raise SystemExit(f"{path}: expected {SIDE} x {SIDE} pixels of 255 greys, found {size} of {largest.decode()}")
    from PIL import Image

    return Image.open(path).convert("L").resize((SIDE, SIDE)).tobytes()


if __name__ == "__main__":
    main()
