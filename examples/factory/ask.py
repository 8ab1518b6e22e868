"""Asks a factory's services: how defective a solar cell looks, and questions in everyday words.

MADANG_URL and MADANG_KEY say where and with which key; see README.md beside this file.
"""

import argparse
import json
import os
from pathlib import Path

import httpx

SIDE = 300
"""Pixels of a side of a picture of one cell, as the model takes it."""


def main() -> None:
    """Judge pictures, or ask the chat model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", type=Path, action="append", default=[], help="a picture of one cell; repeatable")
    parser.add_argument("--ask", help="a question for the chat model")
    options = parser.parse_args()
    headers = {"authorization": f"Bearer {os.environ['MADANG_KEY']}"}
    with httpx.Client(base_url=os.environ["MADANG_URL"], headers=headers, timeout=300) as client:
        if options.cell:
            judge(client, options.cell)
        if options.ask:
            chat(client, options.ask)


def judge(client: httpx.Client, paths: list[Path]) -> None:
    """Print the score of each picture, all in one batch: near 1 looks defective, near 0 sound."""
    pixels = b"".join(map(read_grey, paths))
    tensor = {
        "name": "image",
        "shape": [len(paths), SIDE, SIDE],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": len(pixels)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    fields = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    answer = client.post("/v2/models/factory-defects/infer", content=head + pixels, headers=fields)
    answer.raise_for_status()
    (output,) = answer.json()["outputs"]
    for path, score in zip(paths, output["data"], strict=True):
        print(f"{score:.3f}  {path.name}")


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


def chat(client: httpx.Client, question: str) -> None:
    """Print the answer to a question."""
    body = {
        "model": "factory-chat",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 200,
        "temperature": 0,
    }
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    print(answer.json()["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()
