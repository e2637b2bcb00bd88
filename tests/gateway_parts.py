"""A gateway built from its parts for tests: a real registry and store, an engine whose loads can be held."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from adapters.base import Base, find_base
from adapters.classifiers import publish_classifier
from adapters.home import Home
from adapters.probes import NO_PROBES, Probes
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.store import Store
from adapters.types import AdapterVersion, ClassifierVersion
from router.admin_api.desk import Desk
from router.admin_api.operation import Place
from router.admin_api.surface import Admin
from router.app import Parts, create_app
from router.auth import Gatekeeper
from router.backends.echo import EchoBackend
from router.catalog import Catalog
from router.classify.artifact import save_classifier
from router.classify.fit import fit_classifier
from router.classify.loader import load_classifier
from router.cli import listen
from router.decision_log import DecisionLog
from router.dispatch import Dispatcher
from router.errors import AdapterUnavailable, EngineFailed, NotApplied
from router.following.judge_building import FindEncoder, LoadClassifier, no_encoder
from router.http.feedback import Feedback
from router.http.server import GatewayServer
from router.keys.limits import Limits
from router.policy import NotScored, decide
from router.telemetry import Telemetry
from router.types import Call, Decision, Endpoint, Reply
from router.wire import ClientRequest
from tests.classifier_rows import base_rows, routes_rows
from tests.tiny_model import make_adapter, make_base

DEADLINE = 60.0  # seconds, for what must happen soon but at no stated time
ROUTES = ("sql", "regex")


@dataclass(frozen=True, slots=True)
class Stock:
    """A home with two routes and the same published versions in each, none live, and two classifiers."""

    home: Path
    base: Base
    folders: tuple[Path, ...]

    def copy(self, target: Path) -> Home:
        shutil.copytree(self.home, target)
        return Home.at(target)


def make_stock(root: Path, *, versions: int = 4, routes: Sequence[str] = ROUTES) -> Stock:
    base = find_base(str(make_base(root / "tiny")))
    folders = tuple(make_adapter(base.folder, root / f"adapter-{n}", seed=n, rank=2) for n in range(versions))
    home = Home.at(root / "home")
    registry, store = Registry.open(home.registry_url), Store(home.store)
    for route in routes:
        registry.create_route(route)
        for folder in folders:
            publish_folder(registry, store, route, folder, base)
    for number, rows in enumerate((routes_rows(10), routes_rows(10, seed=1) + base_rows())):
        fitted = fit_classifier(rows)
        save_classifier(fitted, root / f"classifier-{number}")
        publish_classifier(registry, store, root / f"classifier-{number}", digest=fitted.digest, summary=fitted.summary)
    registry.close()
    return Stock(home.folder, base, folders)


@dataclass(slots=True)
class Script:
    """What an engine does at loads: `held` loads wait for `release`, `faults` fail with their message.

    Those of `faults` that are `unapplied` fail at the proof.
    """

    held: dict[str, asyncio.Event] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    unapplied: set[str] = field(default_factory=set)
    crashes: set[str] = field(default_factory=set)
    probes: dict[str, Probes] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)

    def hold(self, *refs: str) -> None:
        self.held |= {ref: asyncio.Event() for ref in refs}

    def release(self, ref: str) -> None:
        self.held.pop(ref).set()


class ScriptedEngine(EchoBackend):
    """The echo engine with its loads and its answers under the test's control.

    An answer waits before piece `pause_before` until `resume`, and breaks as `breaks_with` says at piece `break_at`:
    with an error, or (`StopAsyncIteration`) by ending too early. `hold_open` makes `open` wait until `resume`; an
    engine that `opens_late` answers all the same when that wait is cancelled. `room` is its `capacity`.
    """

    def __init__(
        self, base: Base, *, fingerprint: str | None = None, verified: bool = True, room: int | None = None
    ) -> None:
        super().__init__(base.id, base_fingerprint=(fingerprint or base.fingerprint) if verified else None)
        self.script = Script()
        self.room = room
        self.hold_open = False
        self.opens_late = False
        self.opening = 0
        self.opened: list[Reply] = []  # those that were opened late: only closing ends them, not forgetting
        self.pause_before: int | None = None
        self.break_at: int | None = None
        self.breaks_with: BaseException = EngineFailed("the engine died")
        self.resumed = asyncio.Event()

    def obey(self) -> None:
        """Forget everything that answers were told to do."""
        self.pause_before, self.break_at = None, None
        self.hold_open, self.opens_late = False, False
        self.resumed.set()
        self.resumed = asyncio.Event()

    @property
    def capacity(self) -> int | None:
        return self.room

    async def load(self, version: AdapterVersion, folder: Path, probes: Probes = NO_PROBES) -> None:
        ref = str(version.ref)
        self.script.loads.append(ref)
        self.script.probes[ref] = probes
        if ref in self.script.held:
            await self.script.held[ref].wait()
        if ref in self.script.faults:
            raise (NotApplied if ref in self.script.unapplied else AdapterUnavailable)(self.script.faults[ref])
        if ref in self.script.crashes:
            raise RuntimeError("secret of the engine")
        await super().load(version, folder, probes)

    async def unload(self, engine_name: str) -> None:
        self.script.unloads.append(engine_name)
        await super().unload(engine_name)

    def lose(self, engine_name: str) -> None:
        """Forget a version without being asked to, as an engine that restarts does."""
        self._resident.discard(engine_name)

    async def open(self, call: Call) -> Reply:
        if self.hold_open:
            await self._until_resumed()
        reply = await super().open(call)
        if self.opens_late:
            self.opened.append(reply)
        return Reply(_Scripted(reply.body, self), reply.content_type)

    def find(self, engine_name: str) -> None:
        """Have a version again without being asked to, as one that catches up after a restart does."""
        self._resident.add(engine_name)

    async def _until_resumed(self) -> None:
        self.opening += 1
        try:
            await self.resumed.wait()
        except asyncio.CancelledError:
            if not self.opens_late:
                raise
        finally:
            self.opening -= 1


class _Scripted(AsyncIterator[bytes]):
    def __init__(self, body: AsyncIterator[bytes], engine: ScriptedEngine) -> None:
        self._body = body
        self._engine = engine
        self._pieces = 0

    async def __anext__(self) -> bytes:
        if self._pieces == self._engine.break_at:
            await self.aclose()
            raise self._engine.breaks_with
        if self._pieces == self._engine.pause_before:
            await self._engine.resumed.wait()
        self._pieces += 1
        return await anext(self._body)

    async def aclose(self) -> None:
        await self._body.aclose()  # type: ignore[attr-defined]  # AsyncIterator's type has no aclose, every body does


@dataclass(slots=True)
class Gateway:
    """A running catalog with its parts; `registry` is the operator's own connection."""

    home: Home
    registry: Registry
    store: Store
    engine: ScriptedEngine
    catalog: Catalog
    telemetry: Telemetry
    dispatcher: Dispatcher

    def promote(self, route: str, number: int) -> int:
        return self.registry.promote(route, number, forced="a test").event.serial

    async def promoted(self, route: str, number: int) -> None:
        """Promote and wait until it is in force."""
        self.promote(route, number)
        await self.until(lambda: self.in_force(route) == number, f"{route}@{number} in force")

    async def applied(self, serial: int) -> None:
        """Wait until the gateway has learned of event `serial`, whatever it can make of it."""
        await self.until(lambda: self.catalog.snapshot.serial >= serial, f"serial {serial}")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():  # noqa: ASYNC110 - the watcher's thread sets no event
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(f"never came: {what}") from None

    def in_force(self, route: str) -> int | None:
        return self.catalog.snapshot.routes[route].in_force

    def engine_name(self, route: str, number: int) -> str:
        return self.registry.version(route, number).engine_name

    def decide(self, model: str) -> Decision:
        return decide(model, NotScored("no_classifier"), self.catalog.snapshot)


