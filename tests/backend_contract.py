"""The conformance suite of `router.backends.base.Backend`: subclass it with a `rig` fixture for each engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from adapters.types import AdapterVersion
from router.backends.base import Backend
from router.errors import AdapterUnavailable, EngineFailed, InvalidRequest
from router.types import Call, Endpoint, Reply

DEADLINE = 30.0  # seconds, for what must happen soon but at no stated time
USER = {"role": "user", "content": "tell me about the quick brown fox and 7 tables"}


class ObservableBackend(Backend, Protocol):
    """A backend that says how much it is working on."""

    @property
    def running(self) -> int: ...


Scenario = Callable[[ObservableBackend], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Rig:
    """One engine under test. `long_body` is a chat body whose answer takes far longer than `DEADLINE` to complete,
    or as long as the reader takes; `too_long` is a text over the context."""

    make: Callable[[], ObservableBackend]
    versions: tuple[tuple[AdapterVersion, Path], ...]
    broken: Path
    long_body: dict[str, object]
    too_long: str

    @asynccontextmanager
    async def started(self) -> AsyncIterator[ObservableBackend]:
        """The engine, up, with all versions resident."""
        backend = self.make()
        await backend.start()
        try:
            for version, folder in self.versions:
                await backend.load(version, folder)
            yield backend
        finally:
            await backend.stop()

    @property
    def names(self) -> list[str]:
        return [version.engine_name for version, _ in self.versions]


@dataclass(frozen=True, slots=True)
class Live:
    """A started engine and the event loop it runs on."""

    runner: asyncio.Runner
    backend: ObservableBackend

    def check(self, scenario: Scenario) -> None:
        async def run() -> None:
            await scenario(self.backend)
            await idle(self.backend)

        self.runner.run(run())

    def refusal(self, request: Call) -> InvalidRequest:
        """How `request` is refused before the first byte."""

        async def refused() -> InvalidRequest:
            with pytest.raises(InvalidRequest) as refusal:
                await self.backend.open(request)
            assert self.backend.running == 0
            return refusal.value

        return self.runner.run(refused())


def call(name: str, body: dict[str, object], endpoint: Endpoint = "chat/completions") -> Call:
    return Call(endpoint, name, body, stream=body.get("stream") is True, request_id="r-1")


def chat(name: str, **body: object) -> Call:
    """A greedy chat call of at most 24 tokens, unless `body` says otherwise."""
    return call(name, {"messages": [USER], "temperature": 0, "max_tokens": 24, **body})


def completions(name: str, prompt: object, **body: object) -> Call:
    return call(name, {"prompt": prompt, "temperature": 0, "max_tokens": 8, **body}, "completions")


async def document(backend: Backend, request: Call) -> dict[str, Any]:
    """The whole answer of a call that does not stream."""
    reply = await backend.open(request)
    assert reply.content_type.startswith("application/json")
    value: dict[str, Any] = json.loads(b"".join([part async for part in reply.body]))
    return value


async def frames(backend: Backend, request: Call) -> list[dict[str, Any]]:
    """The events of a streaming call, without the last one, which must be `[DONE]`."""
    reply = await backend.open(request)
    assert reply.content_type.startswith("text/event-stream")
    lines = b"".join([part async for part in reply.body]).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def text(backend: Backend, request: Call) -> str:
    choice = (await document(backend, request))["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def streamed_text(events: list[dict[str, Any]]) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


async def close(reply: Reply) -> None:
    await reply.body.aclose()  # type: ignore[attr-defined]  # AsyncIterator's type has no aclose, every body does


async def idle(backend: ObservableBackend) -> None:
    """Wait until nothing is being worked on."""
    async with asyncio.timeout(DEADLINE):
        while backend.running:  # noqa: ASYNC110 - a decoder in its own thread sets no event
            await asyncio.sleep(0.001)


class BackendContract:
    """What every engine must do, in the order of a call's life."""

    @pytest.fixture(scope="class")
    @classmethod
    def live(cls, rig: Rig) -> Iterator[Live]:
        """One started engine with all versions, for the tests that leave it as it was."""
        with asyncio.Runner() as runner, ExitStack() as stack:
            started = rig.started()
            backend = runner.run(started.__aenter__())
            stack.callback(lambda: runner.run(started.__aexit__(None, None, None)))
            yield Live(runner, backend)

    def check(self, rig: Rig, scenario: Scenario) -> None:
        """Run `scenario` against an engine of its own, started and with all versions."""

        async def run() -> None:
            async with rig.started() as backend:
                await scenario(backend)

        asyncio.run(run())

    def test_is_ready_from_start_to_stop(self, rig: Rig) -> None:
        async def scenario() -> None:
            backend = rig.make()
            assert not await backend.ready()
            await backend.start()
            assert await backend.ready()
            await backend.stop()
            await backend.stop()
            assert not await backend.ready()
            with pytest.raises(EngineFailed):
                await backend.open(chat(backend.base_id))

        asyncio.run(scenario())

    @pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
    def test_stream_and_document_agree(self, rig: Rig, live: Live, endpoint: Endpoint) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            for name in [backend.base_id, *rig.names]:
                make = chat if endpoint == "chat/completions" else lambda n, **b: completions(n, "select name", **b)
                whole = await document(backend, make(name))
                events = await frames(backend, make(name, stream=True))
                assert streamed_text(events) == await text(backend, make(name)) != ""
                assert events[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]

        live.check(scenario)

    def test_stream_has_openai_shape(self, rig: Rig, live: Live) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            options = {"stream": True, "stream_options": {"include_usage": True}}
            *events, usage = await frames(backend, chat(rig.names[0], **options))
            assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
            assert {event["object"] for event in events} == {"chat.completion.chunk"}
            assert len({event["id"] for event in [*events, usage]}) == 1
            assert usage["choices"] == []
            whole = (await document(backend, chat(rig.names[0])))["usage"]
            assert usage["usage"] == {name: count for name, count in whole.items() if count is not None}

        live.check(scenario)

    def test_model_is_the_engine_name(self, rig: Rig, live: Live) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            for name in [backend.base_id, *rig.names]:
                assert (await document(backend, chat(name, model="auto")))["model"] == name
                assert {event["model"] for event in await frames(backend, chat(name, stream=True))} == {name}

        live.check(scenario)

    def test_usage_counts_tokens(self, rig: Rig, live: Live) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            usage = (await document(backend, chat(rig.names[0], max_tokens=3)))["usage"]
            assert usage["completion_tokens"] == 3
            assert usage["prompt_tokens"] >= 10
            assert usage["total_tokens"] == usage["prompt_tokens"] + 3

        live.check(scenario)

    @pytest.mark.parametrize("parameter", ["max_tokens", "max_completion_tokens"])
    def test_token_limit_is_honoured(self, live: Live, parameter: str) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            full = await text(backend, chat(backend.base_id))
            limited = await document(backend, chat(backend.base_id, **{"max_tokens": None, parameter: 2}))
            assert limited["choices"][0]["finish_reason"] == "length"
            assert full.startswith(limited["choices"][0]["message"]["content"].rstrip("\ufffd"))
            assert limited["usage"]["completion_tokens"] == 2

        live.check(scenario)

    def test_stop_strings_end_the_answer_and_never_show(self, rig: Rig, live: Live) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            full = await text(backend, chat(rig.names[0]))
            for stop in (full[5:8], full[7:12]):
                expected = full[: full.find(stop)]
                for stops in (stop, [stop, "never said"]):
                    whole = (await document(backend, chat(rig.names[0], stop=stops)))["choices"][0]
                    assert (whole["message"]["content"], whole["finish_reason"]) == (expected, "stop")
                    assert streamed_text(await frames(backend, chat(rig.names[0], stop=stops, stream=True))) == expected

        live.check(scenario)

    @pytest.mark.parametrize(
        "prompt", ["select name", ["select name"], ["select", "name of"], [5, 6, 7], [[5, 6, 7], [8]]], ids=repr
    )
    def test_completions_take_texts_and_token_ids(self, rig: Rig, live: Live, prompt: list[object] | str) -> None:
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        prompts = prompt if several else [prompt]

        async def scenario(backend: ObservableBackend) -> None:
            whole = await document(backend, completions(rig.names[0], prompt))
            assert whole["object"] == "text_completion"
            assert [choice["index"] for choice in whole["choices"]] == list(range(len(prompts)))
            alone = [await text(backend, completions(rig.names[0], one)) for one in prompts]
            assert [choice["text"] for choice in whole["choices"]] == alone
            events = await frames(backend, completions(rig.names[0], prompt, stream=True))
            for index, expected in enumerate(alone):
                mine = [choice["text"] for event in events for choice in event["choices"] if choice["index"] == index]
                assert "".join(mine) == expected

        live.check(scenario)

    def test_neutral_values_of_openai_clients_change_nothing(self, rig: Rig, live: Live) -> None:
        neutral: dict[str, object] = {
            "n": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "logprobs": False,
            "top_logprobs": None,
            "tool_choice": "none",
            "parallel_tool_calls": True,
            "response_format": {"type": "text"},
            "user": "someone",
            "metadata": {"a": "b"},
            "store": False,
            "seed": 7,
            "service_tier": "auto",
            "stop": None,
            "logit_bias": {},
        }

        async def scenario(backend: ObservableBackend) -> None:
            plain = await text(backend, chat(rig.names[0]))
            assert await text(backend, chat(rig.names[0], **neutral)) == plain

        live.check(scenario)

    def test_parts_of_a_text_are_its_lines(self, rig: Rig, live: Live) -> None:
        words = ("tell me about", "the quick brown fox")
        parts = [{"role": "user", "content": [{"type": "text", "text": word} for word in words]}]
        lines = [{"role": "user", "content": "\n".join(words)}]

        async def scenario(backend: ObservableBackend) -> None:
            expected = await text(backend, chat(rig.names[0], messages=lines))
            assert await text(backend, chat(rig.names[0], messages=parts)) == expected

        live.check(scenario)

    def test_too_long_a_prompt_is_refused(self, rig: Rig, live: Live) -> None:
        messages = [{"role": "user", "content": rig.too_long}]
        refused = live.refusal(chat(rig.names[0], messages=messages, max_tokens=5))
        assert refused.code == "context_length_exceeded"

    def test_each_engine_name_answers_for_itself_whatever_runs_beside_it(self, rig: Rig, live: Live) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            names = [backend.base_id, *rig.names]
            alone = [await text(backend, chat(name)) for name in names]
            assert len(set(alone)) == len(names)
            together = await asyncio.gather(*[text(backend, chat(name)) for name in names * 4])
            assert together == alone * 4

        live.check(scenario)

    @pytest.mark.parametrize("frames_read", [0, 3])
    def test_closing_the_body_stops_the_work(self, rig: Rig, live: Live, frames_read: int) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            reply = await backend.open(call(rig.names[0], {**rig.long_body, "stream": True}))
            for _ in range(frames_read):
                await anext(reply.body)
            assert backend.running == 1
            await close(reply)
            await idle(backend)

        live.check(scenario)

    @pytest.mark.parametrize("stream", [True, False])
    def test_cancelling_the_reader_stops_the_work(self, rig: Rig, live: Live, stream: bool) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            async def read() -> None:
                reply = await backend.open(call(rig.names[0], {**rig.long_body, "stream": stream}))
                async for _ in reply.body:
                    pass

            reader = asyncio.create_task(read())
            async with asyncio.timeout(DEADLINE):
                while not backend.running:  # noqa: ASYNC110 - as in `idle`
                    await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await idle(backend)

        live.check(scenario)

    def test_stop_ends_running_calls(self, rig: Rig) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            reply = await backend.open(call(rig.names[0], {**rig.long_body, "stream": True}))
            await anext(reply.body)
            await backend.stop()
            with pytest.raises(EngineFailed):
                async for _ in reply.body:
                    pass
            await idle(backend)

        self.check(rig, scenario)

    def test_an_engine_name_that_is_not_resident_is_refused(self, live: Live) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            with pytest.raises(AdapterUnavailable):
                await backend.open(chat("sql@9.0123456789abcdef"))
            assert not backend.is_resident("sql@9.0123456789abcdef")

        live.check(scenario)

    def test_loading_again_changes_nothing(self, rig: Rig) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            version, folder = rig.versions[0]
            before = await text(backend, chat(version.engine_name))
            await backend.unload(version.engine_name)
            await asyncio.gather(*[backend.load(version, folder) for _ in range(3)])
            await backend.load(version, folder)
            assert backend.is_resident(version.engine_name)
            assert await text(backend, chat(version.engine_name)) == before

        self.check(rig, scenario)

    def test_an_unloaded_version_is_refused_but_running_calls_finish(self, rig: Rig) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            name = rig.names[0]
            expected = await text(backend, chat(name))
            running = await backend.open(chat(name, stream=True))
            await backend.unload(name)
            await backend.unload(name)
            assert not backend.is_resident(name)
            with pytest.raises(AdapterUnavailable):
                await backend.open(chat(name))
            parts = b"".join([part async for part in running.body]).decode().split("\n\n")[:-2]
            assert streamed_text([json.loads(part.removeprefix("data: ")) for part in parts]) == expected

        self.check(rig, scenario)


