"""Asks a city hall's services: which of its answers fit a citizen's question.

MADANG_URL and MADANG_KEY say where and with which key; see README.md beside this file.
"""

import argparse
import json
import math
import os
import struct
from pathlib import Path

import httpx


def main() -> None:
    """Rank documents for a question, first by their embeddings, then by the rerank endpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?")
    parser.add_argument("--picture", type=Path, help="print in a PNG, JPEG, TIFF or PNM file, to become text")
    parser.add_argument("--documents", type=Path, default=Path(__file__).with_name("documents.txt"))
    parser.add_argument("--service", default="city-search")
    parser.add_argument("--top", type=int, default=3)
    options = parser.parse_args()
    documents = [line for line in options.documents.read_text(encoding="utf-8").splitlines() if line]
    headers = {"authorization": f"Bearer {os.environ['MADANG_KEY']}"}
    with httpx.Client(base_url=os.environ["MADANG_URL"], headers=headers, timeout=300) as client:
        if options.picture:
            print(read_print(client, options.picture))
        if options.question is None:
            return
        near = nearest(client, options.service, options.question, documents)
        print("by embeddings / 임베딩:", documents[near])
        body = {"model": options.service, "query": options.question, "documents": documents, "top_n": options.top}
        answer = client.post("/v1/rerank", json=body)
        answer.raise_for_status()
        print("by rerank / 재순위:")
        for place in answer.json()["results"]:
            print(f"  {place['relevance_score']:.3f}  {documents[place['index']]}")
        print("served at / 처리 거점:", answer.headers["x-madang-site"])


def read_print(client: httpx.Client, path: Path) -> str:
    """Return the text of a picture."""
    content = path.read_bytes()
    element = struct.pack("<I", len(content)) + content  # an element of BYTES stands behind its length
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    fields = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    answer = client.post("/v2/models/city-print/infer", content=head + element, headers=fields)
    answer.raise_for_status()
    outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
    return str(outputs["text"][0])


def nearest(client: httpx.Client, service: str, question: str, documents: list[str]) -> int:
    """Return which document is nearest to a question; the prefixes are what this model was trained with."""
    texts = [f"query: {question}", *(f"passage: {text}" for text in documents)]
    answer = client.post("/v1/embeddings", json={"model": service, "input": texts})
    answer.raise_for_status()
    first, *others = (row["embedding"] for row in answer.json()["data"])
    scores = [sum(a * b for a, b in zip(first, other, strict=True)) / math.hypot(*other) for other in others]
    return scores.index(max(scores))


if __name__ == "__main__":
    main()
