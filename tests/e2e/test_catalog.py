"""The catalog that people need, whole: every service of the examples' files in one federation at the same time, asked
through the national entry with one key about inputs that nobody here wrote, and found in `madang usage` with its unit,
its amount and its charge.

Deep: the larger chat model alone is 1.1 GB, and on two cores all of it takes minutes.
"""

import array
import importlib.util
import json
import struct
import wave

import httpx
import pytest
from tests.e2e.embedded import wait_for
from tests.e2e.real_inputs import articles, brain_slice, held_out_cells, recording, write_pgm
from tests.e2e.test_examples import EXAMPLES, is_known, is_ready, run_client, usage_of, wait_for_usage
from tests.engine.test_tesseract import errors_share, faq, page_of

pytestmark = [pytest.mark.federation, pytest.mark.model, pytest.mark.deep, pytest.mark.timeout(1800)]

TENANT = "gwangju-city"
START_S = 900
"""The first start of a model downloads it."""
# Where each service runs, and what it costs: (site, won, by the option of `madang price set`).
SERVICES = {
    "clinic-speech": ("daegu", {"--audio-second": "0.5"}),
    "clinic-notes": ("daegu", {"--tokens-read": "30"}),
    "clinic-mri-demo": ("daegu", {"--image": "10", "--request": "1"}),
    "factory-defects": ("gumi", {"--image": "2.5"}),
    "factory-chat": ("gumi", {"--tokens-read": "300", "--tokens-written": "1200"}),
    "city-search": ("gwangju", {"--tokens-read": "30"}),
    "city-print": ("gwangju", {"--image": "4"}),
    "voice": ("gumi", {"--sample": "0.01"}),
}
# Speech detection is in no example; its rows are samples.
VOICE = '[[service]]\nname = "voice"\nmodel = "silero-vad"\nsites = ["gumi"]\n'
EXTRAS = {"faster_whisper": "speech", "onnxruntime": "onnx"}


@pytest.fixture(scope="module")
def catalog(federation, tesseract, tmp_path_factory):
    """The federation with all of them deployed and priced, each from its file."""
    missing = [extra for module, extra in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"the extras {', '.join(missing)} are not installed: make engines")
    voice = tmp_path_factory.mktemp("voice") / "services.toml"
    voice.write_text(VOICE, encoding="utf-8")
    try:
        for file in (*sorted(EXAMPLES.glob("*/services.toml")), voice):
            federation.madang("service", "apply", "-f", str(file))
        for service, (_, prices) in SERVICES.items():
            federation.madang("price", "set", service, *(word for pair in prices.items() for word in pair))
        for service, (site, _) in SERVICES.items():
            wait_for(f"{service} at {site}", lambda at=(site, service): is_ready(federation, *at), START_S, every_s=1)
            wait_for(f"{service} at the entry", lambda name=service: is_known(federation, TENANT, name), 60, every_s=1)
        yield federation
    finally:
        for service in SERVICES:
            federation.madang("service", "delete", service, is_ok=False)
        for service, (site, _) in SERVICES.items():
            wait_for(f"{service} to end", lambda at=(site, service): not federation.engines(*at), 60, every_s=0.5)


