"""What a fault strikes: real gateway processes, stand-in engines as processes, a registry, a store."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from adapters.base import Base
from adapters.classifiers import promote_classifier, publish_classifier
from adapters.examples import add_examples
from adapters.home import Home
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.rows import LabelledText
from router.classify.artifact import save_classifier
from router.classify.fit import fit_classifier
from tests.adapter_folders import make_base
from tests.gateway_process import GatewayProcess
from tests.postgres_server import PostgresServer
from tests.tcp_proxy import TcpProxy
from tests.vllm_engine import free_port

from .adapter_folder import write_adapter
from .disable import EXAMPLES
from .fault_clients import Question
from .fault_engine import EngineProcess

DEADLINE = 40.0  # seconds, for what must happen soon but at no stated time
ROUTES = tuple(EXAMPLES)  # `sql` and `booking`
PINNED = (Question("sql"), Question("sql", stream=True), Question("auto"), Question("base"))
WHOLE = (Question("sql"), Question("auto"), Question("base"))


@dataclass(frozen=True, slots=True)
class Count:
    """What a case came to: how many requests were judged, each broken promise in words, and what else to say."""

    requests: int
    broken: Sequence[str]
    note: str = ""


class Engine(Protocol):
    """What a gateway sends requests to: a stand-in, or vLLM."""

    @property
    def url(self) -> str: ...

    def slow_down(self) -> None:
        """Take half a second for an answer, at least."""

    def kill(self) -> None:
        """SIGKILL, as the kernel does where memory is short."""

    def restart(self) -> None:
        """On the same port, nothing loaded; it answers when this returns."""


@dataclass(slots=True)
class Ground:
    """A home whose routes have two versions each, both of which were live, and what runs on it."""

    home: Home
    base: Base
    folder: Path
    answers: int = 100  # that are judged in each phase of a case, at least
    engines: Sequence[Engine] = ()
    gateways: list[GatewayProcess] = field(default_factory=list)
    server: PostgresServer | None = None  # where the registry is, unless it is a file
    wire: TcpProxy | None = None  # between the gateways and it

    @property
    def stand_ins(self) -> list[EngineProcess]:
        """Those of the engines that misbehave as they are told."""
        return [one for one in self.engines if isinstance(one, EngineProcess)]

    @property
    def urls(self) -> list[str]:
        return [one.url for one in self.gateways]

    @property
    def registry_file(self) -> Path:
        return Path(self.home.registry_url.removeprefix("sqlite:///"))

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        with closing(Registry.open(self.home.registry_url, actor="fault")) as registry:
            yield registry

    def ready(self, url: str = "") -> dict[str, Any]:
        """What a gateway says of itself."""
        return json.loads(fetch(f"{url or self.urls[0]}/ready"))  # type: ignore[no-any-return]

    def stale(self, url: str = "") -> float:
        """For how many seconds a gateway has not heard from the registry, by its own account."""
        return float(self.ready(url)["registry_stale_seconds"])

    def up(self, url: str = "") -> int:
        """How many engines a gateway takes for healthy."""
        return int(self.ready(url)["engines"].get("up", 0))

    def publish(self, seed: int, route: str = "sql") -> int:
        """A further version, not promoted; its number."""
        folder = self.folder / f"adapter-{route}-{seed}"
        folder.mkdir()
        write_adapter(folder, self.base, seed)
        with self.registry() as registry:
            publish_folder(registry, self.home.open_store(), route, folder, self.base)
            return max(version.number for version in registry.versions() if version.route == route)

    def stored(self, number: int, route: str = "sql") -> Path:
        """The folder of a version in the store."""
        with self.registry() as registry:
            (version,) = [one for one in registry.versions() if one.route == route and one.number == number]
        return self.home.open_store().folder(version.route, version.digest)


def prepare(folder: Path, registry_url: str | None = None, base: Base | None = None) -> Ground:
    """Two routes of two versions, and a classifier that tells them apart."""
    home, base = Home.at(folder / "home", registry_url), base or make_base(folder / "base")
    ground = Ground(home, base, folder)
    with ground.registry() as registry:
        for route, texts in EXAMPLES.items():
            registry.create_route(route)
            add_examples(registry, route, texts, source="fault")
    for seed, route in enumerate((*ROUTES, *ROUTES), 1):
        number = ground.publish(seed, route)
        with ground.registry() as registry:
            registry.promote(route, number, forced="fault")
    publish_new_classifier(ground, "first")
    return ground


def publish_new_classifier(ground: Ground, word: str, *, promote: bool = True) -> int:
    """Fit one that knows `word` too; its number."""
    rows = [LabelledText(text, name) for name, texts in EXAMPLES.items() for text in (*texts, f"{word} {name}")]
    classifier = fit_classifier(rows)
    folder = ground.folder / f"classifier-{word}"
    save_classifier(classifier, folder)
    with ground.registry() as registry:
        store = ground.home.open_store()
        version = publish_classifier(registry, store, folder, digest=classifier.digest, summary=classifier.summary)
        if promote:
            promote_classifier(registry, version.number)
    return version.number


def two_stand_ins(ground: Ground) -> list[EngineProcess]:
    """Engines as processes of their own."""
    return [EngineProcess.start(free_port(), ground.base.fingerprint) for _ in range(2)]


@asynccontextmanager
async def ground_in(
    folder: Path,
    *flags: str,
    gateways: int = 1,
    start_engines: Callable[[Ground], Sequence[Engine]] = two_stand_ins,
    base: Base | None = None,
    registry_url: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> AsyncIterator[Ground]:
    """Everything up and every live version resident, until the end of the block."""
    ground = await asyncio.to_thread(prepare, folder, registry_url, base)
    try:
        ground.engines = await asyncio.to_thread(start_engines, ground)
        for _ in range(gateways):
            start_gateway(ground, *flags, variables=variables)
        for one in ground.gateways:
            await asyncio.to_thread(one.wait_until_serving)
        for one in ground.gateways:
            await until(lambda one=one: is_whole(ground, one.url), "that everything is resident")  # type: ignore[misc]
        yield ground
    finally:
        for one in ground.gateways:
            await asyncio.to_thread(one.stop)
        for engine in ground.engines:
            engine.kill()


def start_gateway(ground: Ground, *flags: str, variables: Mapping[str, str] | None = None) -> GatewayProcess:
    """One more on the same home; it may not be serving yet."""
    engines = [word for engine in ground.engines for word in ("--engine", engine.url)]
    words = ("--backend", "vllm", "--base", str(ground.base.folder), *engines, "--port", "0", *flags)
    started = GatewayProcess.start(ground.home.folder, *words, **(variables or {}))
    ground.gateways.append(started)
    return started


def is_whole(ground: Ground, url: str = "") -> bool:
    """Whether all engines are up for a gateway, nothing is being loaded and the registry answers."""
    told = ground.ready(url)
    healthy = told["engines"].get("up", 0) == len(ground.engines) and not told["registry_stale_seconds"]
    return bool(healthy and not told["warming"])


async def until(holds: Callable[[], bool], what: str) -> None:
    """Look again and again, beside the event loop; fails where it never comes."""
    deadline = time.monotonic() + DEADLINE
    while not await asyncio.to_thread(_quietly, holds):
        if time.monotonic() > deadline:
            raise TimeoutError(f"it never came: {what}")
        await asyncio.sleep(0.02)


def _quietly(holds: Callable[[], bool]) -> bool:
    with suppress(OSError, ValueError):
        return holds()
    return False


def fetch(url: str) -> str:
    """A GET on loopback, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:  # noqa: S310  # always http on loopback
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
