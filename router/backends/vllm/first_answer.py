"""Waits until an engine is healthy, and pays for its first inference, which takes seconds."""

from __future__ import annotations

import asyncio

import aiohttp

from ...errors import EngineFailed

POLL_SECONDS = 0.25
POLL_TIMEOUT = aiohttp.ClientTimeout(total=10)
REFUSALS = 40  # somebody else may hold the port for a moment; our own engine never refuses its key


async def first_answer(url: str, key: str, base_id: str) -> None:
    """Returns once `base_id` has generated a token; waits without limit.

    Raises `EngineFailed` where the engine refuses, and what aiohttp raises where it breaks the connection.
    """
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as client:
        await _until_healthy(client)
        body = {"model": base_id, "prompt": "hello", "max_tokens": 1, "temperature": 0}
        async with client.post("/v1/completions", json=body) as answer:
            text = await answer.text(errors="replace")
        if answer.status != 200:
            raise EngineFailed(f"vLLM answered {answer.status} to its first request: {text[:200]}")


async def _until_healthy(client: aiohttp.ClientSession) -> None:
    refused = 0
    while refused < REFUSALS:
        try:
            async with client.get("/health", timeout=POLL_TIMEOUT) as answer:
                if answer.status == 200:
                    return
                refused += answer.status in (401, 403, 404)
        except (aiohttp.ClientError, TimeoutError):
            pass  # not listening yet
        await asyncio.sleep(POLL_SECONDS)
    raise EngineFailed("what listens on the engine's port refuses its key or has no /health")
