"""Draws streams of requests that are nearly right: each part of the grammar in ways that parsers disagree about."""

import random

METHODS = (b"POST", b"GET", b"POST", b"post", b"P\xffST", b"PO ST", b"", b"CONNECT", b"OPTIONS", b"A" * 30)
TARGETS = (
    b"/v1/a",
    b"/v1/a?b=c",
    b"/",
    b"*",
    b"http://x/v1/a",
    b"HTTPS://x?q",
    b"http://x",
    b"//x/y",
    b"/a#b",
    b"/a b",
    b"/\xe9",
    b"/\x00",
    b"x:443",
    b"a",
    b"",
    b"/%zz",
    b"/" + b"a" * 300,
)
VERSIONS = (b"HTTP/1.1",) * 8 + (b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b"HTTP/11", b"")
LENGTH_FORMS = (
    b"content-length: %d",
    b"Content-Length:%d",
    b"CONTENT-LENGTH: \t%d \t",
    b"content-length: 0%d",
    b"content-length: +%d",
    b"content-length: %d, %d",
    b"content-length: %d\r\ncontent-length: %d",
    b"content-length : %d",
    b" content-length: %d",
    b"content-length: 0x%d",
    b"content-length: %d.",
    b"content-length: %d\x0b",
    b"content\x00-length: %d",
    b"content-length: -%d",
    b"content-length:\r\n %d",
    b"content-length: %d000000000000000000",
)
CODING_FORMS = (
    b"transfer-encoding: chunked",
    b"Transfer-Encoding:CHUNKED",
    b"transfer-encoding: \tchunked\t",
    b"transfer-encoding: chunked,",
    b"transfer-encoding: ,chunked",
    b"transfer-encoding: identity, chunked",
    b"transfer-encoding: chunked, chunked",
    b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    b"transfer-encoding: xchunked",
    b"transfer-encoding: chunked;q=1",
    b"transfer-encoding: \x0bchunked",
    b"transfer-encoding : chunked",
    b"transfer-encoding:\r\n chunked",
    b"transfer_encoding: chunked",
    b"transfer-encoding: gzip",
    b"transfer-encoding:",
)
FIELDS = (
    b"x-a: 1",
    b"x-a:",
    b"x-a: \xff\xfe",
    b"x-a: b\x00c",
    b"x-a: b\rc",
    b"x-a: b\nc",
    b"x-a: b\r\n c",
    b"x-a",
    b": x",
    b"x a: b",
    b"x-a\t: b",
    b"connection: close",
    b"connection: keep-alive",
    b"Connection: Close, x-a",
    b"connection: x-a, , keep-alive",
    b"connection: content-length",
    b"connection: transfer-encoding",
    b"connection:",
    b"expect: 100-continue",
    b"expect: x",
    b"upgrade: h2c",
    b"trailer: x",
    b"host: y",
    b"host: a b",
    b"accept: a\r\naccept: b",
    b"x-long: " + b"v" * 200,
)
HOSTS = (b"host: x", b"host:", b"Host: a.example:80", b"host: [::1]:8", b"host: a/b", b"host: a:b", b"host: a, b")
SIZE_FORMS = (
    b"%x\r\n",
    b"%X\r\n",
    b"0%x\r\n",
    b"%x;a=b\r\n",
    b"%x ;a\r\n",
    b'%x;a="b;c"\r\n',
    b"%x \r\n",
    b"%x\n",
    b" %x\r\n",
    b"+%x\r\n",
    b"0x%x\r\n",
    b"%x\r\r\n",
    b"%x;a\nb\r\n",
    b"00000000%x\r\n",
    b"\r\n%x\r\n",
    b"%x;" + b"e" * 300 + b"\r\n",
)
ENDS = (b"0\r\n\r\n",) * 6 + (
    b"0\r\nx-t: 1\r\n\r\n",
    b"0;a\r\n\r\n",
    b"00\r\n\r\n",
    b"0\r\nx t: 1\r\n\r\n",
    b"0\r\n\n",
    b"0\n\r\n",
    b"0\r\ncontent-length: 5\r\n\r\n",
    b"0\r\nx-t: 1\r\n 2\r\n\r\n",
    b"",
)
LINE_ENDS = (b"\r\n",) * 20 + (b"\n", b"\r", b"\r\r\n", b"\n\r")
BYTES = b'\r\n\t :;,0159afAF\x00\x0b\x7f\x80\xff/?#"%+-'


def draw_stream(rng: random.Random) -> bytes:
    """Return one to four requests, most of them with an oddity or two, and perhaps some bytes changed."""
    data = b"".join(_draw_request(rng) for _ in range(rng.randint(1, 4)))
    if rng.random() < 0.25:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(changed) + 1)
            odd = bytes([rng.choice(BYTES)])
            changed[place : place + rng.randrange(2)] = odd if rng.random() < 0.7 else b""
        data = bytes(changed)
    return data


def _form(rng: random.Random, forms: tuple[bytes, ...], oddness: float) -> bytes:
    return rng.choice(forms) if rng.random() < oddness else forms[0]


def _draw_request(rng: random.Random) -> bytes:
    oddness = rng.choice((0.0, 0.0, 0.15, 0.4))
    body = bytes(rng.choice(b"ab\r\n0 :") for _ in range(rng.choice((0, 1, 5, 40))))
    lines = [
        b" ".join((_form(rng, METHODS, oddness), _form(rng, TARGETS, oddness), _form(rng, VERSIONS, oddness))),
        *([] if rng.random() < oddness / 4 else [_form(rng, HOSTS, oddness / 4)]),
    ]
    lines += [rng.choice(FIELDS) for _ in range(rng.randrange(3)) if rng.random() < max(oddness, 0.1)]
    framing = rng.random()
    if framing < 0.45 or rng.random() < oddness / 5:
        form = _form(rng, LENGTH_FORMS, oddness)
        size = len(body) if rng.random() > oddness / 3 else rng.choice((0, 3, len(body) + 1))
        lines.append(form % ((size,) * form.count(b"%d")))
    if 0.45 <= framing < 0.85 or rng.random() < oddness / 5:
        lines.append(_form(rng, CODING_FORMS, oddness))
        body = _chunk(rng, body, oddness)
    elif framing >= 0.85 and rng.random() > oddness:
        body = b""
    if rng.random() < oddness:
        rng.shuffle(lines[1:])
    ends = [rng.choice(LINE_ENDS) if rng.random() < oddness / 4 else b"\r\n" for _ in lines]
    head = b"".join(line + end for line, end in zip(lines, ends, strict=True))
    before = b"\r\n" * rng.choice((1, 2, 6)) if rng.random() < oddness / 4 else b""
    return before + head + (rng.choice(LINE_ENDS) if rng.random() < oddness / 4 else b"\r\n") + body


def _chunk(rng: random.Random, body: bytes, oddness: float) -> bytes:
    made = []
    while body:
        size = rng.randint(1, len(body))
        piece, body = body[:size], body[size:]
        said = size if rng.random() > oddness / 6 else size + rng.choice((-1, 1))
        end = b"\r\n" if rng.random() > oddness / 6 else rng.choice((b"\n", b"", b"X\r\n", b"\r"))
        made.append(_form(rng, SIZE_FORMS, oddness) % said + piece + end)
    return b"".join(made) + _form(rng, ENDS, oddness)
