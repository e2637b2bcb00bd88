"""Request bodies from outside: whatever they hold, they are read or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.backends.prompt import parse_messages, parse_prompts
from router.errors import InvalidRequest
from router.sampling import Defaults, Sampling

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_PARAMETERS = [
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
]
_TURN_KEYS = st.sampled_from(["role", "content", "name", "tool_calls"])
_TURN = st.dictionaries(_TURN_KEYS, _JSON | st.sampled_from(["user", "assistant"]), max_size=4)


def refused_parameter(read: Callable[[], object]) -> str | None:
    """The parameter that `read` refuses, `None` where it reads. Any other exception is a bug."""
    try:
        read()
    except InvalidRequest as error:
        return error.param or "no parameter named"
    return None


@given(st.dictionaries(st.sampled_from([*_PARAMETERS, "n", "tools", "logprobs", "echo", "x"]), _JSON, max_size=4))
def test_sampling_is_read_or_refused_by_name(body: dict[str, object]) -> None:
    refused = refused_parameter(lambda: Sampling.parse(body, "chat/completions"))
    assert refused is None or refused.split(".")[0] in body


@given(st.fixed_dictionaries({"messages": _JSON | st.lists(_TURN, max_size=3)}))
def test_messages_are_read_or_refused_by_name(body: dict[str, object]) -> None:
    assert (refused_parameter(lambda: parse_messages(body)) or "messages").startswith("messages")


@given(st.fixed_dictionaries({"prompt": _JSON}))
def test_prompts_are_read_or_refused_by_name(body: dict[str, object]) -> None:
    assert (refused_parameter(lambda: parse_prompts(body)) or "prompt").startswith("prompt")


def test_defaults_hold_only_where_the_request_says_nothing() -> None:
    defaults = Defaults(temperature=0.0, top_p=0.5)
    said = Sampling.parse({"temperature": 1, "top_p": None}, "chat/completions", defaults)
    assert (said.temperature, said.top_p) == (1.0, 0.5)


def test_completions_generate_sixteen_tokens_by_default() -> None:
    assert Sampling.parse({}, "completions").max_tokens == 16
    assert Sampling.parse({}, "chat/completions").max_tokens is None


@pytest.mark.parametrize(("endpoint", "refused"), [("completions", "messages"), ("chat/completions", "prompt")])
def test_the_other_endpoints_parameters_are_unsupported(endpoint: str, refused: str) -> None:
    parse: Callable[..., Sampling] = Sampling.parse
    with pytest.raises(InvalidRequest) as error:
        parse({refused: "x"}, endpoint)
    assert error.value.code == "unsupported_parameter"
