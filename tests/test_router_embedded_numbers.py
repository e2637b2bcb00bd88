"""The embedded engine's numbers against PEFT, against the model's own full forward, and against closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from router.backends.embedded.cache import SlotCache
from router.backends.embedded.choose import Choice, choose
from router.backends.embedded.engine import Engine, load_engine
from router.backends.embedded.folder import read_adapter
from router.backends.embedded.lora import Adapter
from tests.tiny_model import Tiny, make_adapter, make_tiny

IDS = [5, 17, 300, 42, 9, 120]
TOLERANCE = 1e-4  # float32 logits of size about 10, over two layers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> Engine:
    return load_engine(tiny.base, "cpu")


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def peft_logits(base: Path, folder: Path, ids: list[int]) -> torch.Tensor:
    """PEFT's own forward; [vocabulary]."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(folder))
    logits: torch.Tensor = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"targets": "all-linear"},
        {"targets": r".*layers\.0\..*(q|gate)_proj"},
        {"layers_to_transform": [1]},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}, "alpha_pattern": {"v_proj": 32}},
    ],
    ids=["plain", "rslora", "all-linear", "regex", "layers", "excluded", "patterns"],
)
def test_an_adapter_does_what_peft_does(tiny: Tiny, engine: Engine, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = make_adapter(tiny.base, tmp_path, seed=3, **config)
    logits, _ = engine.prefill(IDS, read_adapter(folder, engine))
    base, _ = engine.prefill(IDS, None)
    torch.testing.assert_close(logits[0], peft_logits(tiny.base, folder, IDS), atol=TOLERANCE, rtol=0)
    assert (logits - base).abs().max() > 0.1


def test_rows_of_a_mixed_batch_equal_full_forwards_while_rows_come_and_go(tiny: Tiny, engine: Engine) -> None:
    """Each row's logits at each step are compared with one forward of that row alone, without any cache."""
    adapters: list[Adapter | None] = [None, *(read_adapter(folder, engine) for _, folder in tiny.versions)]
    cache = SlotCache(engine.device)
    rows: list[tuple[list[int], Adapter | None]] = []
    for step in range(80):
        if step % 5 == 0 and len(rows) < 6:
            ids = [(7 * step + place) % 500 for place in range(1 + step * 3 % 140)]
            cache.adopt(engine.prefill(ids, adapters[step // 5 % 4])[1])
            rows.append((ids, adapters[step // 5 % 4]))
        for _ids, _ in rows:
            _ids.append((_ids[-1] * 3 + step) % 500)
        logits = engine.step([ids[-1] for ids, _ in rows], cache, engine.lora.bind([owner for _, owner in rows]))
        for index in range(len(rows)) if step % 8 == 7 else [step % len(rows)]:
            ids, owner = rows[index]
            torch.testing.assert_close(logits[index], engine.prefill(ids, owner)[0][0], atol=TOLERANCE, rtol=0)
        if step % 7 == 6:
            gone = step % len(rows)
            cache.drop(gone)
            rows[gone] = rows[-1]
            rows.pop()
        assert len(cache) == len(rows)


def test_an_adapter_that_overflows_leaves_the_other_rows_alone(tiny: Tiny, engine: Engine) -> None:
    sane = read_adapter(tiny.versions[0][1], engine)
    huge = Adapter({name: type(layer)(layer.down * 1e30, layer.up * 1e30) for name, layer in sane.layers.items()})
    expected = [engine.prefill(IDS, owner)[0][0] for owner in (sane, None)]
    cache = SlotCache(engine.device)
    owners = [sane, huge, None]
    for owner in owners:
        cache.adopt(engine.prefill(IDS[:-1], owner)[1])
    logits = engine.step([IDS[-1]] * 3, cache, engine.lora.bind(owners))
    torch.testing.assert_close(logits[0], expected[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits[2], expected[1], atol=TOLERANCE, rtol=0)
    assert choose(logits, [choice(0.0)] * 3)[1] is None


def choice(temperature: float, top_p: float = 1.0, seed: int = 0) -> Choice:
    return Choice(temperature, top_p, torch.Generator().manual_seed(seed))


def test_temperature_zero_takes_the_largest_logit() -> None:
    assert choose(torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 1.0]]), [choice(0.0), choice(0.0)]) == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(temperature: float) -> None:
    """Expected: exp(logit / T) normalised. 4,000 draws; tolerance 5 standard errors of a proportion."""
    logits, draws = torch.tensor([0.0, 1.0, -1.0, 0.5]), 4000
    one = choice(temperature)
    tokens = choose(logits.expand(draws, 4), [one] * draws)
    for token in range(4):
        expected = math.exp(logits[token] / temperature) / sum(math.exp(value / temperature) for value in logits)
        error = math.sqrt(expected * (1 - expected) / draws)
        assert abs(tokens.count(token) / draws - expected) < 5 * error


def test_top_p_draws_from_the_smallest_set_that_reaches_it() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05: 0.7 needs the first two, 0.5 (reached exactly) and less only the first."""
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    for top_p, expected in ((0.7, {1, 3}), (0.81, {1, 3, 2}), (0.4, {1}), (1e-9, {1})):
        one = choice(1.0, top_p)
        assert set(choose(logits.expand(500, 4), [one] * 500)) == expected


def test_a_row_draws_the_same_whatever_else_is_in_the_batch() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    alone = choose(logits[2:3], [choice(1.0, 0.9, seed=7)])[0]
    others = [choice(0.0), choice(1.5, 1.0, seed=1), choice(1.0, 0.9, seed=7), choice(0.7, 0.5, seed=2), choice(0.0)]
    assert choose(logits, others)[2] == alone
