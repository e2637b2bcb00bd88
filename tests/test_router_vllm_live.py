"""The backend over a real vLLM: what clients send passes through, what they leave stops, what vLLM refuses is named.

The engine is a stock one, as an operator has it who installs nothing of ours; the last test starts it again with our
plugin. One engine serves all tests, in their order.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from adapters.base import find_base
from adapters.check import CONFIG_FILE
from adapters.home import Home
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.store import Store
from adapters.types import AdapterVersion
from bench.adapter_folder import write_adapter
from router.backends.vllm.backend import Engine, VllmBackend
from router.backends.vllm.client import FixedAddress
from router.backends.vllm.replica import STANDS_STILL
from router.backends.vllm.rhythm import Rhythm
from router.backends.vllm.watch import HANGS
from router.errors import AdapterUnavailable, EngineFailed, EngineUnavailable, InvalidRequest, NotApplied
from router.types import Call, Endpoint, Reply
from tests.backend_contract import close, document, frames, idle, streamed_text
from tests.programmable_engine import ProgrammableEngine, engines
from tests.vllm_engine import BASE_ID, POCKET_BASE, VllmEngine, needs_vllm, vllm_engine

pytestmark = [needs_vllm, pytest.mark.timeout(600)]
DEADLINE = 60.0
SEVERAL = 16  # so many long answers, begun at once, that not all end before the test goes on
BROKEN, WHOLE = "broken", "whole"
STRONG = 256  # as `lora_alpha` of a random adapter: its answers are surely not another's
USER = {"role": "user", "content": "tell me about 7 apples"}
TOOL = {
    "type": "function",
    "function": {
        "name": "eat",
        "parameters": {
            "type": "object",
            "properties": {"apples": {"type": "boolean"}},
            "required": ["apples"],
            "additionalProperties": False,
        },
    },
}
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
Result = TypeVar("Result")


@dataclass(slots=True)
class Place:
    """An engine's address, which changes with its starts."""

    url: str
    key: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """A started backend with two versions loaded, and the loop it runs on."""

    runner: asyncio.Runner
    backend: VllmBackend
    engine: VllmEngine
    place: Place
    home: Home
    versions: tuple[AdapterVersion, ...]

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        async def within() -> Result:
            async with asyncio.timeout(DEADLINE):
                result = await work
                await idle(self.backend)
                return result

        return self.runner.run(within())

    def document(self, body: dict[str, object], endpoint: Endpoint = "chat/completions") -> dict[str, Any]:
        return self.run(document(self.backend, self.call(body, endpoint)))

    def frames(self, body: dict[str, object]) -> list[dict[str, Any]]:
        return self.run(frames(self.backend, self.call({**body, "stream": True})))

    def refusal(self, body: dict[str, object], endpoint: Endpoint = "chat/completions") -> InvalidRequest:
        with pytest.raises(InvalidRequest) as refused:
            self.document(body, endpoint)
        return refused.value

    def call(self, body: dict[str, object], endpoint: Endpoint = "chat/completions") -> Call:
        return Call(endpoint, self.versions[0].engine_name, body, body.get("stream") is True, "r-1")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("live")
    home = Home.at(folder / "home")
    versions = tuple(publish(home, folder / f"adapter-{seed}", seed) for seed in (1, 2))
    with ExitStack() as stack:
        engine = stack.enter_context(vllm_engine(folder / "vllm.log", *TOOLS))
        runner = stack.enter_context(asyncio.Runner())
        place = Place(engine.url, engine.key)
        backend = VllmBackend(
            BASE_ID, [Engine("one", place)], engine_store=str(home.store), rhythm=Rhythm(look_seconds=0.2)
        )
        runner.run(backend.start())
        stack.callback(lambda: runner.run(backend.stop()))
        for version in versions:
            runner.run(backend.load(version, Path("unused")))
        yield Served(runner, backend, engine, place, home, versions)


def publish(home: Home, folder: Path, seed: int) -> AdapterVersion:
    """A random adapter on the pocket base, published; the store is what the engine reads."""
    base = find_base(str(POCKET_BASE))
    folder.mkdir()
    write_adapter(folder, base, seed)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "lora_alpha": STRONG}))
    registry, route = Registry.open(home.registry_url), f"route-{seed}"
    registry.create_route(route)
    version = publish_folder(registry, Store(home.store), route, folder, base).version
    registry.close()
    return version


def chat(**body: object) -> dict[str, object]:
    return {"messages": [USER], "temperature": 0, "max_tokens": 24, **body}