class OwnDecodingContract(BackendContract):
    """What holds besides for engines of this process: Branchline itself reads every parameter and every folder."""

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            ("n", 2),
            ("logprobs", True),
            ("top_logprobs", 3),
            ("presence_penalty", 0.5),
            ("frequency_penalty", -1),
            ("logit_bias", {"5": 1}),
            ("tools", [{"type": "function", "function": {"name": "f"}}]),
            ("tool_choice", "required"),
            ("response_format", {"type": "json_object"}),
            ("store", True),
            ("service_tier", "flex"),
            ("top_k", 5),
            ("guided_json", {}),
            ("no_such_parameter", 1),
        ],
    )
    def test_unsupported_parameters_are_named(self, rig: Rig, live: Live, parameter: str, value: object) -> None:
        refused = live.refusal(chat(rig.names[0], **{parameter: value}))
        assert (refused.param, refused.code) == (parameter, "unsupported_parameter")

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            ("temperature", 2.1),
            ("temperature", "hot"),
            ("temperature", True),
            ("top_p", 0),
            ("top_p", 1.5),
            ("max_tokens", 0),
            ("max_tokens", 2.0),
            ("max_completion_tokens", -1),
            ("seed", 2**63),
            ("stop", ["a", "b", "c", "d", "e"]),
            ("stop", ""),
            ("stop", [1]),
            ("stream_options", {"include_usage": True}),
        ],
    )
    def test_values_out_of_range_are_named(self, rig: Rig, live: Live, parameter: str, value: object) -> None:
        assert live.refusal(chat(rig.names[0], **{parameter: value})).param == parameter

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            (None, "messages"),
            ([], "messages"),
            ("hello", "messages"),
            (["hello"], "messages[0]"),
            ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].role"),
            ([{"role": "user"}], "messages[0].content"),
            ([USER, {"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[1].tool_calls"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                "messages[0].content[0]",
            ),
            ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ],
    )
    def test_messages_that_cannot_be_read_are_named(self, rig: Rig, live: Live, messages: object, param: str) -> None:
        assert live.refusal(chat(rig.names[0], messages=messages)).param == param

    @pytest.mark.parametrize("prompt", [None, [], {}, [[]], ["a", 5], [True], [-1]], ids=repr)
    def test_prompts_that_cannot_be_read_are_named(self, rig: Rig, live: Live, prompt: object) -> None:
        assert live.refusal(completions(rig.names[0], prompt)).param == "prompt"

    def test_too_long_a_prompt_is_refused_with_the_counts(self, rig: Rig, live: Live) -> None:
        messages = [{"role": "user", "content": rig.too_long}]
        refused = live.refusal(chat(rig.names[0], messages=messages, max_tokens=5))
        assert refused.code == "context_length_exceeded"
        assert "5 for the answer" in refused.message

    def test_a_broken_folder_is_refused_and_disturbs_nobody(self, rig: Rig, tmp_path: Path) -> None:
        async def scenario(backend: ObservableBackend) -> None:
            before = await text(backend, chat(rig.names[1]))
            broken = rig.versions[0][0]
            await backend.unload(broken.engine_name)
            for folder in (rig.broken, tmp_path, tmp_path / "missing"):
                with pytest.raises(AdapterUnavailable):
                    await backend.load(broken, folder)
                assert not backend.is_resident(broken.engine_name)
            assert await backend.ready()
            assert await text(backend, chat(rig.names[1])) == before

        self.check(rig, scenario)
