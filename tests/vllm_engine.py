"""A real vLLM engine in a process of its own, started as an operator would start one beside Branchline.

Its Python is `BRANCHLINE_VLLM_PYTHON`, or the checkout's `.venv-vllm` (`make .venv-vllm/.ready`). Tests that need it
skip with a reason where there is none, unless `BRANCHLINE_REQUIRE_VLLM` is set, as CI does.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
POCKET_BASE = ROOT / "examples" / "quickstart" / "base"
BASE_ID = "base"
START_SECONDS = 240.0
STOP_SECONDS = 30.0
CALL_SECONDS = 60.0


def vllm_python() -> Path | None:
    """The Python whose environment holds vLLM, `None` where there is none."""
    found = Path(os.environ.get("BRANCHLINE_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")
    return found if found.exists() else None


needs_vllm = pytest.mark.skipif(
    vllm_python() is None and not os.environ.get("BRANCHLINE_REQUIRE_VLLM"),
    reason="no Python with vLLM: run `make .venv-vllm/.ready` or set BRANCHLINE_VLLM_PYTHON",
)


@dataclass(frozen=True, slots=True)
class VllmEngine:
    """A running engine. `log` is the file it writes to, `process` its API server, the leader of its group."""

    url: str
    key: str
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str, *, key: str | None = None) -> tuple[int, str]:
        return self._send(urllib.request.Request(self.url + path, headers=self._headers(key)))

    def post(self, path: str, body: Mapping[str, object], *, key: str | None = None) -> tuple[int, str]:
        headers = {**self._headers(key), "content-type": "application/json"}
        return self._send(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers))

    def chat(self, model: str, text: str, **body: object) -> dict[str, Any]:
        """A greedy answer of at most 8 tokens; fails where the engine refuses it."""
        messages = [{"role": "user", "content": text}]
        status, answer = self.post(
            "/v1/chat/completions",
            {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0, **body},
        )
        assert status == 200, answer
        document: dict[str, Any] = json.loads(answer)
        return document

    def metric(self, name: str) -> float:
        """The sum over a Prometheus metric's series."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def stop(self) -> None:
        """End it in good order, which frees its shared memory; by force where that takes too long."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the engine with all its processes, as `kill -9` does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def _headers(self, key: str | None) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key if key is None else key}"}

    @staticmethod
    def _send(request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=CALL_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def engine_environment(key: str, **variables: str) -> dict[str, str]:
    """What an operator sets for an engine: small caches, no network, runtime LoRA; no Branchline variable but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRANCHLINE_")}
    return {
        **kept,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_API_KEY": key,
        **variables,
    }


@contextmanager
def vllm_engine(
    log: Path,
    *words: str,
    base: Path = POCKET_BASE,
    store: str | None = None,
    port: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[VllmEngine]:
    """An engine from the moment it answers to the end of the block.

    With `store` (a folder or an fsspec URL) it runs Branchline's resolver and guard, without it stock vLLM.
    `words` are further vLLM flags; a flag given twice counts as the last one says.
    """
    python = vllm_python()
    assert python is not None, "BRANCHLINE_REQUIRE_VLLM is set, but there is no Python with vLLM"
    port = port or free_port()
    key = secrets.token_hex(16)
    ours = [] if store is None else ["--middleware", "adapters.engine.guard.Guard"]
    command = [
        *(str(python), "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--model", str(base), "--served-model-name", BASE_ID, "--host", "127.0.0.1", "--port", str(port)),
        *("--enable-lora", "--max-loras", "4", "--max-cpu-loras", "16", "--max-lora-rank", "16"),
        *("--dtype", "float32", "--max-model-len", "1024", *ours, *words),
    ]
    environment = engine_environment(key, **({} if store is None else {"BRANCHLINE_STORE": store}), **(variables or {}))
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=log.parent
        )
    engine = VllmEngine(f"http://127.0.0.1:{port}", key, log, process)
    try:
        _wait_until_up(engine)
        yield engine
    finally:
        if process.poll() is None:
            engine.stop()


def _wait_until_up(engine: VllmEngine) -> None:
    """Until it answers a request: the first one of a start takes seconds, which no test should pay."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        tail = engine.log.read_text(errors="replace")[-4000:]
        assert engine.process.poll() is None, f"vLLM ended while it started:\n{tail}"
        try:
            if engine.get("/health")[0] == 200:
                engine.chat(BASE_ID, "hello")
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"vLLM did not come up:\n{engine.log.read_text(errors='replace')[-4000:]}")
