"""/tokenize of the engines in this process: the ids that a completion of the same body would be given."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import find_base
from router.backends.base import Backend
from router.backends.echo import EchoBackend
from router.backends.embedded.backend import EmbeddedBackend
from router.backends.prompt import parse_tokenize
from router.errors import AdapterUnavailable, InvalidRequest
from router.types import Call
from tests.tiny_model import make_base

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "tell me of 7 tables"}]
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


async def tokens(backend: Backend, body: dict[str, object], engine_name: str = "tiny") -> dict[str, Any]:
    reply = await backend.open(Call("tokenize", engine_name, body, stream=False, request_id="r-1"))
    document: dict[str, Any] = json.loads(b"".join([piece async for piece in reply.body]))
    return document


def test_embedded_gives_the_ids_of_the_prompt_that_it_would_answer(base: Path) -> None:
    async def scenario() -> None:
        backend = EmbeddedBackend(find_base(str(base)), threads=1)
        await backend.start()
        try:
            for body, endpoint in (({"messages": MESSAGES}, "chat/completions"), ({"prompt": "select"}, "completions")):
                found = await tokens(backend, {"model": "tiny", **body})
                call = Call(endpoint, "tiny", {**body, "max_tokens": 1}, stream=False, request_id="r-1")  # type: ignore[arg-type]  # a Literal in a tuple
                answer = json.loads(b"".join([piece async for piece in (await backend.open(call)).body]))
                assert found["count"] == len(found["tokens"]) == answer["usage"]["prompt_tokens"]
                assert (found["max_model_len"] > found["count"], found["token_strs"]) == (True, None)
            with pytest.raises(AdapterUnavailable):
                await tokens(backend, {"prompt": "select"}, "sql@1.0123456789abcdef")
            assert backend.running == 0
        finally:
            await backend.stop()

    asyncio.run(scenario())


def test_echo_counts_words_and_gives_one_word_one_id() -> None:
    async def scenario() -> None:
        backend = EchoBackend("tiny", context_length=99)
        await backend.start()
        found = await tokens(backend, {"prompt": "one two one"})
        assert (found["count"], found["max_model_len"]) == (3, 99)
        assert found["tokens"][0] == found["tokens"][2] != found["tokens"][1]
        assert (await tokens(backend, {"messages": MESSAGES}))["count"] == 7

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "p", "return_token_strs": True}, "return_token_strs"),
        ({"prompt": "p", "add_special_tokens": False}, "add_special_tokens"),
        ({"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": MESSAGES, "add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": MESSAGES, "tools": []}, "tools"),
        ({"prompt": "p", "messages": MESSAGES}, "messages"),
        ({"prompt": ["p"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({}, "messages"),
    ],
)
def test_what_would_change_the_ids_is_refused_by_name(body: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_tokenize(body)
    assert refused.value.param == param


@given(st.dictionaries(st.sampled_from(["model", "prompt", "messages", "stream", "return_token_strs"]), VALUES))
def test_any_body_is_read_or_refused_by_name(body: dict[str, object]) -> None:
    refused = None
    try:
        assert isinstance(parse_tokenize(body), str | tuple)
    except InvalidRequest as error:
        refused = error
    assert refused is None or refused.param
