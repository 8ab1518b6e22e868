"""The tesseract engine itself: the main of a child process that reads text in images with Tesseract's program.

Owns the answers. Refuses to fetch language files (it gets paths of verified ones), to log texts and to write images to
disk: they go through a pipe. Started by the node's shim as `python -m madang.engine.tesseract.serve`.

Each image has a process of its own. A damaged image may then end the library that reads it without ending anybody
else's request, and nothing of one tenant's image is in memory when the next one's is read.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import struct
import sys
from pathlib import Path

from madang.engine.http_host import HttpAnswer, HttpHost, HttpRequest, Limits, json_answer
from madang.engine.manifest import load_manifest
from madang.engine.oip_surface import Surface, error_answer
from madang.engine.oip_tensors import encode_values, join_elements
from madang.engine.tesseract import codec
from madang.wire.oip import BYTES, InferRequest, Message, Tensor, write_answer
from madang.wire.openai_errors import ApiError, ErrorCode

_READ_S_MAX = 60.0
_TABLE_BYTES_MAX = 16 * 1024 * 1024
_WORDS_MAX = 300
_START_S_MAX = 20.0
_BLANK = b"P5 64 64 255\n" + b"\xff" * 4096
_FLOAT = struct.Struct("<f")


class Reader:
    """Runs Tesseract.

    Args:
        options: program, languages, threads.
        tessdata: folder with the language files.
    """

    def __init__(self, options: codec.ServeOptions, tessdata: Path) -> None:
        self._options = options
        self._tessdata = tessdata
        self._line = load_manifest(Path(__file__).parent).command_for("5")
        self._slots = asyncio.Semaphore(options.slots)
        self.running = self.waiting = 0

    async def check(self) -> str:
        """Return why Tesseract cannot work with these languages, empty when it can.

        A blank image is read: a list of languages names files that cannot be loaded, too, and with several languages
        Tesseract goes on with those that it can.
        """
        try:
            async with asyncio.timeout(_START_S_MAX):
                process = await self._start(codec.PAGE_SEGMENTATIONS[0])
                _, said = await process.communicate(_BLANK)
        except (OSError, TimeoutError) as error:
            return f"{self._options.program} cannot be run: {error or 'it hangs'}"
        words = said.decode(errors="replace")
        if process.returncode or "Failed loading language" in words:
            return f"{self._options.program} does not load {self._options.languages}: {words.strip()[-_WORDS_MAX:]}"
        return ""

    async def read(self, image: bytes, page_segmentation: int, request: HttpRequest) -> tuple[str, float]:
        """Return text and confidence; raises ApiError for an image that cannot be read, or whose client left."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            return codec.parse_words(await self._run(image, page_segmentation, request))
        finally:
            self.running -= 1
            self._slots.release()

    async def _start(self, page_segmentation: int) -> asyncio.subprocess.Process:
        values = {
            "tessdata": self._tessdata,
            "languages": self._options.languages,
            codec.PAGE_SEGMENTATION: page_segmentation,
        }
        return await asyncio.create_subprocess_exec(
            str(self._options.program),
            *self._line.render(values),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"OMP_THREAD_LIMIT": str(self._options.threads)},
            limit=_TABLE_BYTES_MAX,
        )

    async def _run(self, image: bytes, page_segmentation: int, request: HttpRequest) -> str:
        process = await self._start(page_segmentation)
        reading = asyncio.create_task(process.communicate(image))
        leaving = asyncio.create_task(request.until_gone())
        try:
            await asyncio.wait((reading, leaving), timeout=codec.IMAGE_S_MAX, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reason = "the client left" if leaving.done() else f"reading it took over {codec.IMAGE_S_MAX:.0f} s"
                raise ApiError(ErrorCode.INVALID_REQUEST, f"'image': {reason}", param="image", status=422)
            table, said = reading.result()
        finally:
            leaving.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.gather(reading, leaving, return_exceptions=True)
        if process.returncode != 0:
            words = said.decode(errors="replace").strip()[-_WORDS_MAX:]
            message = f"'image': Tesseract cannot read it: {words or f'it ended with {process.returncode}'}"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, param="image", status=422)
        return table.decode(errors="replace")


class OcrServer:
    """Answers requests by the protocol."""

    def __init__(self, reader: Reader, alias: str, key: str) -> None:
        self._reader = reader
        self._alias = alias
        self._key = key
        self._surface = Surface(alias, "tesseract", codec.PLATFORM, codec.SIGNATURE, self._infer)
        self._requests = 0

    async def handle(self, request: HttpRequest) -> HttpAnswer:
        """Answer one request."""
        if request.path == "/health":
            return json_answer({"status": "ok", "running": self._reader.running, "waiting": self._reader.waiting})
        if not request.has_key(self._key):
            return error_answer(ApiError(ErrorCode.INVALID_KEY, "the engine key is missing or wrong"))
        return await self._surface.answer(request)

    async def _infer(self, request: HttpRequest, asked: InferRequest) -> Message:
        images = codec.read_images(asked)
        wanted, segmentation = codec.check_outputs(asked), codec.read_page_segmentation(asked)
        if self._requests >= codec.QUEUE_REQUESTS_MAX:
            raise ApiError(ErrorCode.OVERLOADED, "too many requests wait here", status=503)
        self._requests += 1
        try:
            found = [await self._reader.read(image, segmentation, request) for image in images]
        finally:
            self._requests -= 1
        outputs = tuple(make_output(name, found, is_binary=asked.is_binary(name)) for name in wanted)
        return write_answer(self._alias, "1", asked.request_id, outputs)


def make_output(name: str, found: list[tuple[str, float]], *, is_binary: bool) -> Tensor:
    """Return one of the two outputs in the form that was asked for."""
    shape = (len(found),)
    if name == "text":
        texts = [text for text, _ in found]
        if is_binary:
            packed = join_elements(text.encode() for text in texts)
            return Tensor(name, BYTES, shape, {}, b"", memoryview(packed))
        return Tensor(name, BYTES, shape, {}, encode_values(texts), None)
    sure = [confidence for _, confidence in found]
    if is_binary:
        return Tensor(name, "FP32", shape, {}, b"", memoryview(b"".join(map(_FLOAT.pack, sure))))
    return Tensor(name, "FP32", shape, {}, encode_values(sure), None)


def make_tessdata(folder: Path, files: tuple[tuple[str, Path], ...]) -> Path:
    """Return a folder with the language files by name, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, path in files:
        (folder / name).symlink_to(path)
    return folder


async def run(options: codec.ServeOptions) -> int:
    """Serve until SIGTERM; 1 when Tesseract cannot work."""
    key = options.key_file.read_text(encoding="ascii").strip()
    reader = Reader(options, make_tessdata(options.key_file.parent / "tessdata", options.files))
    wrong = await reader.check()
    if wrong:
        print(wrong, file=sys.stderr, flush=True)
        return 1
    server = OcrServer(reader, options.alias, key)
    host = HttpHost(server.handle, Limits(body_bytes_max=codec.BODY_BYTES_MAX, read_s_max=_READ_S_MAX))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await host.start(options.host, options.port)
    print(
        f"tesseract listens on http://{options.host}:{options.port}, {options.languages}", file=sys.stderr, flush=True
    )
    await stop.wait()
    await host.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(run(codec.ServeOptions.from_argv(sys.argv[1:]))))
