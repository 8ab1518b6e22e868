"""What a model's files say of its text: the tokenizer that they bring, and the chat template, each as a hash.

Owns the reading of GGUF, `tokenizer.json` and the files that hold chat templates, and what goes into the hashes.
Refuses to open files: their bytes come in. Called by the hub before it judges whether two artifacts may stand in for
each other, and by `madang model inspect`.

The same vocabulary has the same hash in whichever of these files it stands, so that weights for a processor (GGUF) and
a compiled artifact (with the publisher's JSON files) can be compared: what counts is which number is which token, and
how pieces are merged. Numbers that stand for no token, with which GGUF fills a vocabulary up, do not count. How a text
is cut before any of that, and what is put around it, is no part of it: a comparison shows that by counting tokens.
Vocabularies that GGUF keeps in another form than JSON (SentencePiece, WordPiece) differ in hash even where they mean
the same; that errs on the safe side.

Formats: GGUF by its specification (ggml-org/ggml, docs/gguf.md); `tokenizer.json` as the Rust library `tokenizers`
writes it.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, NamedTuple

import msgspec

from madang.core import Rejected

JSON_BYTES_MAX = 128 * 1024 * 1024
"""Of one JSON file or template; the largest tokenizer.json known to us has 33 MB (a vocabulary of 256,000)."""
GGUF_KEYS_MAX = 4096
GGUF_ELEMENTS_MAX = 8_000_000
"""Of all lists in a GGUF header together; the largest vocabulary known to us has 256,000 tokens, 600,000 merges."""
_DEPTH_MAX = 4
_TAG = b"madang-tokenizer-v1\n"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_TEXT, _LIST = 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FIXED = {kind: struct.Struct(text) for kind, text in _FORMATS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_LEAST_BYTES = {_TEXT: 8, _LIST: 12, **{kind: one.size for kind, one in _FIXED.items()}}
_UNUSED = 5
"""The token type of a number that stands for nothing."""
_KINDS = {"gpt2": "bpe", "t5": "unigram", "bert": "wordpiece"}
"""What GGUF calls kinds of tokenizers that tokenizer.json has too."""
_TOKEN = struct.Struct("<II")

Data = bytes | memoryview


class TextFacts(NamedTuple):
    """SHA-256 in hex of the tokenizer and of the chat template; empty where the files bring none."""

    tokenizer_sha256: str = ""
    template_sha256: str = ""


def has_text_facts(name: str) -> bool:
    """Return whether a file of that name may say anything of tokenizer or template."""
    return name.endswith(".gguf") or name in _READERS


def read_text_facts(files: Mapping[str, Data]) -> TextFacts:
    """Return what an artifact's files say, by their names; others than `has_text_facts` allows are passed over.

    Cost: linear in the header, some 0.4 s for a vocabulary of 150,000.

    Raises:
        Rejected: naming the file, when one is damaged or two of them differ in their tokenizer.
    """
    tokenizers: dict[str, str] = {}
    templates: dict[str, bytes] = {}
    for name in sorted(name for name in files if has_text_facts(name)):
        read = _READERS.get(name, _read_gguf)
        try:
            tokenizer, template = read(files[name])
        except (_BrokenError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise Rejected(f"{name}: expected tokenizer and chat template in a form that is known: {error}") from error
        if tokenizer:
            tokenizers[name] = tokenizer
        if template:
            templates[name] = template
    if len(set(tokenizers.values())) > 1:
        raise Rejected(f"{' and '.join(tokenizers)} bring different tokenizers: expected one")
    # Where a file of its own has the template, that one is used, whatever older files beside it say.
    first = next((templates[name] for name in (*_TEMPLATE_ORDER, *templates) if name in templates), b"")
    return TextFacts(next(iter(tokenizers.values()), ""), hashlib.sha256(first).hexdigest() if first else "")


class _BrokenError(Exception):
    """These bytes are not what they are said to be."""


class _Said(NamedTuple):
    """What one file says: the tokenizer's hash, and the template itself."""

    tokenizer_sha256: str = ""
    template: bytes = b""


