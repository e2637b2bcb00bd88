"""Who answers at an address: which base it serves, since when, and with or without our plugin."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import EngineFailed
from .client import EngineClient, EngineSilent

_START_TIME = re.compile(rb"^process_start_time_seconds (\S+)$", re.MULTILINE)

_WORK = re.compile(
    rb"^vllm:(?:prompt_tokens_total|generation_tokens_total|iteration_tokens_total_sum)\b.*$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Identity:
    """One start of one engine. `started` is different for every start, `None` where the engine does not say.

    `plugin`: it has our resolver and finds versions by itself; else they are loaded through `/v1/load_lora_adapter`.
    """

    plugin: bool
    started: str | None = None
    base_fingerprint: str | None = None
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    max_lora_rank: int | None = None


async def identify(client: EngineClient, base_id: str, *, seconds: float) -> Identity:
    """Ask the engine; raises `EngineFailed` saying what is wrong with it, for operators."""
    status, body = await client.get("/branchline", seconds=seconds)
    if status in (401, 403):
        raise EngineFailed("refuses Branchline's key")
    facts = _object(body) if status == 200 else {}
    await _require_base(client, base_id, seconds=seconds)
    if not isinstance(facts.get("started"), str):
        return Identity(plugin=False, started=await _start_time(client, seconds=seconds))
    if facts.get("resolves") is False:
        raise EngineFailed(
            "has Branchline's guard but not its resolver: set BRANCHLINE_STORE and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 where it is started"
        )
    return Identity(
        plugin=True,
        started=facts["started"],
        base_fingerprint=_text(facts, "base_fingerprint"),
        max_loras=_count(facts, "max_loras"),
        max_cpu_loras=_count(facts, "max_cpu_loras"),
        max_lora_rank=_count(facts, "max_lora_rank"),
    )


async def work_done(client: EngineClient, *, seconds: float) -> list[bytes]:
    """vLLM's counters of tokens: they move as long as its core works, even where no answer is complete yet."""
    try:
        _, body = await client.get("/metrics", seconds=seconds)
    except EngineSilent:
        return []
    return _WORK.findall(body)


async def _require_base(client: EngineClient, base_id: str, *, seconds: float) -> None:
    status, body = await client.get("/v1/models", seconds=seconds)
    if status in (401, 403):
        raise EngineFailed("refuses Branchline's key")
    cards = _object(body).get("data")
    if status != 200 or not isinstance(cards, list):
        raise EngineFailed(f"answers {status} to /v1/models, expected a list of models")
    found = [str(card.get("id")) for card in cards if isinstance(card, dict) and not card.get("parent")]
    if base_id not in found:
        raise EngineFailed(f"serves {', '.join(found) or 'nothing'}, expected {base_id}")


async def _start_time(client: EngineClient, *, seconds: float) -> str | None:
    """When the process began, by its Prometheus metrics."""
    _, body = await client.get("/metrics", seconds=seconds)
    found = _START_TIME.search(body)
    return found[1].decode() if found else None


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _text(facts: Mapping[str, object], key: str) -> str | None:
    value = facts.get(key)
    return value if isinstance(value, str) else None


def _count(facts: Mapping[str, object], key: str) -> int | None:
    value = facts.get(key)
    return value if isinstance(value, int) and value > 0 else None
