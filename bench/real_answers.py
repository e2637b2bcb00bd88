"""Rows of a router test file asked of a running gateway, and what came back."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

LONGEST = 200


@dataclass(frozen=True)
class Asked:
    """A row and what came back: the answer, and the route it took (`None` for the base)."""

    label: str
    wanted: str | None
    answer: str
    route: str | None


async def ask_all(
    url: str, rows: Sequence[Mapping[str, str]], models: Sequence[str], wanted: Mapping[str, str]
) -> list[Asked]:
    """One answer per row, 16 at a time. Where no output is known only the route counts: one token."""
    slots = asyncio.Semaphore(16)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(model: str, row: Mapping[str, str]) -> Asked:
            output = wanted.get(row["text"])
            body = {
                "model": model,
                "messages": [{"role": "user", "content": row["text"]}],
                "max_tokens": LONGEST if output is not None else 1,
                "temperature": 0,
            }
            async with slots:
                response = await client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            answer = response.json()["choices"][0]["message"]["content"]
            return Asked(row["label"], output, answer, response.headers.get("x-branchline-route"))

        return list(await asyncio.gather(*(ask(model, row) for model, row in zip(models, rows, strict=True))))
