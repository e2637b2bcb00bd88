"""A stand-in for the gateway: one managed vLLM and nothing else, in a process that a test can kill.

`python -m tests.managed_gateway PYTHON BASE STORE LOG`. Each change of its engine is a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from adapters.base import find_base
from router.backends.vllm.options import EngineOptions
from router.backends.vllm.process import ManagedEngine


def show(**facts: object) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201


async def run(python: str, base: str, store: str, log: str) -> None:
    options = EngineOptions(python, max_cpu_loras=16, dtype="float32", max_model_len=1024)
    engine = ManagedEngine(find_base(base), store, options, say=lambda said: show(said=said), log_file=Path(log))

    def note() -> None:
        show(
            url=engine.url,
            key=engine.key,
            generation=engine.generation,
            state=engine.state,
            problem=engine.problem,
        )

    engine.on_change = note
    await engine.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
