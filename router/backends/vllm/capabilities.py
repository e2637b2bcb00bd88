"""What a vLLM engine can do, found out by asking it: small harmless requests, with the key and without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import EngineFailed, EngineUnavailable
from .client import EngineClient, FixedAddress
from .traces import TOP, Trace, chat_trace, completion_trace

Send = Callable[[str, str, Mapping[str, object] | None, bool], Awaitable[tuple[int, bytes]]]
Level = Literal["ok", "note", "problem"]
AdaptersBy = Literal["resolver", "load_lora_adapter", "nothing"]

KEYLESS = (
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/tokenize"),
)
TESTED = "0.32."
_CLOSED = frozenset({401, 403, 404, 405})


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found. `None` where the engine does not say. `facts` is what our guard answers, empty without it.

    `open_paths` answer without a key. `refusals` say, per request that did not work, why.
    """

    vllm: str | None
    facts: Mapping[str, Any]
    served: tuple[str, ...]
    base_id: str | None
    max_model_len: int | None
    open_paths: tuple[str, ...]
    adapters_by: AdaptersBy
    generated_logprobs: bool
    token_ids: bool
    chat: bool
    tokenize: bool
    responses: bool
    metrics: bool
    refusals: Mapping[str, str] = field(default_factory=dict)

    @property
    def guarded(self) -> bool:
        return bool(self.facts)


def examine_engine(url: str, key: str | None, *, base_id: str | None, timeout_seconds: float = 20.0) -> Capabilities:
    """Ask the engine at `url`; for commands, not for an event loop. `base_id` defaults to the first model it serves.

    Raises `EngineUnavailable` where nothing answers and `EngineFailed` where what answers is no vLLM.
    """
    return asyncio.run(_examine(url.rstrip("/"), key, base_id, timeout_seconds))


async def _examine(url: str, key: str | None, base_id: str | None, seconds: float) -> Capabilities:
    clients = {held: EngineClient(FixedAddress(url, key if held else None), base_id or "") for held in (True, False)}

    async def send(method: str, path: str, body: Mapping[str, object] | None, with_key: bool) -> tuple[int, bytes]:
        client = clients[with_key]
        if method == "GET":
            return await client.get(path, seconds=seconds)
        return await client.send(path, body or {}, seconds=seconds)

    try:
        return await find_capabilities(send, base_id=base_id)
    except EngineUnavailable as error:
        raise EngineUnavailable(f"no engine answers at {url}", hint="start it, or mend its address") from error
    finally:
        for client in clients.values():
            await client.close()


async def find_capabilities(send: Send, *, base_id: str | None) -> Capabilities:
    """`send(method, path, body, with the key)` gives status and body. Raises `EngineFailed` for no vLLM, a refused
    key or a base it does not serve, and what `send` raises.
    """
    models = await _models(send)
    served = tuple(str(model.get("id")) for model in models if not model.get("parent"))
    base = base_id or (served[0] if served else None)
    if base is None or base not in served:
        raise EngineFailed(f"the engine serves {', '.join(served) or 'no model'}, not {base or 'a base'}")
    facts = _object(await send("GET", "/branchline", None, True))
    refusals: dict[str, str] = {}
    completion = await _trace(send, "/v1/completions", _completion(base), completion_trace, refusals)
    chat = await _trace(send, "/v1/chat/completions", _chat(base), chat_trace, refusals)
    length = next((model.get("max_model_len") for model in models if model.get("id") == base), None)
    return Capabilities(
        vllm=_text(_object(await send("GET", "/version", None, True)).get("version")),
        facts=facts,
        served=served,
        base_id=base,
        max_model_len=length if isinstance(length, int) else None,
        open_paths=tuple([path for method, path in KEYLESS if await _answers(send, method, path, with_key=False)]),
        adapters_by=await _adapters_by(send, facts),
        generated_logprobs=bool(completion),
        token_ids=any(step.token.startswith("token_id:") for step in completion),
        chat=bool(chat),
        tokenize=(await send("POST", "/tokenize", {"model": base, "prompt": "a"}, True))[0] == 200,
        responses=await _answers(send, "POST", "/v1/responses", with_key=True),
        metrics=b"vllm:num_requests_running" in (await send("GET", "/metrics", None, True))[1],
        refusals=refusals,
    )


async def _models(send: Send) -> list[Mapping[str, Any]]:
    status, body = await send("GET", "/v1/models", None, True)
    if status in (401, 403):
        raise EngineFailed("the engine refuses the key", hint="set BRANCHLINE_ENGINE_API_KEY to the key it was given")
    found = _object((status, body)).get("data")
    if not isinstance(found, list):
        raise EngineFailed(f"what answers is no vLLM: GET /v1/models gives {status} and no list of models")
    return [model for model in found if isinstance(model, dict)]


