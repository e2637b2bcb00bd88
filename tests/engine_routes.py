"""Every route that vLLM's HTTP server can have, walked inside vLLM's own Python: run as a program, JSON on stdout.

All tasks that generate, realtime and speech among them, in development mode and with runtime LoRA: more than any
one engine serves. First it is built without a key, which the guard must refuse.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

TASKS = ("generate", "render", "transcription", "realtime")


def main() -> None:
    """Print `{"refused": message, "routes": ["GET /path", "websocket /path", ...], "outermost": class}`."""
    os.environ |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    os.environ.pop("VLLM_API_KEY", None)
    refused = ""
    try:
        _build()
    except RuntimeError as error:
        refused = str(error)
    os.environ["VLLM_API_KEY"] = "key"
    app = _build()
    routes = sorted({one for route in app.routes for one in _pairs(route)})
    found = {"refused": refused, "routes": routes, "outermost": app.user_middleware[0].cls.__name__}
    sys.stdout.write(json.dumps(found))


def _build() -> Any:
    words = ["--model", "none", "--middleware", "adapters.engine.guard.Guard"]
    parser: Any = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    arguments = importlib.import_module("vllm.entrypoints.launchers.cli_args").make_arg_parser(parser).parse_args(words)
    return importlib.import_module("vllm.entrypoints.launchers.app").build_app(arguments, TASKS)


def _pairs(route: Any) -> list[str]:
    if methods := getattr(route, "methods", None):
        return [f"{method} {route.path}" for method in methods]
    return [f"{'websocket' if 'WebSocket' in type(route).__name__ else 'mount'} {route.path}"]


if __name__ == "__main__":
    main()