def client_request(
    model: str, text: str = "one two three", *, stream: bool = True, endpoint: Endpoint = "chat/completions"
) -> ClientRequest:
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return ClientRequest(endpoint, model, stream, (text,), body)


@asynccontextmanager
async def running(
    home: Home,
    base: Base,
    *,
    live: Sequence[tuple[str, int]] = (),
    engine: ScriptedEngine | None = None,
    read_classifier: LoadClassifier = lambda folder, digest: load_classifier(folder, digest=digest),
    find_encoder: FindEncoder = no_encoder,
    allow_unreleased: bool = False,
    settle: bool = True,
    decision_log: DecisionLog | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway on `home`, after promoting `live` in that order."""
    registry = Registry.open(home.registry_url)
    journal = Registry.open(home.registry_url)
    store = Store(home.store)
    engine = engine or ScriptedEngine(base)
    telemetry = Telemetry(decision_log)
    name = "gateway-under-test"
    catalog = Catalog(
        journal, store, engine, read_classifier, name, find_encoder=find_encoder, on_load=telemetry.loaded
    )
    dispatcher = Dispatcher(catalog, engine, telemetry, allow_unreleased=allow_unreleased)
    gateway = Gateway(home, registry, store, engine, catalog, telemetry, dispatcher)
    for route, number in live:
        gateway.promote(route, number)
    await engine.start()
    try:
        await catalog.start()
        if settle:
            await catalog.settled()
        yield gateway
    finally:
        await catalog.stop()
        await engine.stop()
        telemetry.close()
        registry.close()
        journal.close()


class Served:
    """A gateway on a real socket, on an event loop in a thread of its own; enter it to start, leave it to stop."""

    def __init__(self, home: Home, base: Base, gatekeeper: Gatekeeper, **options: Any) -> None:
        self._home = home
        self._base = base
        self._gatekeeper = gatekeeper
        self._options = options
        log: DecisionLog | None = options.get("decision_log")
        self._feedback = Feedback(home.registry_url, log.path if log is not None and log.keeps_text else None)
        self._max_body_bytes: int = options.pop("max_body_bytes", 8 * 1024 * 1024)
        self._lora_folders: tuple[Path, ...] | None = options.pop("lora_folders", None)
        self._admin_port: bool = options.pop("admin_port", False)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._server: GatewayServer | None = None
        self.limits = Limits()
        self.gateway: Gateway
        self.app: FastAPI
        self.port = 0
        self.admin_port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> ScriptedEngine:
        return self.gateway.engine

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def until(self, condition: Callable[[], bool], what: str) -> None:
        asyncio.run(self.gateway.until(condition, what))

    def call(self, act: Callable[[], object]) -> None:
        """Do something on the gateway's event loop, and wait for it."""

        async def acting() -> None:
            act()

        asyncio.run_coroutine_threadsafe(acting(), self._loop).result(DEADLINE)

    def obey(self) -> None:
        self.call(self.engine.obey)

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._started.wait(DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(DEADLINE)
        self._feedback.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with running(self._home, self._base, **self._options) as gateway:
            self.gateway = gateway
            with listen("127.0.0.1", 0) as bound, listen("127.0.0.1", 0) as apart:
                self.port = bound.getsockname()[1]
                self.admin_port = apart.getsockname()[1]
                admin = self._admin()
                parts = Parts(
                    gateway.catalog,
                    gateway.engine,
                    gateway.dispatcher,
                    self._gatekeeper.following(lambda: gateway.catalog.keys),
                    gateway.telemetry,
                    self._max_body_bytes,
                    self._feedback,
                    limits=self.limits,
                    admin=admin,
                )
                self.app = create_app(parts)
                self._server = GatewayServer(self.app)
                self._started.set()
                try:
                    await self._server.serve([bound, apart] if self._admin_port else [bound])
                finally:
                    if admin is not None:
                        admin.desk.close()

    def _admin(self) -> Admin | None:
        """The admin API, where the test names folders that it may load from (or none of them: `()`)."""
        if self._lora_folders is None:
            return None
        place = Place(self._home, str(self._base.folder), self._lora_folders)
        return Admin(Desk(self._home), place, self.admin_port if self._admin_port else None)


def classifier_versions(home: Home) -> list[ClassifierVersion]:
    registry = Registry.open(home.registry_url)
    try:
        return registry.classifiers()
    finally:
        registry.close()
