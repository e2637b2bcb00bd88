"""The command line and the environment of a managed engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .options import EngineOptions

LAUNCHER = "vllm.entrypoints.launchers.api_server.entry"
GUARD = "adapters.engine.guard.Guard"
PLUGIN = "branchline"  # the name of our entry point in `vllm.general_plugins`
HOST = "127.0.0.1"

# OpenAI's own limit on `n`. vLLM's is 16,384: one request could keep an engine from everybody else.
_DEFAULTS = {"VLLM_MAX_N_SEQUENCES": "128"}
_SECRETS = ("BRANCHLINE_API_KEY", "BRANCHLINE_ENGINE_API_KEY", "BRANCHLINE_REGISTRY")
# Stock resolvers would answer for names that ours refuses.
_OTHER_RESOLVERS = ("VLLM_LORA_RESOLVER_CACHE_DIR", "VLLM_LORA_RESOLVER_HF_REPO_LIST")


def command(
    base_folder: Path, base_id: str, port: int, options: EngineOptions, *, middleware: str | None = GUARD
) -> list[str]:
    """What to run. No secret is in it: every user of the machine can read a command line."""
    length = [] if options.max_model_len is None else ["--max-model-len", str(options.max_model_len)]
    return [
        *(options.python, "-m", LAUNCHER),
        *("--model", str(base_folder), "--served-model-name", base_id),
        *("--host", HOST, "--port", str(port)),
        *("--enable-lora", "--max-loras", str(options.max_loras), "--max-lora-rank", str(options.max_lora_rank)),
        *("--max-cpu-loras", str(options.max_cpu_loras), "--dtype", options.dtype),
        *("--tensor-parallel-size", str(options.tensor_parallel_size), *length),
        *([] if middleware is None else ["--middleware", middleware]),
        # The gateway keeps the access log; health polls would fill the engine's.
        *("--disable-fastapi-docs", "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"),
        *options.arguments,
    ]


def engine_environment(environ: Mapping[str, str], key: str, store: str) -> dict[str, str]:
    """The gateway's environment without its secrets, with the engine's `key` and the artifacts' `store`."""
    kept = {name: value for name, value in environ.items() if name not in (*_SECRETS, *_OTHER_RESOLVERS)}
    ours = {
        "VLLM_API_KEY": key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "BRANCHLINE_STORE": store,
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # `python -m` would import from the folder that the gateway was started in
    }
    plugins = environ.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        ours["VLLM_PLUGINS"] = ",".join(filter(None, [plugins, PLUGIN]))
    return {**_DEFAULTS, **kept, **ours}
