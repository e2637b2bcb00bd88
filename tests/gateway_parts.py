"""A gateway built from its parts for tests: a real registry and store, an engine whose loads can be held."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapters.base import Base, find_base
from adapters.classifiers import publish_classifier
from adapters.home import Home
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.store import Store
from adapters.types import AdapterVersion, ClassifierVersion
from router.backends.echo import EchoBackend
from router.catalog import Catalog, LoadClassifier
from router.classify.artifact import save_classifier
from router.classify.fit import fit_classifier
from router.classify.loader import load_classifier
from router.dispatch import Dispatcher
from router.errors import AdapterUnavailable
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


def make_stock(root: Path, *, versions: int = 4) -> Stock:
    base = find_base(str(make_base(root / "tiny")))
    folders = tuple(make_adapter(base.folder, root / f"adapter-{n}", seed=n, rank=2) for n in range(versions))
    home = Home.at(root / "home")
    registry, store = Registry.open(home.registry_url), Store(home.store)
    for route in ROUTES:
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
    """What an engine does at loads: `held` loads wait for `release`, `faults` fail with their message."""

    held: dict[str, asyncio.Event] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    crashes: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)

    def hold(self, *refs: str) -> None:
        self.held |= {ref: asyncio.Event() for ref in refs}

    def release(self, ref: str) -> None:
        self.held.pop(ref).set()


class ScriptedEngine(EchoBackend):
    """The echo engine with loads, and single tokens, under the test's control."""

    def __init__(self, base: Base, *, fingerprint: str | None = None) -> None:
        super().__init__(base.id, base_fingerprint=fingerprint or base.fingerprint)
        self.script = Script()
        self.failing_after: int | None = None
        self.crashing_after: int | None = None
        self.opened: list[Call] = []
        self.pause = asyncio.Event()
        self.pause.set()

    async def load(self, version: AdapterVersion, folder: Path) -> None:
        ref = str(version.ref)
        self.script.loads.append(ref)
        if ref in self.script.held:
            await self.script.held[ref].wait()
        if ref in self.script.faults:
            raise AdapterUnavailable(self.script.faults[ref])
        if ref in self.script.crashes:
            raise RuntimeError("secret of the engine")
        await super().load(version, folder)

    async def unload(self, engine_name: str) -> None:
        self.script.unloads.append(engine_name)
        await super().unload(engine_name)

    async def open(self, call: Call) -> Reply:
        self.opened.append(call)
        return await super().open(call)


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
    allow_unreleased: bool = False,
    settle: bool = True,
) -> AsyncIterator[Gateway]:
    """A gateway on `home`, after promoting `live` in that order."""
    registry = Registry.open(home.registry_url)
    journal = Registry.open(home.registry_url)
    store = Store(home.store)
    engine = engine or ScriptedEngine(base)
    catalog = Catalog(journal, store, engine, read_classifier, "gateway-under-test")
    telemetry = Telemetry()
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
        registry.close()
        journal.close()


def classifier_versions(home: Home) -> list[ClassifierVersion]:
    registry = Registry.open(home.registry_url)
    try:
        return registry.classifiers()
    finally:
        registry.close()
