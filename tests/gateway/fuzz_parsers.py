"""A fuzzer guided by coverage, run as a program: `fuzz_parsers.py requests|answers [libFuzzer's options]`.

The first bytes of an input say where the rest is cut. An input that breaks the comparison with h11 ends the program.
"""

import sys
from collections.abc import Callable, Iterable

import atheris

with atheris.instrument_imports(include=["madang.wire.http1", "madang.gateway.http1", "madang.gateway.exchange"]):
    from tests.gateway.upstream_bench import check_answers
    from tests.gateway.wire_bench import check

SEEDS = {
    "requests": [
        b"\x05\x11POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabcGET /b?c HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x30\x40POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nt: u\r\n\r\n",
        b"\x01\x02GET http://x/y HTTP/1.0\r\nconnection: keep-alive, a\r\na: b\r\nexpect: 100-continue\r\n\r\n",
    ],
    "answers": [
        b"\x05\x11HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        b"\x30\x40HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nt: u\r\n\r\n",
    ],
}


def main() -> None:
    """Fuzz what the first argument names."""
    name = sys.argv.pop(1)
    judge: Callable[[bytes, Iterable[int]], None] = {"requests": check, "answers": check_answers}[name]

    def run(data: bytes) -> None:
        judge(data[2:], data[:2])

    for seed in SEEDS[name]:
        run(seed)
    corpus = next(one for one in sys.argv[1:] if not one.startswith("-"))
    for number, seed in enumerate(SEEDS[name]):
        with open(f"{corpus}/seed{number}", "wb") as file:
            file.write(seed)
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


main()
