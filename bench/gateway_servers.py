"""The servers that stand between load and upstream, each started by one documented command.

    branchline     branchline serve --backend vllm --engine URL --base examples/quickstart/base --home HOME
    litellm        litellm --config CONFIG.yaml --host 127.0.0.1 --port PORT          (CONFIG: `LITELLM_CONFIG`)
    vllm-router    vllm-router --worker-urls URL --policy round_robin --log-level warning --host 127.0.0.1 --port PORT
    fastapi+httpx  python -m bench.gateway_plain --upstream URL --port PORT
    straight       nothing: the load asks the upstream

LiteLLM and vllm-router live in environments of their own, made by one command each:
`make .branchline/peers/litellm/.ready` and `make .branchline/peers/vllm-router/.ready`. One that is not there is left
out with the reason. Every server is one process on one core. LiteLLM checks a key, as Branchline does; vllm-router and
the plain proxy check none.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.vllm_engine import free_port

from .gateway_answers import MODEL

START_SECONDS = 90.0
PEERS = Path(__file__).parents[1] / ".branchline" / "peers"
LITELLM_KEY = "sk-benchmark"
LITELLM_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: {url}/v1, api_key: none}}
general_settings: {{master_key: {key}}}
"""
QUIET = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@dataclass(frozen=True, slots=True)
class Server:
    """Something that answers chat completions; `pid` is the eldest of its processes."""

    name: str
    port: int
    pid: int
    model: str
    key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Missing(Exception):
    """A peer that is not installed, or does not start; the message says what is missing."""


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes that are started in this block keep to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@asynccontextmanager
async def upstream(log: Path) -> AsyncIterator[Server]:
    """The instant upstream."""
    port = free_port()
    command = [sys.executable, "-m", "bench.gateway_upstream", "--port", str(port)]
    async with _running("straight", command, port, log, health="/health") as server:
        yield server


@asynccontextmanager
async def plain_proxy(url: str, log: Path) -> AsyncIterator[Server]:
    """FastAPI and httpx."""
    port = free_port()
    command = [sys.executable, "-m", "bench.gateway_plain", "--upstream", url, "--port", str(port)]
    async with _running("fastapi_httpx", command, port, log, health="/health") as server:
        yield server


@asynccontextmanager
async def litellm(url: str, log: Path) -> AsyncIterator[Server]:
    """LiteLLM's proxy, one worker, no database; raises `Missing`."""
    port, config = free_port(), log.with_suffix(".yaml")
    config.write_text(LITELLM_CONFIG.format(model=MODEL, url=url, key=LITELLM_KEY))
    command = [_peer("litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    health = "/health/liveliness"
    async with _running("litellm", command, port, log, health=health, variables=QUIET, key=LITELLM_KEY) as server:
        yield server


@asynccontextmanager
async def vllm_router(url: str, log: Path) -> AsyncIterator[Server]:
    """vLLM's router, written in Rust; raises `Missing`."""
    port, metrics = free_port(), free_port()
    command = [
        *(_peer("vllm-router"), "--worker-urls", url, "--policy", "round_robin", "--host", "127.0.0.1"),
        *("--port", str(port), "--prometheus-port", str(metrics), "--log-level", "warning"),
    ]
    async with _running("vllm_router", command, port, log, health="/health") as server:
        yield server


def _peer(name: str) -> str:
    program = PEERS / name / "bin" / name
    if not program.exists():
        raise Missing(f"not installed: make .branchline/peers/{name}/.ready")
    return str(program)


@asynccontextmanager
async def _running(
    name: str,
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    health: str,
    variables: Mapping[str, str] | None = None,
    key: str | None = None,
) -> AsyncIterator[Server]:
    """A process from its first healthy answer to the end of the block."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=file, stderr=file, env={**os.environ, **(variables or {})}, start_new_session=True
        )
    try:
        await _until_healthy(process, f"http://127.0.0.1:{port}{health}", log)
        yield Server(name, port, process.pid, MODEL, key)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 5)


async def _until_healthy(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while process.returncode is None and asyncio.get_running_loop().time() < deadline:
        with suppress(OSError):
            await asyncio.to_thread(fetch, url)
            return
        await asyncio.sleep(0.2)
    raise Missing(f"does not start: {_last_line(log):.200}")


def _last_line(log: Path) -> str:
    return log.read_text(errors="replace").strip().rpartition("\n")[2]


def fetch(url: str) -> bytes:
    """The body of a GET on loopback; raises `OSError` where it is refused."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # always http on loopback
        content: bytes = answer.read()
        return content