def _hash_tokenizer(kind: str, tokens: Iterable[tuple[int, bytes]], merges: Iterable[bytes], scores: bytes) -> str:
    """Return the hash; every part stands behind its length, so that no two vocabularies run into each other."""
    parts = [_TOKEN.pack(number, len(token)) + token for number, token in sorted(tokens)]
    if not parts:
        return ""
    joined = [_U32.pack(len(merge)) + merge for merge in merges]
    digest = hashlib.sha256(_TAG)
    for part in (kind.encode(), b"".join(parts), b"".join(joined), scores):
        digest.update(_U64.pack(len(part)))
        digest.update(part)
    return digest.hexdigest()


# GGUF


class _Reader:
    """Reads a GGUF header from its beginning; nothing beyond the data, and no more elements than are allowed."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self._elements_left = GGUF_ELEMENTS_MAX

    def number(self, form: struct.Struct) -> int:
        return int(form.unpack(self._take(form.size))[0])

    def text(self) -> bytes:
        return bytes(self._take(self.number(_U64)))

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if kind == _TEXT:
            self._take(self.number(_U64))
        elif kind == _LIST:
            self._skip_list(depth)
        else:
            self._take(self._fixed(kind).size)

    def begin_list(self) -> tuple[int, int]:
        """Return kind and number of the elements that follow."""
        kind, count = self.number(_U32), self.number(_U64)
        if kind not in _LEAST_BYTES or count * _LEAST_BYTES[kind] > len(self._data) - self._at:
            raise _BrokenError(f"a list of {count} elements of type {kind} at byte {self._at}")
        self._elements_left -= count
        if self._elements_left < 0:
            raise _BrokenError(f"lists of more than {GGUF_ELEMENTS_MAX} elements")
        return kind, count

    def texts(self) -> list[bytes]:
        """Return a list of texts."""
        kind, count = self.begin_list()
        if kind != _TEXT:
            raise _BrokenError(f"a list of type {kind} where texts belong")
        return [self.text() for _ in range(count)]

    def numbers(self, expected: int) -> bytes:
        """Return a list of numbers of one type as its bytes, little-endian."""
        kind, count = self.begin_list()
        if kind != expected:
            raise _BrokenError(f"a list of type {kind} where type {expected} belongs")
        return bytes(self._take(count * self._fixed(kind).size))

    def _skip_list(self, depth: int) -> None:
        if depth >= _DEPTH_MAX:
            raise _BrokenError(f"lists {_DEPTH_MAX} deep")
        kind, count = self.begin_list()
        if kind in _FIXED:
            self._take(count * _FIXED[kind].size)
            return
        for _ in range(count):
            self.skip(kind, depth + 1)

    def _fixed(self, kind: int) -> struct.Struct:
        if kind not in _FIXED:
            raise _BrokenError(f"a value of type {kind} at byte {self._at}")
        return _FIXED[kind]

    def _take(self, size: int) -> memoryview:
        end = self._at + size
        if end > len(self._data):
            raise _BrokenError(f"it ends at byte {len(self._data)}, where byte {end} belongs to its header")
        taken = self._data[self._at : end]
        self._at = end
        return taken


class _Vocabulary:
    """The keys of a GGUF header that make its tokenizer, as they come."""

    def __init__(self) -> None:
        self.kind = b""
        self.tokens: list[bytes] = []
        self.types: bytes = b""
        self.merges: list[bytes] = []
        self.scores = b""
        self.template = b""

    def read(self, key: bytes, kind: int, reader: _Reader) -> None:
        """Take a value, or pass over one that is none of these."""
        if (key, kind) == (b"tokenizer.ggml.model", _TEXT):
            self.kind = reader.text()
        elif (key, kind) == (b"tokenizer.chat_template", _TEXT):
            self.template = reader.text()
        elif (key, kind) == (b"tokenizer.ggml.tokens", _LIST):
            self.tokens = reader.texts()
        elif (key, kind) == (b"tokenizer.ggml.merges", _LIST):
            self.merges = reader.texts()
        elif (key, kind) == (b"tokenizer.ggml.token_type", _LIST):
            self.types = reader.numbers(5)
        elif (key, kind) == (b"tokenizer.ggml.scores", _LIST):
            self.scores = reader.numbers(6)
        else:
            reader.skip(kind)

    def hash(self) -> str:
        """Return the tokenizer's hash; empty without one."""
        types = [one for (one,) in struct.iter_unpack("<i", self.types)] or [0] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise _BrokenError(f"{len(types)} types of {len(self.tokens)} tokens")
        used = ((number, token) for number, token in enumerate(self.tokens) if types[number] != _UNUSED)
        kind = self.kind.decode()
        return _hash_tokenizer(_KINDS.get(kind, kind), used, self.merges, self.scores)


