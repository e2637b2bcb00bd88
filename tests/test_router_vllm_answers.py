"""vLLM's words in ours: what of its errors reaches the client."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.backends.vllm.answers import MAX_MESSAGE, Said, clean, error_from, first_event_error
from router.errors import EngineFailed, InvalidRequest, RouterError

NAME = "sql@1.0123456789abcdef"


def refused(message: str, *, param: str | None = None, status: int = 400) -> InvalidRequest:
    document = {"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}}
    error = error_from(status, json.dumps(document).encode(), engine_name=NAME, base_id="base")
    assert isinstance(error, InvalidRequest)
    return error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "m", "type": "t", "param": "p", "code": 400}}, "m"),
        ({"object": "error", "message": "m", "type": "t", "param": "p", "code": 400}, "m"),
        ({"detail": "m"}, "m"),
        ({"error": "m"}, "m"),
        ({"error": {"message": 5}}, ""),
        (["m"], ""),
        ("m", ""),
        ({"error": {"message": "m", "code": "not_a_number"}}, "m"),
    ],
)
def test_every_shape_of_an_error_is_read(body: object, message: str) -> None:
    assert Said.parse(json.dumps(body).encode()).message == message


@given(st.binary(), st.integers(400, 599))
def test_whatever_an_engine_answers_is_an_error_of_ours(body: bytes, status: int) -> None:
    for name in ("base", NAME):
        assert isinstance(error_from(status, body, engine_name=name, base_id="base"), RouterError)
        assert isinstance(first_event_error(b"data: " + body, engine_name=name, base_id="base"), RouterError)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 1024 tokens. However, your prompt contains 2000 input tokens.",
        "Input length (2000) exceeds model's maximum context length (1024).",
        "The decoder prompt (length 9) is longer than the maximum model length of 8.",
    ],
)
def test_a_prompt_that_is_too_long_has_openais_code(message: str) -> None:
    assert refused(message, param="input_tokens").code == "context_length_exceeded"


def test_other_refusals_have_no_code() -> None:
    assert refused("temperature must be non-negative, got -1.0.", param="temperature").code is None


@pytest.mark.parametrize(
    ("found", "param"),
    [
        ("body.max_tokens", "max_tokens"),
        ("body.messages.0.ChatCompletionUserMessageParam.content", "messages[0].content"),
        ("input_tokens", None),
        (None, None),
        ("body", "body"),
    ],
)
def test_the_field_at_fault_is_named_as_clients_know_it(found: str | None, param: str | None) -> None:
    assert refused("no", param=found).param == param


def test_pydantics_dictionaries_become_their_messages() -> None:
    message = (
        "2 validation errors:\n"
        "  {'type': 'int_parsing', 'loc': 'body.n', 'msg': 'Input should be an integer', 'input': 'secret words'}\n"
        """  {'type': 'x', 'loc': 'body.n', 'msg': "Value error, it's wrong", 'input': {'a': 'secret'}, 'ctx': {}}\n"""
    )
    assert clean(message) == "Input should be an integer; Value error, it's wrong"


def test_values_paths_and_length_do_not_reach_the_client() -> None:
    assert clean("bad prompt (parameter=prompt, value=my secret words)") == "bad prompt"
    assert clean("No adapter found for /srv/store/sql/0123 there") == "No adapter found for <path> there"
    assert clean("see https://docs.vllm.ai/en/latest/ and 1/2") == "see https://docs.vllm.ai/en/latest/ and 1/2"
    assert len(clean("word " * 1000)) == MAX_MESSAGE


def test_an_engines_own_failure_tells_nothing_of_the_request() -> None:
    body = json.dumps({"error": {"message": "failed on 'my secret words'", "type": "InternalServerError"}}).encode()
    error = error_from(500, body, engine_name=NAME, base_id="base")
    assert isinstance(error, EngineFailed)
    assert error.message == "the engine failed with 500 (InternalServerError)"
