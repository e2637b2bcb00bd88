"""What one request can do to the others in a vLLM, and that no such request leaves the gateway.

The observations are made on an engine that is thrown away: they say why the defence is there. Where a vLLM no longer
shows one they skip, and the defence may go.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.base import find_base
from bench.adapter_folder import write_adapter
from router.backends.vllm import proof
from router.errors import InvalidRequest
from router.types import Endpoint
from router.wire import REFUSED_FIELDS, parse_request
from tests.mixed_engine import TEXTS, pocket_adapter, put
from tests.vllm_engine import BASE_ID, POCKET_BASE, VllmEngine, needs_vllm, vllm_engine

VALUES: dict[str, object] = {
    "prompt_logprobs": 0,
    "kv_transfer_params": {},
    "ec_transfer_params": {},
    "priority": 0,
    "vllm_xargs": {},
    "request_id": "",
    "mm_processor_kwargs": {},
    "media_io_kwargs": {},
    "prompt_embeds": "",
    "chat_template": "",
}
ENDPOINTS: tuple[Endpoint, ...] = ("chat/completions", "completions")


def raw(endpoint: Endpoint, **fields: object) -> bytes:
    asked = {"prompt": "hello"} if endpoint == "completions" else {"messages": [{"role": "user", "content": "hello"}]}
    return json.dumps({"model": "base", **asked, **fields}).encode()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("field", REFUSED_FIELDS)
def test_a_field_that_can_hurt_others_is_refused_and_named_even_where_its_value_is_nothing(
    endpoint: Endpoint, field: str
) -> None:
    with pytest.raises(InvalidRequest, match=field) as refused:
        parse_request(raw(endpoint, **{field: VALUES.get(field, 0)}), endpoint)
    assert (refused.value.param, refused.value.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize("logprobs", [0, 5])
def test_log_probabilities_of_an_echoed_prompt_are_refused(logprobs: int) -> None:
    with pytest.raises(InvalidRequest, match="echo"):
        parse_request(raw("completions", echo=True, logprobs=logprobs), "completions")


def test_log_probabilities_of_generated_tokens_are_allowed() -> None:
    assert parse_request(raw("completions", logprobs=5), "completions").body["logprobs"] == 5
    assert parse_request(raw("completions", echo=True), "completions").body["echo"] is True


def test_the_gateways_own_requests_hold_nothing_that_is_refused() -> None:
    source = Path(str(proof.__file__)).read_text(encoding="utf-8")
    assert not [field for field in (*REFUSED_FIELDS, "echo") if f'"{field}"' in source]


def test_every_test_that_the_table_of_traps_names_is_there() -> None:
    tests = "\n".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_*.py"))
    page = (Path(__file__).parents[1] / "docs" / "engine-traps.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", page)
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """A stock engine without any defence of ours, with a strong and a weak adapter."""
    folder = tmp_path_factory.mktemp("doomed")
    (folder / "weak").mkdir()
    write_adapter(folder / "weak", find_base(str(POCKET_BASE)), seed=1)
    with vllm_engine(folder / "log", "--max-loras", "1") as engine:
        put(engine, "strong", pocket_adapter(folder / "strong", seed=1))
        put(engine, "weak", folder / "weak")
        yield engine


def beside(engine: VllmEngine, model: str, act: Any) -> Any:
    """`act()` while another request for `model` is being decoded."""
    status: list[int] = []
    body = {"model": model, "prompt": "a", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    other = threading.Thread(target=lambda: status.append(_status(engine, body)))
    other.start()
    while engine.metric("vllm:num_requests_running") < 1 and other.is_alive():  # until it decodes
        pass
    try:
        return act()
    finally:
        other.join()


def _status(engine: VllmEngine, body: dict[str, object]) -> int:
    try:
        return engine.post("/v1/completions", body)[0]
    except OSError:
        return 0


@needs_vllm
def test_observed_an_adapter_in_the_batch_changes_what_the_base_answers(doomed: VllmEngine) -> None:
    """CPU build only, and why `adapters/engine/base_rows.py` is there (upstream: pull request 48421)."""
    alone = first_logprob(doomed)
    together = beside(doomed, "strong", lambda: first_logprob(doomed))
    if abs(together - alone) < 0.01:
        pytest.skip("this vLLM keeps adapters off the base's rows")
    assert abs(together - alone) > 0.1  # nats; without an adapter beside it the same to the last digit


def first_logprob(engine: VllmEngine) -> float:
    """What the base gives its first token."""
    answer = engine.chat(BASE_ID, TEXTS[0], logprobs=True)
    return float(answer["choices"][0]["logprobs"]["content"][0]["logprob"])


@needs_vllm
def test_observed_chosen_token_ids_spoil_the_log_probabilities_of_others(doomed: VllmEngine) -> None:
    """`logprob_token_ids` of one request take the place of the top ones of all others in its batch."""
    body = {"model": BASE_ID, "prompt": "a", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    chosen = threading.Thread(target=lambda: _status(doomed, {**body, "logprobs": 1, "logprob_token_ids": [7]}))
    chosen.start()
    status, answer = doomed.post("/v1/completions", {**body, "max_tokens": 50, "logprobs": 5})
    chosen.join()
    assert status == 200, answer
    listed = [len(step) for step in json.loads(answer)["choices"][0]["logprobs"]["top_logprobs"]]
    if min(listed) >= 5:
        pytest.skip("this vLLM keeps them apart")
    assert min(listed) < 5


@needs_vllm
def test_observed_prompt_log_probabilities_end_the_engine_for_everybody(doomed: VllmEngine) -> None:
    """The last one: it kills the engine."""
    hurtful = {"model": "weak", "prompt": "a b c d e f", "max_tokens": 4, "prompt_logprobs": 1}
    beside(doomed, "weak", lambda: _status(doomed, hurtful))
    if (health := health_of(doomed)) == 200:
        pytest.skip("this vLLM survives prompt_logprobs beside adapters")
    assert health != 200


def health_of(engine: VllmEngine) -> int:
    try:
        return engine.get("/health")[0]
    except OSError:
        return 0