class Asker:
    """A tenant with one key at the national entry; each method asks one service and returns what it must have used."""

    def __init__(self, federation, client, folder):
        self.federation = federation
        self.client = client
        self.folder = folder

    def run(self, example, *words):
        return run_client(self.federation, example, "national", TENANT, *words, timeout_s=400)

    def post(self, path, body):
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def infer(self, service, inputs):
        """Ask with tensors in binary, each (name, datatype, shape, bytes); return outputs by name."""
        tensors = [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, kind, shape, data in inputs
        ]
        head = json.dumps({"inputs": tensors}).encode()
        answer = self.client.post(
            f"/v2/models/{service}/infer",
            content=head + b"".join(data for *_, data in inputs),
            headers={"inference-header-content-length": str(len(head))},
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-madang-site"] == SERVICES[service][0]
        return {one["name"]: one["data"] for one in answer.json()["outputs"]}

    def chat(self):
        question = "대한민국의 수도는 어디입니까? 한 문장으로 답하세요."
        said = self.run("factory", "--ask", question)
        assert "서울" in said
        # The client's own request once more, for its count: greedy, and nothing is kept of prompts.
        messages = [{"role": "user", "content": question}]
        body = {"model": "factory-chat", "messages": messages, "max_tokens": 200, "temperature": 0}
        answer = self.post("/v1/chat/completions", body)
        assert answer["choices"][0]["message"]["content"] == said.strip()
        used = answer["usage"]
        assert used["prompt_tokens"] > 10
        assert used["completion_tokens"] > 3
        return {"requests": 2, **{name: 2 * used[name] for name in ("prompt_tokens", "completion_tokens")}}

    def notes(self):
        notes = self.folder / "articles.txt"
        notes.write_text("\n".join(articles()[:11]), encoding="utf-8")
        wanted = "사람으로서의 가치와 행복을 추구할 권리"
        assert "인간으로서의 존엄과 가치" in self.run("clinic", "--find", wanted, "--notes", str(notes))
        texts = [f"query: {wanted}", *(f"passage: {text}" for text in articles()[:11])]
        used = self.post("/v1/embeddings", {"model": "clinic-notes", "input": texts})["usage"]["prompt_tokens"]
        assert used > 300
        return {"requests": 2, "prompt_tokens": 2 * used}

    def search(self):
        found = articles()[59:89]  # of parliament and government: all of them take two cores minutes
        documents = self.folder / "documents.txt"
        documents.write_text("\n".join(found), encoding="utf-8")
        question = "대통령의 임기는 몇 년인가요?"
        said = self.run("city-hall", "--documents", str(documents), question).splitlines()
        for line in (said[0], said[2]):  # by embeddings, first by rerank
            assert "대통령의 임기는 5년으로 하며, 중임할 수 없다" in line
        texts = [f"query: {question}", *(f"passage: {text}" for text in found)]
        embedded = self.post("/v1/embeddings", {"model": "city-search", "input": texts})["usage"]["prompt_tokens"]
        body = {"model": "city-search", "query": question, "documents": found}
        reranked = self.post("/v1/rerank", body)["usage"]["total_tokens"]
        assert min(embedded, reranked) > 2_000
        return {"requests": 4, "prompt_tokens": 2 * (embedded + reranked)}

    def speech(self):
        path, length_s = recording()
        assert "New Jersey" in self.run("clinic", "--sound", str(path))
        return {"requests": 1, "audio_s": -(-length_s // 1)}

    def print_of_a_page(self):
        text = "\n".join(faq().splitlines()[:3])  # a whole page takes a busy machine over the engine's minute
        picture = self.folder / "page.png"
        picture.write_bytes(page_of(text, self.folder, "drawn"))
        assert errors_share(self.run("city-hall", "--picture", str(picture)), text) < 0.1
        return {"requests": 1, "images": 1}

    def medical(self):
        picture = write_pgm(self.folder / "slice.pgm", 240, brain_slice(240))
        said = self.run("clinic", "--slice", picture).splitlines()
        card = self.client.get("/v1/models/clinic-mri-demo").json()["madang"]
        assert "NEVER CLINICAL" in said[0]
        assert "never clinical" in card["warning"]
        assert card["unit"] == "image"
        # An average of healthy brains; whether the model judges anybody else rightly is not known.
        assert said[1].endswith("no tumor")
        return {"requests": 1, "images": 1}

    def industrial(self):
        pixels, is_defect = held_out_cells(self.folder)
        paths = [write_pgm(self.folder / f"{number}.pgm", 300, pixels[number].tobytes()) for number in range(3)]
        said = self.run("factory", *(word for path in paths for word in ("--cell", path))).splitlines()
        scores = []
        for start in range(0, len(pixels), 50):
            batch = pixels[start : start + 50]
            scores += self.infer("factory-defects", [("image", "UINT8", list(batch.shape), batch.tobytes())])["score"]
        assert [float(line.split()[0]) for line in said] == [pytest.approx(score, abs=6e-4) for score in scores[:3]]
        defects = [score for score, is_bad in zip(scores, is_defect, strict=True) if is_bad]
        sound = [score for score, is_bad in zip(scores, is_defect, strict=True) if not is_bad]
        wins = sum(bad > good for bad in defects for good in sound)
        assert wins / (len(defects) * len(sound)) > 0.8, "area under the ROC curve, on modules it never saw"
        return {"requests": 1 + -(-len(pixels) // 50), "images": 3 + len(pixels)}

    def voice(self):
        path, _ = recording()
        with wave.open(str(path)) as sound:
            frames = array.array("h", sound.readframes(16_000 * 12))[16_000 * 10 :]
        found = []
        for begin in range(64, len(frames) - 512, 512):
            piece = array.array("f", (value / 32768 for value in frames[begin - 64 : begin + 512]))
            inputs = [
                ("input", "FP32", [2, 576], piece.tobytes() * 2),
                ("state", "FP32", [2, 2, 128], bytes(2 * 2 * 128 * 4)),
                ("sr", "INT64", [], struct.pack("<q", 16_000)),
            ]
            found.append(self.infer("voice", inputs)["output"])
        assert all(len(pair) == 2 for pair in found)
        assert max(max(pair) for pair in found) > 0.5, "somebody speaks in these two seconds"
        return {"requests": len(found), "samples": 2 * len(found)}


UNITS = {
    "--tokens-read": "prompt_tokens",
    "--tokens-written": "completion_tokens",
    "--audio-second": "audio_s",
    "--image": "images",
    "--sample": "samples",
    "--request": "requests",
}
PER_MILLION = ("--tokens-read", "--tokens-written")


def charge_of(prices, used):
    """Return what use costs, in millionths of a won: tokens are priced by the million, all else by the piece."""
    return sum(
        round(float(won) * (1 if option in PER_MILLION else 1_000_000)) * used.get(UNITS[option], 0)
        for option, won in prices.items()
    )


def test_one_key_asks_every_model_and_usage_has_each_in_its_unit(catalog, tmp_path):
    before = {service: usage_of(catalog, TENANT, service) for service in SERVICES}
    headers = {"authorization": f"Bearer {catalog.key(TENANT)}"}
    with httpx.Client(base_url=catalog.url("national"), headers=headers, timeout=300) as client:
        asker = Asker(catalog, client, tmp_path)
        used = {
            "clinic-speech": asker.speech(),
            "clinic-notes": asker.notes(),
            "clinic-mri-demo": asker.medical(),
            "factory-defects": asker.industrial(),
            "factory-chat": asker.chat(),
            "city-search": asker.search(),
            "city-print": asker.print_of_a_page(),
            "voice": asker.voice(),
        }
    models = {row["name"]: row["model"] for row in catalog.admin("GET", "/api/v1/services")}
    assert len({models[service] for service in used}) == 7
    for service, counted in used.items():
        row = wait_for_usage(catalog, TENANT, service, before[service], counted["requests"])
        expected = {"charge_micro_won": charge_of(SERVICES[service][1], counted), **counted}
        assert row == {name: expected.get(name, 0) for name in row}, service