async def _adapters_by(send: Send, facts: Mapping[str, Any]) -> AdaptersBy:
    if facts.get("resolves"):
        return "resolver"
    return "load_lora_adapter" if await _answers(send, "POST", "/v1/load_lora_adapter", with_key=True) else "nothing"


async def _answers(send: Send, method: str, path: str, *, with_key: bool) -> bool:
    """Whether something is behind the path; an empty body makes it refuse without doing anything."""
    return (await send(method, path, None, with_key))[0] not in _CLOSED


async def _trace(
    send: Send,
    path: str,
    body: Mapping[str, object],
    read: Callable[[Mapping[str, Any]], Trace],
    refusals: dict[str, str],
) -> Trace:
    status, answer = await send("POST", path, body, True)
    try:
        if status == 200:
            return read(_object((status, answer)))
        refusals[path] = f"status {status}"
    except EngineFailed as error:
        refusals[path] = error.message
    return []


def _completion(base: str) -> dict[str, object]:
    body = {"model": base, "prompt": "Hello", "max_tokens": 1, "temperature": 0, "logprobs": TOP}
    return body | {"return_tokens_as_token_ids": True}


def _chat(base: str) -> dict[str, object]:
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": base, "messages": messages, "max_tokens": 1, "temperature": 0}
    return body | {"logprobs": True, "top_logprobs": TOP, "return_tokens_as_token_ids": True}


def _object(answer: tuple[int, bytes]) -> Mapping[str, Any]:
    """A JSON object answered with 200, else nothing."""
    try:
        value = json.loads(answer[1]) if answer[0] == 200 else None
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def findings(found: Capabilities) -> list[tuple[str, Level, str]]:
    """What `doctor` shows: (what, level, found)."""
    return [
        ("engine vllm", "ok" if (found.vllm or "").startswith(TESTED) else "note", _version(found)),
        ("engine base", *_base(found)),
        ("engine guard", *_guard(found)),
        ("engine adapters", *_adapters(found)),
        ("engine proof", *_proof(found)),
        *_endpoints(found),
    ]


def _version(found: Capabilities) -> str:
    tested = "" if (found.vllm or "").startswith(TESTED) else f"; tested is {TESTED}x"
    length = "" if found.max_model_len is None else f", context {found.max_model_len} tokens"
    return f"{found.vllm or 'does not say its version'}{tested}{length}"


def _base(found: Capabilities) -> tuple[Level, str]:
    fingerprint = _text(found.facts.get("base_fingerprint"))
    if fingerprint is None:
        return "note", f"{found.base_id}: base unverified, this engine does not say its fingerprint"
    return "ok", f"{found.base_id} ({fingerprint[:16]})"


def _guard(found: Capabilities) -> tuple[Level, str]:
    if found.open_paths:
        return "problem", f"answers without a key: {', '.join(found.open_paths)}; start it with the guard and a key"
    if not found.guarded:
        return "note", "not Branchline's; the key is asked for"
    return "ok", f"branchline {found.facts.get('branchline')}"


def _adapters(found: Capabilities) -> tuple[Level, str]:
    limits = ", ".join(
        f"{name} {found.facts[name]}"
        for name in ("max_loras", "max_lora_rank", "max_cpu_loras")
        if found.facts.get(name) is not None
    )
    if found.adapters_by == "resolver":
        return "ok", f"found by Branchline's resolver in a {found.facts.get('store')} store; {limits}"
    if found.adapters_by == "load_lora_adapter":
        return "note", "brought in by /v1/load_lora_adapter: lost when it restarts, its store's path must be configured"
    return "problem", "no way in: install branchline beside vLLM, or set VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"


def _proof(found: Capabilities) -> tuple[Level, str]:
    if found.generated_logprobs and found.token_ids and found.chat:
        return "ok", "log-probabilities of generated tokens, by token id"
    why = "; ".join(f"{path}: {reason}" for path, reason in found.refusals.items())
    return "problem", f"no version can be proved to be applied: {why or 'tokens are not given by id'}"


def _endpoints(found: Capabilities) -> list[tuple[str, Level, str]]:
    served = {"tokenize": found.tokenize, "responses": found.responses, "metrics": found.metrics}
    return [
        (f"engine {name}", "ok" if works else "note", "answers" if works else "closed")
        for name, works in served.items()
    ]