def _read_gguf(data: Data) -> _Said:
    view = memoryview(data)
    if bytes(view[:4]) != _MAGIC:
        raise _BrokenError(f"it begins with {bytes(view[:4])!r}, expected {_MAGIC!r}")
    reader = _Reader(view[4:])
    version = reader.number(_U32)
    if version not in _VERSIONS:
        raise _BrokenError(f"version {version}, expected one of {_VERSIONS}")
    reader.number(_U64)
    keys = reader.number(_U64)
    if keys > GGUF_KEYS_MAX:
        raise _BrokenError(f"{keys} keys, at most {GGUF_KEYS_MAX}")
    vocabulary = _Vocabulary()
    for _ in range(keys):
        key = reader.text()
        vocabulary.read(key, reader.number(_U32), reader)
    return _Said(vocabulary.hash(), vocabulary.template)


# JSON

_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _AddedToken(msgspec.Struct, frozen=True):
    id: _Number
    content: str


class _Model(msgspec.Struct, frozen=True):
    vocab: dict[str, _Number] | list[tuple[str, float]] = {}
    type: str | None = None
    merges: list[str | tuple[str, str]] = []


class _TokenizerFile(msgspec.Struct, frozen=True):
    model: _Model
    added_tokens: list[_AddedToken] = []


class _NamedTemplate(msgspec.Struct, frozen=True):
    name: str
    template: str


class _TemplateFile(msgspec.Struct, frozen=True):
    chat_template: str | list[_NamedTemplate] | None = None


_tokenizers = msgspec.json.Decoder(_TokenizerFile)
_templates = msgspec.json.Decoder(_TemplateFile)


def _read_tokenizer(data: Data) -> _Said:
    found = _tokenizers.decode(_bounded(data))
    model = found.model
    scores = b""
    if isinstance(model.vocab, dict):
        tokens = {number: token.encode() for token, number in model.vocab.items()}
    else:
        tokens = {number: token.encode() for number, (token, _) in enumerate(model.vocab)}
        # As GGUF keeps them; a score beyond its range is infinite there too.
        scores = b"".join(_pack_score(score) for _, score in model.vocab)
    tokens |= {one.id: one.content.encode() for one in found.added_tokens}
    merges = (one if isinstance(one, str) else " ".join(one) for one in model.merges)
    kind = (model.type or "BPE").lower()
    return _Said(_hash_tokenizer(kind, tokens.items(), (one.encode() for one in merges), scores))


def _pack_score(score: float) -> bytes:
    try:
        return struct.pack("<f", score)
    except OverflowError:
        return struct.pack("<f", float("inf") if score > 0 else float("-inf"))


def _read_template(data: Data) -> _Said:
    found = _templates.decode(_bounded(data)).chat_template
    if isinstance(found, list):
        found = next((one.template for one in found if one.name == "default"), "")
    return _Said(template=(found or "").encode())


def _read_plain_template(data: Data) -> _Said:
    return _Said(template=bytes(_bounded(data)))


def _bounded(data: Data) -> Data:
    if len(data) > JSON_BYTES_MAX:
        raise _BrokenError(f"{len(data)} bytes, at most {JSON_BYTES_MAX}")
    return data


_TEMPLATE_ORDER = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_READERS: dict[str, Callable[[Data], _Said]] = {
    "tokenizer.json": _read_tokenizer,
    "tokenizer_config.json": _read_template,
    "chat_template.json": _read_template,
    "chat_template.jinja": _read_plain_template,
}
