"""Waits until an engine is healthy, and pays for its first inference, which takes seconds."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

from ...errors import EngineFailed
from .client import EngineBroke, EngineClient, FixedAddress

POLL_SECONDS = 0.25
POLL_TIMEOUT_SECONDS = 10.0
REFUSALS = 40  # somebody else may hold the port for a moment; our own engine never refuses its key


async def first_answer(url: str, key: str, base_id: str) -> None:
    """Returns once `base_id` has generated a token; waits without limit.

    Raises `EngineFailed` where the engine refuses, `EngineBroke` where it breaks the connection.
    """
    client = EngineClient(FixedAddress(url, key), base_id)
    try:
        await _until_healthy(client)
        status, text = await _generate(client, base_id)
    finally:
        await client.close()
    if status != 200:
        raise EngineFailed(f"vLLM answered {status} to its first request: {text[:200].decode(errors='replace')}")


async def _generate(client: EngineClient, base_id: str) -> tuple[int, bytes]:
    body = {"model": base_id, "prompt": "hello", "max_tokens": 1, "temperature": 0}
    try:
        return await client.send("/v1/completions", body, seconds=math.inf)
    except EngineFailed as error:
        raise EngineBroke("vLLM broke the connection of its first request") from error


async def _until_healthy(client: EngineClient) -> None:
    refused = 0
    while refused < REFUSALS:
        with suppress(EngineFailed):  # not listening yet
            status, _ = await client.get("/health", seconds=POLL_TIMEOUT_SECONDS)
            if status == 200:
                return
            refused += status in (401, 403, 404)
        await asyncio.sleep(POLL_SECONDS)
    raise EngineFailed("what listens on the engine's port refuses its key or has no /health")
