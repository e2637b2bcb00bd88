"""The numbers behind a proof: closed forms for the distances, and an engine whose noise the test decides."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.probes import NO_PROBES, Probes, RecordedPrompt
from router.backends.vllm.proof import AT_ONCE, Proof, prove
from router.backends.vllm.traces import Step, chat_trace, completion_trace, distance, gap, mismatch
from router.errors import AdapterUnavailable, EngineFailed, EngineUnavailable, InvalidRequest, NotApplied, RouterError

BASE, VERSION = "base", "sql@1.0123456789abcdef"
VOCABULARY = 12
TEXTS = tuple(f"text {number}" for number in range(8))


@dataclass
class NoisyEngine:
    """Answers like vLLM. Its logits depend on the prompt and the tokens so far, `effect` is added for the version, and
    every step of every request is off by its own noise (standard deviation, nats).
    """

    noise: float = 0.0
    effect: float = 0.0
    seed: int = 0
    refuses: RouterError | None = None
    longest: int = 1000
    bodies: list[Mapping[str, object]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0

    async def ask(self, path: str, body: Mapping[str, object]) -> Mapping[str, Any]:
        self.bodies.append(body)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(0)
            return self._answer(path, body)
        finally:
            self._now -= 1

    def _answer(self, path: str, body: Mapping[str, object]) -> Mapping[str, Any]:
        if self.refuses is not None and body["model"] == VERSION:
            raise self.refuses
        prompt: Any = body.get("prompt") or str(body["messages"])
        if len(prompt) > self.longest:
            raise InvalidRequest("too long")
        tokens: list[int] = []
        listed = []
        for _ in range(int(str(body["max_tokens"]))):
            logprobs = self.logprobs(str(body["model"]), (*prompt, *tokens))
            order = sorted(range(VOCABULARY), key=logprobs.__getitem__, reverse=True)
            tokens.append(order[0])
            listed.append({f"token_id:{token}": logprobs[token] for token in order[:5]})
        return {"choices": [{"logprobs": _chat(listed) if path.endswith("chat/completions") else _text(listed)}]}

    def logprobs(self, model: str, so_far: tuple[object, ...], *, exact: bool = False) -> list[float]:
        logits = _drawn(f"{self.seed} {so_far}", 3.0)
        if model == VERSION:
            change = _drawn(f"{self.seed} {so_far} version", self.effect)
            logits = [one + other for one, other in zip(logits, change, strict=True)]
        if not exact:
            logits = [logit + random.gauss(0, self.noise) for logit in logits]
        total = math.log(sum(map(math.exp, logits)))
        return [logit - total for logit in logits]

    def record(self, prompt: tuple[int, ...]) -> RecordedPrompt:
        """What a trainer would see, without noise."""
        tokens: list[int] = []
        adapter, base = [], []
        for _ in range(8):
            row = self.logprobs(VERSION, (*prompt, *tokens), exact=True)
            token = max(range(VOCABULARY), key=row.__getitem__)
            adapter.append(row[token])
            base.append(self.logprobs(BASE, (*prompt, *tokens), exact=True)[token])
            tokens.append(token)
        return RecordedPrompt(prompt, tuple(tokens), tuple(adapter), tuple(base))

    def probes(self) -> Probes:
        return Probes(TEXTS, tuple(self.record((place, 1, 2)) for place in range(8)))

    def prove(self, probes: Probes) -> Proof:
        return asyncio.run(prove(self.ask, base_id=BASE, engine_name=VERSION, probes=probes))


@cache
def _drawn(seed: str, deviation: float) -> list[float]:
    drawn = random.Random(seed)
    return [drawn.gauss(0, deviation) for _ in range(VOCABULARY)]


def _chat(listed: list[dict[str, float]]) -> dict[str, Any]:
    rows = [[{"token": token, "logprob": logprob} for token, logprob in step.items()] for step in listed]
    return {"content": [{**row[0], "top_logprobs": row} for row in rows]}


def _text(listed: list[dict[str, float]]) -> dict[str, Any]:
    first = [next(iter(step.items())) for step in listed]
    return {"tokens": [one[0] for one in first], "token_logprobs": [one[1] for one in first], "top_logprobs": listed}


def step(token: int, **others: float) -> Step:
    return Step(f"token_id:{token}", {name.replace("t", "token_id:"): logprob for name, logprob in others.items()})


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 0.1, 0.5])
def test_a_version_that_adds_zero_never_passes_however_noisy_the_engine(noise: float) -> None:
    for seed in range(8):
        with pytest.raises(NotApplied, match="changes nothing"):
            NoisyEngine(noise=noise, seed=seed).prove(Probes(TEXTS))


@pytest.mark.parametrize(("noise", "effect"), [(0.0, 0.001), (1e-5, 0.001), (1e-3, 0.1), (0.05, 2.0)])
def test_an_effect_well_over_the_noise_always_passes(noise: float, effect: float) -> None:
    for seed in range(8):
        assert NoisyEngine(noise=noise, effect=effect, seed=seed).prove(Probes(TEXTS)).effect > 0


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.03])
def test_what_was_recorded_is_recognised_through_the_engines_noise(noise: float) -> None:
    for seed in range(8):
        engine = NoisyEngine(noise=noise, effect=2.0, seed=seed)
        assert engine.prove(engine.probes()).compared == 8


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.03])
def test_half_the_effect_is_not_what_was_recorded(noise: float) -> None:
    for seed in range(8):
        trained = NoisyEngine(effect=2.0, seed=seed).probes()
        with pytest.raises(NotApplied, match="does not answer as the version that was trained"):
            NoisyEngine(noise=noise, effect=1.0, seed=seed).prove(trained)


def test_another_base_is_the_reason_that_is_given() -> None:
    trained = NoisyEngine(effect=2.0, seed=1).probes()
    with pytest.raises(NotApplied, match="the engine's base answers differently"):
        NoisyEngine(effect=2.0, seed=2).prove(trained)


def test_nothing_is_asked_that_can_hurt_others_and_little_at_once() -> None:
    engine = NoisyEngine(effect=2.0)
    engine.prove(engine.probes())
    asked = {name for body in engine.bodies for name in body}
    assert not asked & {"prompt_logprobs", "echo", "logprob_token_ids", "priority"}
    assert all(int(str(body["max_tokens"])) <= 8 for body in engine.bodies)
    assert len({body["cache_salt"] for body in engine.bodies}) == len(engine.bodies)
    assert 1 < engine.most_at_once <= AT_ONCE


def test_texts_that_are_too_long_give_way_to_fixed_ones() -> None:
    assert NoisyEngine(effect=2.0, longest=200).prove(Probes(("long " * 100,))).effect > 0


def test_an_engine_that_refuses_everything_has_failed() -> None:
    with pytest.raises(EngineFailed, match="refuses every request"):
        NoisyEngine(effect=2.0, longest=6).prove(NO_PROBES)


def test_a_version_that_does_not_load_is_unavailable_with_the_engines_words() -> None:
    with pytest.raises(AdapterUnavailable, match="cannot be loaded by the engine: rank 64"):
        NoisyEngine(refuses=InvalidRequest("rank 64 is over max_lora_rank 16")).prove(NO_PROBES)


def test_an_engine_that_goes_away_is_not_the_versions_fault() -> None:
    with pytest.raises(EngineUnavailable):
        NoisyEngine(refuses=EngineUnavailable("gone")).prove(NO_PROBES)


def test_distance_counts_until_the_answers_part() -> None:
    first = [step(1, t1=-0.5, t2=-1.0), step(1, t1=-0.1), step(2, t2=-0.1)]
    second = [step(1, t1=-0.75, t2=-1.0), step(3, t1=-0.5, t3=-0.4), step(2, t2=-9.0)]
    assert distance(first[:1], second[:1]) == pytest.approx(0.25)
    assert distance(first, second) == pytest.approx(0.4)  # |−0.1 − (−0.5)| at the step where they part


def test_a_token_that_one_side_does_not_list_counts_by_what_is_certain() -> None:
    assert distance([step(1, t1=-0.1, t2=-3.0)], [step(1, t1=-0.1, t3=-2.0)]) == pytest.approx(1.0)  # −2 − (−3)
    assert distance([step(1, t1=-0.1, t2=-3.0)], [step(1, t1=-0.1, t3=-4.0)]) == pytest.approx(1.0)


def test_a_gap_is_in_log_odds() -> None:
    found = gap(step(1, t1=math.log(0.99)), 1, math.log(0.9))
    assert found == pytest.approx(math.log(99) - math.log(9))
    assert gap(step(1, t1=-1e-9), 1, 0.0) < 1e-8  # nearer to 1 than can be told apart


def test_a_recorded_token_that_is_not_listed_counts_by_what_is_certain() -> None:
    seen = step(1, t1=math.log(0.7), t2=math.log(0.1))
    assert gap(seen, 5, math.log(0.5)) == pytest.approx(math.log(9))  # at most 0.1 here: odds 1:9 against 1:1
    assert gap(seen, 5, math.log(0.01)) == 0.0


def test_a_mismatch_is_the_mean_until_the_engine_goes_its_own_way() -> None:
    even = math.log(0.5)
    recorded = RecordedPrompt((7,), (1, 2, 3), (even, even, even), (even, even, even))
    trace = [step(1, t1=even), step(4, t4=math.log(0.7), t2=math.log(0.1)), step(3, t3=-9.0)]
    assert mismatch(trace, recorded) == pytest.approx(math.log(9) / 2)


@pytest.mark.parametrize("read", [chat_trace, completion_trace])
@given(
    answer=st.recursive(
        st.none() | st.floats() | st.text(max_size=3),
        lambda one: (
            st.lists(one, max_size=3)
            | (
                st.dictionaries(
                    st.sampled_from(["choices", "logprobs", "content", "tokens", "token", "top_logprobs"]), one
                )
            )
        ),
        max_leaves=8,
    )
)
def test_whatever_an_engine_answers_is_steps_or_a_failure_of_the_engine(read: Any, answer: Any) -> None:
    for document in (
        {"choices": answer},
        {"choices": [{"logprobs": answer}]},
        {"choices": [{"logprobs": {"content": answer}}]},
    ):
        with suppress(EngineFailed):
            assert all(isinstance(one, Step) for one in read(document))
