"""What the engines' twins have in common: how a twin behaves, how that is changed, and its main loop.

Owns behaviour and faults. Refuses to know any engine's protocol: each twin answers as its engine does. A twin is
started exactly as its engine is; the file that would hold the weights may hold its behaviour as JSON. Every
answer of a twin says that it is simulated.
"""

import asyncio
import dataclasses
import fcntl
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from madang.engine.http_host import HttpAnswer, HttpHost, HttpRequest, Limits, error_answer, json_answer

SIMULATED_HEADERS = {"x-madang-simulated": "1"}
BEHAVIOUR_PATH = "/twin/behaviour"
_BEHAVIOUR_BYTES_MAX = 64 * 1024


@dataclass
class Behaviour:
    """How a twin behaves; times in seconds, counts go down as they are used.

    Attributes:
        load_s: how long it says that it is loading.
        exit_on_load: exit code with which it dies instead of becoming ready; None never.
        fail_load: a word for how its engine is known to fail while loading, such as `oom`; it dies with those words.
        first_token_s: pause before the first token.
        token_period_s: pause between tokens.
        answer_tokens: tokens of an answer when the request sets no lower bound.
        fail_next: requests to answer with 500.
        hang_next: requests never to answer.
        die_after_tokens: end the process without a word after that many tokens of a stream; None never.
        stall_after_tokens: stop in the middle of a stream and keep the connection open; None never.
        kill_after_tokens: as the kernel does when memory is short: SIGKILL in the middle of a stream; None never.
        wedge: 1 for a server that takes connections, answers nothing and ignores SIGTERM.
        health: `ok`, `sick` or `hang`.
        machine: folder of a simulated machine (a twin of `madang.chip`) whose devices it opens.
    """

    load_s: float = 0.0
    exit_on_load: int | None = None
    fail_load: str = ""
    first_token_s: float = 0.0
    token_period_s: float = 0.0
    answer_tokens: int = 12
    fail_next: int = 0
    hang_next: int = 0
    die_after_tokens: int | None = None
    stall_after_tokens: int | None = None
    kill_after_tokens: int | None = None
    wedge: int = 0
    health: str = "ok"
    machine: str = ""

    def change(self, values: object) -> str:
        """Take new values from decoded JSON; return what is wrong with them, or an empty string."""
        if not isinstance(values, dict):
            return "expected a JSON object"
        known = {field.name for field in dataclasses.fields(self)}
        for name, value in values.items():
            if name not in known:
                return f"unknown key {name!r}; known: {', '.join(sorted(known))}"
            if not isinstance(value, int | float | str | None) or isinstance(value, bool):
                return f"{name}: expected a number, a word or null"
        for name, value in values.items():
            setattr(self, name, value)
        return ""


def read_behaviour(path: Path) -> Behaviour:
    """Return the behaviour in a file, or the default when it holds none (such as real weights)."""
    behaviour = Behaviour()
    with path.open("rb") as file:
        head = file.read(_BEHAVIOUR_BYTES_MAX)
    try:
        behaviour.change(json.loads(head))
    except ValueError:
        return Behaviour()
    return behaviour


def open_device(machine: str, path: str, first: int = 0, count: int = 1) -> bool:
    """Open a device of a simulated machine until this process ends; return False where another process has it.

    Record locks play the exclusive use that a vendor's kernel driver grants: byte N of the node is core N, and like a
    driver's they are gone with the process, however it ends.
    """
    descriptor = os.open(f"{machine}{path}", os.O_RDWR | os.O_CLOEXEC)  # never closed: that would give it back
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
    except (BlockingIOError, PermissionError):
        return False
    return True


@dataclass(frozen=True)
class Failure:
    """How an engine dies while loading: its last words and its exit code; -9 for the kernel's SIGKILL."""

    words: str
    code: int


@dataclass(frozen=True)
class Manners:
    """What differs between engines before any model answers.

    Attributes:
        open_paths: need no key, by their beginnings.
        health: answers `/health` itself, by whether it is well; None for the shape that ours follow.
        refusal: what a request without the key gets.
        listens_early: whether it listens while it loads.
        failures: how it fails while loading, by word.
    """

    open_paths: tuple[str, ...] = ()
    health: Callable[[bool], HttpAnswer] | None = None
    refusal: HttpAnswer | None = None
    listens_early: bool = True
    failures: Mapping[str, Failure] = field(default_factory=dict)