def test_a_stream_and_a_document_agree_and_bear_the_engine_name(served: Served) -> None:
    events = served.frames(chat(stream_options={"include_usage": True}))
    whole = served.document(chat())
    assert streamed_text(events) == whole["choices"][0]["message"]["content"] != ""
    assert {event["model"] for event in events} == {whole["model"]} == {served.versions[0].engine_name}
    assert events[-1]["usage"].items() <= whole["usage"].items()
    assert whole["id"].startswith("chatcmpl-r-1.")


def test_responses_are_served_stateless_and_streamed(served: Served) -> None:
    body: dict[str, object] = {"input": "hello", "max_output_tokens": 8, "temperature": 0}
    whole = served.document(body, "responses")
    assert (whole["object"], whole["model"]) == ("response", served.versions[0].engine_name)

    async def streamed() -> bytes:
        reply = await served.backend.open(served.call({**body, "stream": True}, "responses"))
        assert reply.content_type.startswith("text/event-stream")
        return b"".join([part async for part in reply.body])

    events = served.run(streamed()).decode().split("\n\n")
    assert events[0].startswith("event: response.created\n")
    assert events[-2].startswith(("event: response.completed\n", "event: response.incomplete\n"))


def test_tokenize_counts_what_chat_counts(served: Served) -> None:
    counted = served.document({"messages": [USER]}, "tokenize")
    assert counted["count"] == len(counted["tokens"]) == served.document(chat())["usage"]["prompt_tokens"]


