"""The llama_cpp engine itself: the main of a child process that runs llama.cpp's HTTP server.

Owns how llama.cpp is configured. Refuses to restart, drain or log requests: its parent does the first two, and a
prompt is nobody's log entry. Started by the node's shim as `python -m madang.engine.llama_cpp.serve`. SIGTERM
ends it at once; it was drained before.
"""

import sys
import threading

from madang.core import Fault
from madang.engine.llama_cpp.codec import ServeOptions
from madang.engine.llama_cpp.openmp import ensure_openmp

_BATCH_TOKENS = 512
"""A long prompt holds up other slots' tokens for one batch at a time; larger ones gained nothing when measured."""
_LOG_WARNINGS = 2  # llama.cpp: 1 errors, 2 warnings, 3 information about each request


def main(argv: list[str]) -> int:
    """Run the server until a signal ends the process; return 1 when it cannot start."""
    options = ServeOptions.from_argv(argv)
    try:
        ensure_openmp(options.key_file.parent)
    except Fault as error:
        print(error, file=sys.stderr)
        return 1
    # Imported here: 100 MB of vendor code, and a wrong command line should fail before it.
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    params.api_keys = [options.key_file.read_text(encoding="ascii").strip()]
    params.n_parallel = options.slots
    params.n_ctx = options.slots * options.context_tokens
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.prefill_threads
    # Repacked weights are 5 % faster and private to each engine; the file's pages are shared by all of them.
    params.no_extra_bufts = True
    # Every context has its own memory: none of it may pass from one tenant's request to another's.
    params.kv_unified = False
    params.cache_prompt = options.has_prefix_cache
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.ctx_shift = False
    params.use_jinja = True
    params.endpoint_metrics = True
    params.endpoint_slots = False
    params.endpoint_props = False
    params.ui = False
    params.cors_origins = ""
    params.offline = True
    params.verbosity = _LOG_WARNINGS
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        print(f"llama.cpp did not start with {options.model} on port {options.port}: {error}", file=sys.stderr)
        return 1
    print(f"llama.cpp listens on {server.listening_address}", file=sys.stderr, flush=True)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
