"""Writes headers of GGUF files for tests: keys and values, no tensors."""

import struct

_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, LIST = 8, 9


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value_of(kind, value):
    """Return a value's bytes; of a list `value` is (kind of its elements, elements)."""
    if kind == TEXT:
        return text(value)
    if kind == LIST:
        inner, elements = value
        return struct.pack("<IQ", inner, len(elements)) + b"".join(value_of(inner, one) for one in elements)
    return struct.pack(_FORMATS[kind], value)


def gguf(*pairs, version=3, keys=None):
    """Return a header with (key, kind, value) in that order."""
    head = b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if keys is None else keys)
    return head + b"".join(text(key) + struct.pack("<I", kind) + value_of(kind, value) for key, kind, value in pairs)


def model(tokens, merges=(), *, kind="gpt2", types=None, template=None, more=()):
    """Return the header of a model with a vocabulary."""
    pairs = [
        ("general.architecture", TEXT, "qwen2"),
        ("tokenizer.ggml.model", TEXT, kind),
        ("tokenizer.ggml.tokens", LIST, (TEXT, tokens)),
        ("tokenizer.ggml.merges", LIST, (TEXT, merges)),
    ]
    if types is not None:
        pairs.append(("tokenizer.ggml.token_type", LIST, (5, types)))
    if template is not None:
        pairs.append(("tokenizer.chat_template", TEXT, template))
    return gguf(*pairs, *more)