def test_what_vllm_supports_reaches_it(served: Served) -> None:
    several = served.document(chat(n=2, logprobs=True, top_logprobs=3, seed=7, temperature=1.0))["choices"]
    assert [choice["index"] for choice in several] == [0, 1]
    assert len(several[0]["logprobs"]["content"][0]["top_logprobs"]) == 3
    schema = {"name": "eaten", "schema": TOOL["function"]["parameters"]}  # type: ignore[index]
    said = served.document(chat(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=64))
    assert json.loads(said["choices"][0]["message"]["content"]).keys() == {"apples"}
    chosen = {"type": "function", "function": {"name": "eat"}}
    tools = served.document(chat(tools=[TOOL], tool_choice=chosen, max_tokens=64))["choices"][0]["message"]
    assert [made["function"]["name"] for made in tools["tool_calls"]] == ["eat"]
    full = served.document(chat())["choices"][0]["message"]["content"]
    stopped = served.document(chat(stop=[full[4:7]]))["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == (full[: full.find(full[4:7])], "stop")
    banned = served.document({"prompt": [5, 6], "max_tokens": 1, "logit_bias": {"9": 100}}, "completions")
    assert banned["model"] == served.versions[0].engine_name


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({"temperature": -1}, "temperature", None),
        ({"temperature": "hot"}, "temperature", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"top_p": 0}, "top_p", None),
        ({"messages": "hello"}, "messages", None),
        ({"messages": ["hello"]}, "messages[0]", None),
        ({"stop": [1]}, "stop", None),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, None, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "apple, " * 500}]}, None, "context_length_exceeded"),
    ],
)
def test_what_vllm_refuses_is_the_clients_fault_and_named(
    served: Served, wrong: dict[str, object], param: str | None, code: str | None
) -> None:
    refused = served.refusal(chat(**wrong))
    assert (refused.param, refused.code) == (param, code)
    assert refused.message
    assert "apple, apple" not in refused.message


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_stops_the_generation_in_the_engine(served: Served, streams: bool) -> None:
    endless = chat(max_tokens=900, ignore_eos=True, stream=streams)

    async def leave() -> None:
        opening = asyncio.create_task(served.backend.open(served.call(endless)))
        if streams:
            reply = await opening
            await anext(reply.body)
            await close(reply)
            return
        while not (opening.done() or await metric("vllm:num_requests_running")):  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.01)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)

    async def stopped() -> None:
        while await metric("vllm:num_requests_running"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def metric(name: str) -> float:
        return await asyncio.to_thread(served.engine.metric, name)

    def generated() -> float:
        before = served.engine.metric("vllm:generation_tokens_total")
        served.run(leave())
        served.run(stopped())
        return served.engine.metric("vllm:generation_tokens_total") - before

    # A starved engine may tell of an answer when all of it is done: nobody can leave before that.
    assert min(generated() for _ in range(3)) < 600


def test_a_version_the_engine_cannot_find_is_unavailable(served: Served, tmp_path: Path) -> None:
    elsewhere = publish(Home.at(tmp_path / "home"), tmp_path / "adapter", 3)
    with pytest.raises(AdapterUnavailable, match="cannot load") as refused:
        served.run(served.backend.load(elsewhere, Path("unused")))
    assert not isinstance(refused.value, NotApplied)
    assert str(served.home.store) not in refused.value.message
    assert served.document(chat())["choices"]


def test_a_core_that_stands_still_is_found_while_the_engine_says_it_is_healthy(served: Served) -> None:
    async def scenario() -> None:
        rhythm = Rhythm(look_seconds=0.1, stall_seconds=1.0, core_seconds=3.0)
        backend = VllmBackend(BASE_ID, [Engine("one", served.place)], rhythm=rhythm)
        await backend.start()
        try:
            endless = Call("chat/completions", BASE_ID, chat(max_tokens=900, ignore_eos=True, stream=True), True, "r-2")
            replies = await asyncio.gather(*[backend.open(endless) for _ in range(SEVERAL)])
            with stopped_core(served.engine):
                assert await asyncio.to_thread(served.engine.get, "/health") == (200, "")
                waiting = asyncio.create_task(backend.open(endless))
                ends = [await end_of(reply) for reply in replies]
                assert set(ends) <= {BROKEN, WHOLE}
                assert BROKEN in ends
                with pytest.raises(EngineUnavailable):
                    await waiting
                assert backend.engines[0].problem == HANGS
            while not await backend.ready():
                await backend.until_changed()
            await close(await backend.open(endless))
        finally:
            await backend.stop()

    served.run(scenario())


def test_what_a_core_that_stands_still_has_not_begun_is_answered_by_another_engine(served: Served) -> None:
    async def scenario() -> None:
        other = ProgrammableEngine(plugin=False)
        other.models = [BASE_ID]
        async with engines(other):
            places = Engine("one", served.place), Engine("two", FixedAddress(other.url, other.key))
            rhythm = Rhythm(look_seconds=0.1, quiet_seconds=1.0, still_seconds=1.0)
            backend = VllmBackend(BASE_ID, places, rhythm=rhythm)
            await backend.start()
            try:
                while any(one.state != "up" for one in backend.engines):
                    await backend.until_changed()
                await backend.drain("two")
                with stopped_core(served.engine):
                    waiting = asyncio.create_task(backend.open(Call("chat/completions", BASE_ID, chat(), False, "r-3")))
                    await asyncio.sleep(0)
                    assert backend.engines[0].outstanding == 1
                    await backend.resume("two")
                    said = b"".join([piece async for piece in (await waiting).body])
                    assert json.loads(said)["choices"][0]["message"]["content"] == f"[{BASE_ID}]"
                    assert (backend.engines[0].state, backend.engines[0].problem) == ("up", STANDS_STILL)
                while backend.engines[0].problem:
                    await backend.until_changed()
            finally:
                await backend.stop()

    served.run(scenario())


async def end_of(reply: Reply) -> str:
    """`BROKEN`, `WHOLE`, or the last bytes of an answer that only stops."""
    last = b""
    try:
        async for piece in reply.body:
            last = (last + piece)[-100:]
    except EngineFailed:
        return BROKEN
    return WHOLE if last.endswith(b"data: [DONE]\n\n") else repr(last)


@contextmanager
def stopped_core(engine: VllmEngine) -> Iterator[None]:
    """All of the engine's processes but its API server stand still."""
    others = [pid for pid in group_of(engine.process.pid) if pid != engine.process.pid]
    assert others
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        while any(is_running(pid) for pid in others):
            pass
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


def is_running(pid: int) -> bool:
    """Whether any thread of it has not stopped yet."""
    states = (status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status"))
    return any("State:\tT" not in state for state in states)


def group_of(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getpgid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


def test_an_engine_that_starts_again_holds_its_versions_again(served: Served) -> None:
    before = [surprise_of(served, version) for version in served.versions]
    assert abs(before[0] - before[1]) > 0.001
    assert served.backend.base_fingerprint is None
    served.engine.kill()
    port = int(served.engine.url.rpartition(":")[2])
    with vllm_engine(served.engine.log, store=str(served.home.store), port=port) as again:
        served.place.key = again.key
        served.run(until_caught_up(served.backend))
        assert [surprise_of(served, version) for version in served.versions] == pytest.approx(before, abs=1e-4)
        (status,) = served.backend.engines
        assert (status.restarts, status.base_fingerprint) == (1, find_base(str(POCKET_BASE)).fingerprint)
        assert served.backend.capacity == 16


async def until_caught_up(backend: VllmBackend) -> None:
    while [(one.state, one.restarts, one.resident) for one in backend.engines] != [("up", 1, 2)]:
        await backend.until_changed()


def surprise_of(served: Served, version: AdapterVersion) -> float:
    """The log-probability (nats) of the first greedy token: different for every adapter. Rounding moves it by 1e-5."""
    call = Call("chat/completions", version.engine_name, chat(logprobs=True), False, "r-1")
    choice = served.run(document(served.backend, call))["choices"][0]
    return float(choice["logprobs"]["content"][0]["logprob"])
