"""Draws answers of upstreams that are nearly right."""

import random

STATUS_LINES = (b"HTTP/1.1 200 OK",) * 8 + (
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 503",
    b"HTTP/1.1 200 ",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000 OK",
    b"HTTP/2.0 200 OK",
    b"HTTP/1.1 200 \xff\xfe",
    b"ICY 200 OK",
    b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 600 x",
)
INTERIM = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 x\r\na: b\r\n\r\n")
FIELDS = (
    b"x-a: 1",
    b"x-a:",
    b"x-a : 1",
    b"x-a: 1\r\n 2",
    b"x-a: \x00",
    b"x-a: \xff",
    b"x a: 1",
    b": x",
    b"x-a",
    b"connection: close",
    b"connection: keep-alive",
    b"connection: upgrade\r\nupgrade: h2c",
    b"content-type: text/event-stream",
)
LENGTHS = (
    b"content-length: %d",
    b"Content-Length:%d",
    b"content-length: %d\r\ncontent-length: %d",
    b"content-length: %d, %d",
    b"content-length: +%d",
    b"content-length : %d",
    b"content-length: 0x%d",
    b"content-length: %d ",
    b"content-length: 99999999999999999999%d",
    b"content-length: -%d",
)
CODINGS = (
    b"transfer-encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: chunked, gzip",
    b"transfer-encoding: identity",
    b"transfer-encoding: xchunked",
    b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    b"transfer-encoding:\tchunked",
    b"transfer-encoding: chunked,",
)
SIZES = (b"%x\r\n",) * 4 + (
    b"%X;a=b\r\n",
    b"0%x\r\n",
    b"%x \r\n",
    b"%x\n",
    b"+%x\r\n",
    b"0x%x\r\n",
    b" %x\r\n",
    b"%x;\xff\r\n",
    b"ffffffffffffffff%x\r\n",
)
ENDS = (b"0\r\n\r\n",) * 5 + (b"0\r\nx: y\r\n\r\n", b"0\r\n\n", b"0\n\n", b"", b"0\r\nx y\r\n\r\n", b"00\r\n\r\n")
BYTES = b"\r\n\t :;,0159afAF\x00\x0b\x7f\x80\xff/HTP.12"


def draw_answers(rng: random.Random) -> bytes:
    """Return an answer, perhaps with interim ones before it and bytes of another behind it."""
    oddness = rng.choice((0.0, 0.1, 0.4))
    data = b"".join(rng.choice(INTERIM) for _ in range(rng.choice((0, 0, 0, 1, 2))))
    data += _draw(rng, oddness)
    if rng.random() < 0.15:
        data += rng.choice((b"x", b"\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"0\r\n\r\n"))
    if rng.random() < 0.25:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(changed) + 1)
            changed[place : place + rng.randrange(2)] = bytes([rng.choice(BYTES)]) if rng.random() < 0.7 else b""
        data = bytes(changed)
    return data


def _draw(rng: random.Random, oddness: float) -> bytes:
    body = bytes(rng.choice(b"ab\r\n0 ") for _ in range(rng.choice((0, 1, 7, 60))))
    lines = [rng.choice(STATUS_LINES) if rng.random() < oddness else STATUS_LINES[0]]
    lines += [rng.choice(FIELDS) for _ in range(rng.randrange(3)) if rng.random() < max(oddness, 0.2)]
    framing = rng.random()
    if framing < 0.4 or rng.random() < oddness / 4:
        form = rng.choice(LENGTHS) if rng.random() < oddness else LENGTHS[0]
        size = len(body) if rng.random() > oddness / 3 else rng.choice((0, 2, len(body) + 1))
        lines.append(form % ((size,) * form.count(b"%d")))
    if 0.4 <= framing < 0.85 or rng.random() < oddness / 4:
        lines.append(rng.choice(CODINGS) if rng.random() < oddness else CODINGS[0])
        made, rest = b"", body
        while rest:
            size = rng.randint(1, len(rest))
            piece, rest = rest[:size], rest[size:]
            form = rng.choice(SIZES) if rng.random() < oddness else SIZES[0]
            end = b"\r\n" if rng.random() > oddness / 6 else rng.choice((b"\n", b"", b"X\r\n"))
            made += form % size + piece + end
        body = made + (rng.choice(ENDS) if rng.random() < oddness else ENDS[0])
    end = b"\r\n" if rng.random() > oddness / 8 else b"\n"
    return end.join(lines) + end + b"\r\n" + body