class Twin:
    """A fake engine's frame: key, health, faults, control. Subclass-free: the endpoints come as a handler.

    Args:
        behaviour: how it starts out.
        key: bearer token that it asks for.
        respond: answers one request of the engine's own protocol.
        manners: where its engine differs from ours.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        key: str,
        respond: Callable[[HttpRequest], Awaitable[HttpAnswer]],
        manners: Manners | None = None,
    ) -> None:
        self.behaviour = behaviour
        self.manners = manners or Manners()
        self._key = key
        self._respond = respond
        self._loaded_at_s = asyncio.get_running_loop().time() + behaviour.load_s

    async def handle(self, request: HttpRequest) -> HttpAnswer:
        """Answer one request."""
        answer = await self._choose(request)
        return dataclasses.replace(answer, headers=answer.headers | SIMULATED_HEADERS)

    async def _choose(self, request: HttpRequest) -> HttpAnswer:
        if self.behaviour.wedge:
            await asyncio.Event().wait()
        if request.path == "/health":
            return await self._health()
        is_open = request.path != BEHAVIOUR_PATH and request.path.startswith(self.manners.open_paths)
        if not is_open and not request.has_key(self._key):
            return self.manners.refusal or error_answer(401, "invalid_key", "Invalid API Key", "authentication_error")
        if request.path == BEHAVIOUR_PATH:
            return self._change(request)
        if self.is_loading:
            return error_answer(503, "unavailable", "Loading model", "unavailable_error")
        if request.method == "POST":
            fault = await self._fault(request)
            if fault is not None:
                return fault
        return await self._respond(request)

    @property
    def is_loading(self) -> bool:
        """Whether the pretended model is still being loaded."""
        return asyncio.get_running_loop().time() < self._loaded_at_s

    async def _health(self) -> HttpAnswer:
        if self.behaviour.health == "hang":
            await asyncio.Event().wait()
        if self.manners.health is not None and not self.is_loading:
            return self.manners.health(self.behaviour.health == "ok")
        if self.is_loading:
            return error_answer(503, "unavailable", "Loading model", "unavailable_error")
        if self.behaviour.health != "ok":
            return json_answer({"status": "error", "reason": "fault of the twin", "is_simulated": True}, 500)
        return json_answer({"status": "ok", "is_simulated": True})

    async def _fault(self, request: HttpRequest) -> HttpAnswer | None:
        behaviour = self.behaviour
        if behaviour.hang_next > 0:
            behaviour.hang_next -= 1
            await request.until_gone()
            return error_answer(500, "gone", "the client left")
        if behaviour.fail_next > 0:
            behaviour.fail_next -= 1
            return error_answer(500, "internal_error", "fault of the twin", "server_error")
        return None

    def _change(self, request: HttpRequest) -> HttpAnswer:
        if request.method == "POST":
            try:
                wrong = self.behaviour.change(json.loads(request.body))
            except ValueError as error:
                wrong = str(error)
            if wrong:
                return error_answer(400, "invalid_request", wrong)
        return json_answer(dataclasses.asdict(self.behaviour))

    async def pace(self, index: int, request: HttpRequest) -> bool:
        """Wait until token `index` of a stream is due, faults included; return whether anybody still listens."""
        behaviour = self.behaviour
        if behaviour.die_after_tokens is not None and index >= behaviour.die_after_tokens:
            os._exit(70)
        if behaviour.kill_after_tokens is not None and index >= behaviour.kill_after_tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour.stall_after_tokens is not None and index >= behaviour.stall_after_tokens:
            await request.until_gone()
        await asyncio.sleep(behaviour.first_token_s if index == 0 else behaviour.token_period_s)
        return not request.is_gone()


async def run_twin(twin: Twin, host: str, port: int, limits: Limits | None = None) -> int:
    """Serve until SIGTERM, or until the twin is told to die while loading; return the exit code."""
    stop = asyncio.Event()

    def on_term() -> None:
        if not twin.behaviour.wedge:
            stop.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_term)
    server = HttpHost(twin.handle, limits)
    if twin.manners.listens_early:
        await server.start(host, port)
    if twin.behaviour.fail_load:
        await asyncio.sleep(twin.behaviour.load_s)
        return _fail(twin.manners.failures[twin.behaviour.fail_load])
    if twin.behaviour.exit_on_load is not None:
        await asyncio.sleep(twin.behaviour.load_s)
        return twin.behaviour.exit_on_load
    if not twin.manners.listens_early:
        await asyncio.sleep(twin.behaviour.load_s)
        await server.start(host, port)
    await stop.wait()
    # Like the engine, it does not finish what is in flight: whoever stops it has drained it first.
    return 0


def _fail(failure: Failure) -> int:
    print(failure.words, file=sys.stderr, flush=True)
    if failure.code < 0:
        os.kill(os.getpid(), -failure.code)
    return failure.code
