"""The embedded engine and a real vLLM are the same model: prompts become the same tokens, and the answers agree."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.base import find_base
from adapters.rows import Message
from router.backends.embedded.chat import prompt_token_ids as embedded_token_ids
from router.backends.embedded.decoder import Decoder
from router.backends.embedded.engine import load_engine
from router.backends.embedded.folder import read_adapter
from router.backends.embedded.proof import Trace
from router.backends.embedded.row import Item, Job
from router.backends.vllm.traces import Step, completion_trace, token_name
from router.sampling import Sampling
from router.types import Chunk
from tests.mixed_engine import TEXTS, asking, mixed_engine, pocket_adapter, put
from tests.vllm_engine import BASE_ID, POCKET_BASE, VllmEngine, needs_vllm
from trainer.data import prompt_token_ids
from trainer.model import load_base

pytestmark = needs_vllm
TOKENS = 16
TOLERANCE = 1e-3  # nats: float32 logits of size about 20, summed in another order over the layers
NAMES = ("sql", "regex", "booking")
CONVERSATIONS = (
    [Message("user", "hello")],
    [Message("system", "You write SQL."), Message("user", "Show the users older than 30")],
    [Message("user", "Zeig mir Köln, 東京 und 🙂🙃\u200b"), Message("assistant", "…"), Message("user", "e\u0301 é")],
    [Message("user", "")],
    [Message("system", ""), Message("user", " \n\t ")],
    [Message("user", "<|end|> <|assistant|> {{ message }} \\n")],
    [Message("user", "a\r\nb\n\n\nc   d"), Message("assistant", ""), Message("user", "?")],
)


@dataclass(frozen=True, slots=True)
class Versions:
    engine: VllmEngine
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versions]:
    folder = tmp_path_factory.mktemp("agreement")
    folders = {name: pocket_adapter(folder / name, seed=10 + seed) for seed, name in enumerate(NAMES)}
    with mixed_engine(folder) as engine:
        for name, adapter in folders.items():
            put(engine, name, adapter)
        yield Versions(engine, folders)


def in_embedded(prompts: Sequence[tuple[int, ...]], folders: dict[str, Path]) -> dict[str, list[Trace]]:
    """Greedy answers of the base and every version, all decoded in one batch."""
    engine = load_engine(POCKET_BASE, "cpu")
    adapters = {BASE_ID: None, **{name: read_adapter(folder, engine) for name, folder in folders.items()}}
    traces = {name: [Trace() for _ in prompts] for name in adapters}
    left, done = len(adapters) * len(prompts), threading.Event()

    def deliver(items: list[tuple[Job, Item]]) -> None:
        nonlocal left
        left -= sum(not isinstance(item, Chunk) or item.finish_reason is not None for _, item in items)
        if left == 0:
            done.set()

    sampling = Sampling(max_tokens=None, temperature=0.0, top_p=1.0, seed=0, stop=(), include_usage=False)
    jobs = [
        Job(ids, adapter, sampling, TOKENS, lambda item: None, watch=trace.watch)
        for name, adapter in adapters.items()
        for ids, trace in zip(prompts, traces[name], strict=True)
    ]
    decoder = Decoder(engine, deliver, max_rows=64, max_waiting=0, threads=1)
    decoder.start()
    try:
        decoder.submit(jobs)
        assert done.wait(120)
    finally:
        decoder.stop()
    return traces


async def in_vllm(engine: VllmEngine, prompts: Sequence[tuple[int, ...]]) -> dict[str, list[list[Step]]]:
    """The same, all asked at once."""
    names = (BASE_ID, *NAMES)
    body = {"max_tokens": TOKENS, "temperature": 0, "logprobs": 5, "return_tokens_as_token_ids": True}
    async with asking(engine) as ask:
        answers = await asyncio.gather(
            *(ask("/v1/completions", {**body, "model": name, "prompt": list(ids)}) for name in names for ids in prompts)
        )
    traces = [completion_trace(answer) for answer in answers]
    return {name: traces[place * len(prompts) :][: len(prompts)] for place, name in enumerate(names)}


def compare(embedded: Trace, vllm: list[Step]) -> int:
    """How many steps agree: the five likeliest tokens in their log-probabilities, and the token chosen."""
    for place, (token, logprobs, step) in enumerate(zip(embedded.tokens, embedded.logprobs, vllm, strict=False)):
        for name, logprob in step.top.items():
            assert logprob == pytest.approx(float(logprobs[int(name.removeprefix("token_id:"))]), abs=TOLERANCE)
        if step.token != token_name(token):
            assert step.top[token_name(token)] == pytest.approx(step.top[step.token], abs=TOLERANCE)  # a tie
            return place
    assert len(embedded.tokens) == len(vllm)
    return len(vllm)


def test_greedy_answers_of_base_and_versions_agree_in_mixed_batches(versions: Versions) -> None:
    tokenizer = load_base(find_base(str(POCKET_BASE))).tokenizer
    prompts = [tuple(embedded_token_ids(tokenizer, [Message("user", text)])) for text in TEXTS]
    embedded = in_embedded(prompts, versions.folders)
    vllm = asyncio.run(in_vllm(versions.engine, prompts))
    agreed = {
        name: [compare(one, other) for one, other in zip(embedded[name], vllm[name], strict=True)] for name in vllm
    }
    assert sum(map(sum, agreed.values())) > 0.9 * sum(len(trace) for traces in vllm.values() for trace in traces)
    assert len({tuple(tuple(trace.tokens) for trace in embedded[name]) for name in vllm}) == len(vllm)


@pytest.mark.parametrize("model", [BASE_ID, NAMES[0]])
def test_prompts_are_the_tokens_that_were_trained_on(versions: Versions, model: str) -> None:
    trained_on = prompt_token_ids(load_base(find_base(str(POCKET_BASE))).tokenizer, CONVERSATIONS)
    for conversation, expected in zip(CONVERSATIONS, trained_on, strict=True):
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        status, answer = versions.engine.post("/tokenize", {"model": model, "messages": messages})
        assert status == 200, answer
        assert json.loads(answer)["tokens"] == expected
