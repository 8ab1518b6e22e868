"""A fake Furiosa-LLM server: its command line, paths, metrics and ways to fail, without a chip.

Owns the simulated answers. Its behaviour is read from the model's `config.json` or `artifact.json`. On a simulated
machine that this names it opens the PEs of its `--devices` for itself alone, as the runtime does. Every answer carries
`x-madang-simulated`. Started by `vendor_start`. Paths and error object: furiosa_llm/server of furiosa-llm 2026.4.0;
metric names: strings of furiosa-llm-native 2026.4.0.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from madang.core import Rejected
from madang.engine.furiosa_llm.codec import parse_devices
from madang.engine.http_host import HttpAnswer, HttpRequest, json_answer
from madang.engine.openai_twin import OpenAiTwin, Served
from madang.engine.twin_kit import Failure, Manners, Twin, open_device, read_behaviour, run_twin

_KINDS = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError"}
_BUSY = "RuntimeError: /dev/rngd/{}: device or resource busy (os error 16)"
_FAILURES = {
    "version": Failure("ValueError: unknown variant `ShardingContext`, expected one of `Fx`, `Edf`", 1),
    "oom": Failure("RuntimeError: failed to allocate DRAM of npu0: out of memory", 1),
    "oom_kill": Failure("Loading weights:  50%", -9),
    "busy": Failure(_BUSY.format("npu0pe0-3"), 1),
}


def refuse(status: int, message: str) -> HttpAnswer:
    """Return its error object, which is not within an `error`."""
    kind = _KINDS.get(status, "InternalServerError")
    return json_answer({"object": "error", "message": message, "type": kind, "param": None, "code": status}, status)


class FuriosaTwin:
    """Answers as Furiosa-LLM's server would.

    Args:
        options: its command line, parsed.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        manners = Manners(
            open_paths=("/health", "/metrics", "/version", "/tokenize", "/rerank"),
            health=lambda is_well: HttpAnswer(200 if is_well else 503, content_type="text/plain"),
            refusal=json_answer({"error": "Unauthorized"}, 401),
            listens_early=False,
            failures=_FAILURES,
        )
        name = "config.json" if options.fxb is not None else "artifact.json"
        self.twin = Twin(read_behaviour(Path(options.model) / name), options.api_key, self.respond, manners)
        served = Served(
            alias=options.served_model_name,
            slots=options.max_concurrency,
            context_tokens=options.max_model_len,
        )
        self._openai = OpenAiTwin(served, self.twin, refuse, has_choices=False)

    async def respond(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request that passed key, loading and faults."""
        if (request.method, request.path) == ("GET", "/metrics"):
            return self._metrics()
        if (request.method, request.path) == ("GET", "/version"):
            return json_answer({"version": "2026.4.0+simulated"})
        answer = await self._openai.answer(request)
        return answer if answer is not None else json_answer({"detail": "Not Found"}, 404)

    def _metrics(self) -> HttpAnswer:
        labels = f'{{model_name="{self._openai.served.alias}",engine="0"}}'
        values = {
            "num_requests_running": self._openai.running,
            "num_requests_waiting": self._openai.waiting,
            "kv_cache_usage_percent": self._openai.running / self._openai.served.slots,
            "prompt_tokens_total": self._openai.read,
            "generation_tokens_total": self._openai.generated,
        }
        text = "".join(f"furiosa_llm_{name}{labels} {value}\n" for name, value in values.items())
        return HttpAnswer(200, text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options of `furiosa-llm serve`; exits with code 2 for flags that it does not have."""
    parser = argparse.ArgumentParser(prog="furiosa-llm", allow_abbrev=False)
    parser.add_argument("command", choices=("serve",))
    parser.add_argument("model")
    parser.add_argument("--fxb", type=Path)
    parser.add_argument("--devices", required=True)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104  the vendor's default, which our driver never leaves
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-concurrency", type=int, required=True)
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Serve until SIGTERM."""
    options = parse(argv)
    try:
        devices = parse_devices(tuple(options.devices.split(",")))
    except Rejected as error:
        print(f"ValueError: {error}", file=sys.stderr, flush=True)
        return 1
    if options.fxb is not None and not options.fxb.exists():
        print(f"FileNotFoundError: {options.fxb}", file=sys.stderr, flush=True)
        return 1

    async def run() -> int:
        twin = FuriosaTwin(options).twin
        if twin.behaviour.machine:
            for card, pes in devices:
                if not open_device(twin.behaviour.machine, f"/dev/rngd/npu{card}mgmt", pes.start, len(pes)):
                    print(_BUSY.format(f"npu{card}pe{pes.start}"), file=sys.stderr, flush=True)
                    return 1
        return await run_twin(twin, options.host, options.port)

    return asyncio.run(run())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
