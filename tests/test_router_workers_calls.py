"""Calls to an engine in another process keep the contract of `Backend`; errors survive the trip."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.errors import AdaptersError, BranchlineError, NotFound
from adapters.probes import NO_PROBES, Probes
from adapters.types import AdapterVersion
from router import errors
from router.backends.echo import EchoBackend
from router.errors import EngineFailed, EngineOverloaded, InvalidRequest, RouterError
from router.types import Call, EngineStatus, Reply
from router.workers.calls import CallClient, CallServer
from router.workers.trip import error_document, error_from
from tests.backend_contract import OwnDecodingContract, Rig, call, chat
from tests.tiny_model import Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


class CalledFromAfar:
    """An engine as the parent has it, whose calls come from a worker's side over sockets; all else is the parent's."""

    def __init__(self, engine: EchoBackend) -> None:
        self._engine = engine
        self._server: CallServer | None = None
        self._client: CallClient | None = None
        self._handing: socket.socket | None = None

    @property
    def base_id(self) -> str:
        return self._engine.base_id

    @property
    def base_fingerprint(self) -> str | None:
        return self._engine.base_fingerprint

    @property
    def capacity(self) -> int | None:
        return self._engine.capacity

    @property
    def engines(self) -> Sequence[EngineStatus]:
        return self._engine.engines

    @property
    def running(self) -> int:
        return self._engine.running

    async def start(self) -> None:
        await self._engine.start()
        self._handing, handed = socket.socketpair()
        self._server, self._client = CallServer(self._engine, handed), CallClient(self._handing)
        self._server.start()

    async def stop(self) -> None:
        await self._engine.stop()
        await self.lose_the_parent()
        if self._handing is not None:
            self._handing.close()

    async def lose_the_parent(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def ready(self) -> bool:
        return await self._engine.ready()

    async def load(self, version: AdapterVersion, folder: Path, probes: Probes = NO_PROBES) -> None:
        await self._engine.load(version, folder, probes)

    async def unload(self, engine_name: str) -> None:
        await self._engine.unload(engine_name)

    def is_resident(self, engine_name: str) -> bool:
        return self._engine.is_resident(engine_name)

    async def drain(self, name: str) -> None:
        await self._engine.drain(name)

    async def resume(self, name: str) -> None:
        await self._engine.resume(name)

    async def open(self, call: Call) -> Reply:
        if self._client is None:
            raise EngineFailed("not started")
        return await self._client.open(call)


class TestEchoInAnotherProcess(OwnDecodingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls, tiny: Tiny) -> Rig:
        return Rig(
            make=lambda: CalledFromAfar(EchoBackend("tiny", context_length=3000)),
            versions=tiny.versions,
            broken=tiny.truncated,
            # More than the buffers between both sides hold: who does not read holds the engine back.
            long_body={"messages": [{"role": "user", "content": " ".join(["word" * 200] * 2000)}]},
            too_long="word " * 3000,
        )


def test_a_text_that_no_utf8_can_hold_reaches_the_engine_which_refuses_it() -> None:
    async def scenario() -> None:
        engine = CalledFromAfar(EchoBackend("tiny"))
        await engine.start()
        with pytest.raises(InvalidRequest, match="lone surrogate"):
            await engine.open(chat("tiny", messages=[{"role": "user", "content": "half \ud800 a pair"}]))
        await engine.stop()

    asyncio.run(scenario())


def test_calls_that_nobody_takes_over_are_refused_before_they_pile_up() -> None:
    async def scenario() -> None:
        handing, handed = socket.socketpair()
        client, waiting = CallClient(handing), list[asyncio.Task[Reply]]()
        while not any(task.done() for task in waiting):
            waiting.append(asyncio.create_task(client.open(chat("tiny"))))
            await asyncio.sleep(0)
        assert isinstance(next(task for task in waiting if task.done()).exception(), EngineOverloaded)
        handed.close()
        handing.close()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())


def test_an_engine_whose_process_ends_breaks_its_answers_off() -> None:
    async def scenario() -> None:
        engine = CalledFromAfar(EchoBackend("tiny"))
        await engine.start()
        reply = await engine.open(
            call("tiny", {"messages": [{"role": "user", "content": "a " * 3000}], "stream": True})
        )
        await anext(reply.body)
        await engine.lose_the_parent()
        with pytest.raises(EngineFailed):
            async for _ in reply.body:
                pass
        with pytest.raises(EngineFailed):
            await engine.open(chat("tiny"))
        await engine.stop()

    asyncio.run(scenario())


def test_nothing_is_left_of_calls_that_have_ended() -> None:
    def open_files() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    async def scenario() -> None:
        engine = CalledFromAfar(EchoBackend("tiny"))
        await engine.start()
        before = open_files()
        for _ in range(20):
            reply = await engine.open(chat("tiny"))
            assert [piece async for piece in reply.body]
        reply = await engine.open(chat("tiny", stream=True))
        await reply.body.aclose()  # type: ignore[attr-defined]  # AsyncIterator's type has no aclose, every body does
        async with asyncio.timeout(30):
            while open_files() > before:  # noqa: ASYNC110 - a closed transport sets no event
                await asyncio.sleep(0.001)
        await engine.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", errors.TABLE, ids=lambda kind: kind.__name__)
def test_every_error_that_says_no_more_than_others_is_the_same_after_the_trip(kind: type[BranchlineError]) -> None:
    error = _made(kind)
    back = error_from(error_document(error))
    assert isinstance(back, BranchlineError)
    assert (back.message, back.hint) == (error.message, error.hint)
    if kind.__init__ in (RouterError.__init__, BranchlineError.__init__):  # the others are no engine's to raise
        assert type(back) is kind
        assert errors.error_object(back) == errors.error_object(error)


def _made(kind: type[BranchlineError]) -> BranchlineError:
    error = kind.__new__(kind)
    BranchlineError.__init__(error, "what was found", hint="what to do")
    if isinstance(error, RouterError):
        error.param, error.code = "model", "a_code"
    return error


def test_a_subclass_that_only_its_module_knows_arrives_as_what_it_is_to_everybody_else() -> None:
    class Unknown(NotFound):
        pass

    assert type(error_from(error_document(Unknown("gone")))) is NotFound


def test_an_error_that_nobody_raises_on_purpose_tells_nothing_of_itself() -> None:
    back = error_from(error_document(ValueError("secret")))
    assert isinstance(back, (RouterError, AdaptersError))
    assert "secret" not in str(back)
