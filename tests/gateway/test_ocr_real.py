"""Debian's Tesseract behind a gateway: Korean print asked for with a key, counted and charged by the picture."""

import json
import struct
from pathlib import Path

import msgspec
import pytest
from tests import loopback
from tests.engine.test_tesseract import borrowed, errors_share, faq, page_of  # noqa: F401 - a fixture of the next
from tests.engine.test_tesseract import here as tesseract
from tests.gateway.lab import CITY, Lab
from tests.gateway.test_infer import PRICED, serve

from madang.core import ChipId, ReplicaId, ServiceName
from madang.engine.contract import Verdict
from madang.federation.catalog import OCR_MODEL, builtin_catalog, find_entry
from madang.model import ReplicaSpec, Service
from madang.node.cache import hash_file
from madang.testing.engine_contract import run_engine

pytestmark = [pytest.mark.peer, pytest.mark.deep, pytest.mark.timeout(900)]
here = tesseract


def test_korean_pages_become_text_with_one_key_and_are_counted_as_images(here, lab: Lab, tmp_path: Path) -> None:
    driver, files = here
    entry = find_entry(builtin_catalog(), OCR_MODEL)
    (file,) = entry.artifacts[0].files
    assert hash_file(files[file.name]) == file.sha256, "the language file of Debian's package is the catalog's"
    service = "a-service"
    spec = ReplicaSpec(
        replica_id=ReplicaId("r-1"),
        service=ServiceName(service),
        model=entry.name,
        task=entry.task,
        artifact=entry.artifacts[0],
        chip_ids=(ChipId("cpu0"),),
        context_tokens=1,
        slots=1,
    )
    text = "\n".join(faq().splitlines()[:3])  # a whole page takes a busy machine over the engine's minute
    pages = [page_of(text, tmp_path, "page"), page_of(text.splitlines()[0], tmp_path, "line")]
    with run_engine(driver, spec, {file.name: files[file.name]}, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 60)
        lab.services.append(Service(name=ServiceName(service), model=entry.name))
        lab.models.append(entry)
        lab.tariffs.append(msgspec.structs.replace(PRICED, service=ServiceName(service)))
        site = lab.site()
        serve(site, engine.endpoint)
        site.replicas[-1] = msgspec.structs.replace(site.replicas[-1], service=service)
        lab.start(site)
        tail = b"".join(struct.pack("<I", len(page)) + page for page in pages)
        tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        fields = {"inference-header-content-length": str(len(head)), "authorization": f"Bearer {CITY.key}"}
        url = f"http://127.0.0.1:{site.ports['tenant']}/v2/models/{service}/infer"
        answer = loopback.post(url, content=head + tail, headers=fields, timeout=300)
        assert answer.status_code == 200, answer.text
        (event,) = site.events()
    outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
    assert errors_share(outputs["text"][0], text) < 0.1
    assert (event.images, event.samples, event.prompt_tokens) == (2, 0, 0)
    assert event.charge_micro_won == 2 * PRICED.image_micro_won + PRICED.request_micro_won
