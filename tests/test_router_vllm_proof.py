"""A real vLLM must apply exactly what was trained, also while it answers others; nothing less passes the proof."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapters.probes import NO_PROBES, Probes
from router.backends.vllm.proof import Ask, Proof, prove
from router.errors import AdapterUnavailable, NotApplied
from tests.mixed_engine import TEXTS, asking, mixed_engine, pocket_adapter, put, recorded_by_trainer, scaled
from tests.vllm_engine import BASE_ID, VllmEngine, needs_vllm

pytestmark = needs_vllm
USERS = 6


@dataclass(frozen=True, slots=True)
class Stage:
    """An engine with two trained versions, and what their trainer recorded."""

    engine: VllmEngine
    folders: dict[str, Path]
    probes: dict[str, Probes]

    def put_scaled(self, name: str, factor: float) -> str:
        folder = scaled(self.folders[name], self.folders[name].parent / f"{name}-{factor}", factor)
        return put(self.engine, f"{name}-{factor}", folder)

    def prove(self, name: str, probes: Probes) -> Proof:
        """Prove `name` while six others use the base and both versions; all of them must be answered."""
        return asyncio.run(self._prove(name, probes))

    async def _prove(self, name: str, probes: Probes) -> Proof:
        async with asking(self.engine) as ask, traffic(ask, (BASE_ID, *self.folders)):
            return await prove(ask, base_id=BASE_ID, engine_name=name, probes=probes)


@asynccontextmanager
async def traffic(ask: Ask, names: tuple[str, ...]) -> AsyncIterator[None]:
    """Others' requests, from before the block to its end; raises where one of them failed."""
    begun, over = asyncio.Event(), asyncio.Event()

    async def use(user: int) -> None:
        chance = random.Random(user)
        while not over.is_set():
            text = " ".join(chance.choice(TEXTS) for _ in range(chance.randrange(1, 8)))
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": chance.randrange(1, 32)}
            await ask("/v1/chat/completions", {"model": chance.choice(names), "ignore_eos": True, **body})
            begun.set()

    users = [asyncio.ensure_future(use(user)) for user in range(USERS)]
    await begun.wait()
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*users)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("proof")
    folders = {name: pocket_adapter(folder / name, seed=seed) for seed, name in enumerate(("sql", "regex"))}
    probes = {name: recorded_by_trainer(adapter) for name, adapter in folders.items()}
    with mixed_engine(folder) as engine:
        for name, adapter in folders.items():
            put(engine, name, adapter)
        yield Stage(engine, folders, probes)


def test_what_was_trained_is_proved(stage: Stage) -> None:
    proof = stage.prove("sql", stage.probes["sql"])
    assert proof.compared == 8
    assert proof.effect > 1.0  # the adapters here are strong
    assert proof.mismatch is not None
    assert proof.mismatch < 0.01  # float32 here and at the trainer: what differs is rounding


def test_a_version_without_examples_and_evidence_is_proved_by_its_effect_alone(stage: Stage) -> None:
    assert stage.prove("sql", NO_PROBES).compared == 0


def test_a_version_that_adds_zero_is_refused(stage: Stage) -> None:
    name = stage.put_scaled("sql", 0.0)
    with pytest.raises(NotApplied, match="changes nothing"):
        stage.prove(name, Probes(TEXTS))


def test_a_tiny_change_is_told_apart_from_none(stage: Stage) -> None:
    assert stage.prove(stage.put_scaled("sql", 0.0002), Probes(TEXTS)).effect < 0.05


def test_another_version_of_the_route_is_refused(stage: Stage) -> None:
    with pytest.raises(NotApplied, match="does not answer as the version that was trained"):
        stage.prove("regex", stage.probes["sql"])


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_version_applied_at_another_scale_is_refused(stage: Stage, factor: float) -> None:
    with pytest.raises(NotApplied, match="does not answer as the version that was trained"):
        stage.prove(stage.put_scaled("sql", factor), stage.probes["sql"])


def test_another_base_is_named_as_the_reason(stage: Stage) -> None:
    """What a trainer on another base would have recorded: it found these tokens as likely as not."""
    seen = tuple(replace(one, base_logprobs=(-0.7,) * len(one.tokens)) for one in stage.probes["sql"].recorded)
    with pytest.raises(NotApplied, match="base answers differently than the base the version was trained on"):
        stage.prove("regex", Probes(TEXTS, seen))


def test_a_version_that_the_engine_cannot_load_is_unavailable(stage: Stage) -> None:
    with pytest.raises(AdapterUnavailable, match=r"sql@9\.0123456789abcdef"):
        stage.prove("sql@9.0123456789abcdef", NO_PROBES)


def test_a_recorded_prompt_that_the_engine_cannot_take_is_left_out(stage: Stage) -> None:
    first, *others = stage.probes["sql"].recorded
    too_long = replace(first, prompt_tokens=first.prompt_tokens * 200)
    assert stage.prove("sql", Probes(TEXTS, (too_long, *others))).compared == 7
