"""The embedded engine's loop: what ends a row, what a seed fixes, what is refused, what a failure takes with it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.base import find_base
from adapters.rows import Message
from router.backends.embedded.backend import EmbeddedBackend
from router.backends.embedded.chat import prompt_token_ids
from router.backends.embedded.decoder import Decoder
from router.errors import EngineFailed, EngineOverloaded, InvalidRequest
from tests.backend_contract import chat, close, completions, document, idle, text
from tests.tiny_model import Tiny, make_tiny

Scenario = Callable[[EmbeddedBackend], Awaitable[None]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def run(base: Path, scenario: Scenario, **options: Any) -> None:
    async def with_engine() -> None:
        backend = EmbeddedBackend(find_base(str(base)), threads=1, **options)
        await backend.start()
        try:
            await scenario(backend)
        finally:
            await backend.stop()

    asyncio.run(with_engine())


def generate(base: Path, ids: list[int], count: int) -> list[int]:
    """The greedy continuation by transformers' own `generate`."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokens: list[int] = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)[0].tolist()
    return tokens[len(ids) :]


def test_greedy_text_is_what_generate_says(tiny: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    expected = tokenizer.decode(generate(tiny.base, [5, 6, 7], 60), skip_special_tokens=True)

    async def scenario(backend: EmbeddedBackend) -> None:
        assert await text(backend, completions("tiny", [5, 6, 7], max_tokens=60)) == expected

    run(tiny.base, scenario)


def test_an_end_token_ends_the_answer_and_does_not_show(tiny: Tiny, tmp_path: Path) -> None:
    """The generation config names as an end the first token of the greedy answer that is new after three."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    tokens = generate(tiny.base, [5, 6, 7], 30)
    place = next(place for place in range(3, 30) if tokens[place] not in tokens[:place])
    base = shutil.copytree(tiny.base, tmp_path / "tiny")
    config = json.loads((base / "generation_config.json").read_text()) | {"eos_token_id": [0, tokens[place]]}
    (base / "generation_config.json").write_text(json.dumps(config))

    async def scenario(backend: EmbeddedBackend) -> None:
        whole = await document(backend, completions("tiny", [5, 6, 7], max_tokens=30))
        assert whole["choices"][0]["text"] == tokenizer.decode(tokens[:place], skip_special_tokens=True)
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert whole["usage"]["completion_tokens"] == place + 1

    run(base, scenario)


def test_a_seed_fixes_the_answer_whatever_else_is_in_the_batch(tiny: Tiny) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        drawn = chat("tiny", temperature=1.0, top_p=0.9, seed=11)
        alone = await text(backend, drawn)
        others = [chat("tiny", temperature=1.2, seed=seed) for seed in range(5)]
        assert (await asyncio.gather(*[text(backend, one) for one in [*others, drawn, *others]]))[5] == alone
        assert await text(backend, chat("tiny", temperature=1.0, top_p=0.9, seed=12)) != alone

    run(tiny.base, scenario)


def test_without_a_seed_answers_differ(tiny: Tiny) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        assert await text(backend, chat("tiny", temperature=1.5)) != await text(backend, chat("tiny", temperature=1.5))

    run(tiny.base, scenario)


def test_the_generation_config_sets_the_default_temperature(tiny: Tiny, tmp_path: Path) -> None:
    base = shutil.copytree(tiny.base, tmp_path / "tiny")
    config = json.loads((base / "generation_config.json").read_text()) | {"temperature": 0.0}
    (base / "generation_config.json").write_text(json.dumps(config))

    async def scenario(backend: EmbeddedBackend) -> None:
        assert await text(backend, chat("tiny", temperature=None)) == await text(backend, chat("tiny", temperature=0))

    run(base, scenario)


def test_a_full_queue_refuses_and_takes_again(tiny: Tiny) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        long = [await backend.open(chat("tiny", max_tokens=None, stream=True)) for _ in range(3)]
        with pytest.raises(EngineOverloaded):
            await backend.open(chat("tiny"))
        with pytest.raises(EngineOverloaded):
            await backend.open(completions("tiny", ["a", "b", "c", "d"]))
        for reply in long:
            await close(reply)
        await idle(backend)
        assert await text(backend, chat("tiny"))

    run(tiny.base, scenario, max_rows=2, max_waiting=1)


def test_waiting_calls_are_answered_in_turn(tiny: Tiny) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        alone = await text(backend, chat("tiny"))
        assert await asyncio.gather(*[text(backend, chat("tiny")) for _ in range(7)]) == [alone] * 7

    run(tiny.base, scenario, max_rows=2)


def test_a_token_id_over_the_vocabulary_is_refused(tiny: Tiny) -> None:
    async def scenario(backend: EmbeddedBackend) -> None:
        with pytest.raises(InvalidRequest, match="vocabulary has 512"):
            await backend.open(completions("tiny", [5, 512]))
        with pytest.raises(InvalidRequest, match="no tokens"):
            await backend.open(completions("tiny", ""))

    run(tiny.base, scenario)


def test_the_context_can_be_filled_to_the_last_token(tiny: Tiny, tmp_path: Path) -> None:
    base = shutil.copytree(tiny.base, tmp_path / "tiny")
    config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 48}
    (base / "config.json").write_text(json.dumps(config))

    async def scenario(backend: EmbeddedBackend) -> None:
        ids = list(range(10, 30))
        whole = await document(backend, completions("tiny", ids, max_tokens=28))
        assert (whole["usage"]["total_tokens"], whole["choices"][0]["finish_reason"]) == (48, "length")
        with pytest.raises(InvalidRequest) as refused:
            await backend.open(completions("tiny", ids, max_tokens=29))
        assert "49 were requested (20 in the prompt, 29 for the answer)" in refused.value.message

    run(base, scenario)


def test_a_template_that_refuses_is_the_clients_error(tiny: Tiny, tmp_path: Path) -> None:
    base = shutil.copytree(tiny.base, tmp_path / "tiny")
    refusing = "{% if messages[0].role != 'user' %}{{ raise_exception('start with a user turn') }}{% endif %}hello"
    (base / "chat_template.jinja").write_text(refusing)

    async def scenario(backend: EmbeddedBackend) -> None:
        with pytest.raises(InvalidRequest, match="start with a user turn") as refused:
            await backend.open(chat("tiny", messages=[{"role": "system", "content": "x"}]))
        assert refused.value.param == "messages"

    run(base, scenario)


def test_messages_are_rendered_by_the_bases_own_template(tiny: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    ids = prompt_token_ids(tokenizer, [Message("system", "be brief"), Message("user", "grüße")])
    assert tokenizer.decode(ids) == "<|system|>be brief<|end|><|user|>grüße<|end|><|assistant|>"


def test_a_request_that_cannot_be_admitted_takes_no_other_with_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    admit = Decoder._prefill

    def failing(self: Decoder, job: Any) -> None:
        if len(job.ids) == 3:
            raise RuntimeError("no memory for three tokens")
        admit(self, job)

    async def scenario(backend: EmbeddedBackend) -> None:
        alone = await text(backend, completions("tiny", [5, 6]))
        monkeypatch.setattr(Decoder, "_prefill", failing)
        bad, good = await asyncio.gather(
            text(backend, completions("tiny", [5, 6, 7])),
            text(backend, completions("tiny", [5, 6])),
            return_exceptions=True,
        )
        assert isinstance(bad, EngineFailed)
        assert good == alone
        assert await backend.ready()

    run(tiny.base, scenario)


def test_a_dead_decoder_ends_its_calls_and_says_that_it_is_not_ready(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: Decoder) -> None:
        raise MemoryError("out of memory")

    async def scenario(backend: EmbeddedBackend) -> None:
        long = await backend.open(chat("tiny", max_tokens=None, stream=True))
        await anext(long.body)
        monkeypatch.setattr(Decoder, "_step", die)
        with pytest.raises(EngineFailed, match="died"):
            async for _ in long.body:
                pass
        assert not await backend.ready()
        assert backend.running == 0
        with pytest.raises(EngineFailed):
            await backend.open(chat("tiny"))

    run(tiny.base, scenario)


def test_a_base_that_cannot_be_read_fails_the_start(tiny: Tiny, tmp_path: Path) -> None:
    base = shutil.copytree(tiny.base, tmp_path / "tiny")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    backend = EmbeddedBackend(find_base(str(base)))
    with pytest.raises(EngineFailed, match="cannot be loaded"):
        asyncio.run(backend.start())
    assert not asyncio.run(backend.ready())
