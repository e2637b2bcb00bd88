"""Several real gateways on one registry, and clients that keep all of them busy."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from adapters.home import Home
from adapters.publish import publish_folder
from adapters.registry import Registry
from tests.adapter_folders import make_adapter, make_base
from tests.gateway_process import GatewayProcess

PAUSE_SECONDS = 0.01  # between an answer and the next question: the machine has other work
DEADLINE = 60.0  # seconds, for what must happen soon but at no stated time
BODY = json.dumps({"model": "sql", "messages": [{"role": "user", "content": "count the users"}]})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw: which gateway, when it had asked (monotonic seconds), and what came."""

    gateway: str
    asked: float
    status: int
    stage: str | None


@dataclass
class Load:
    """`clients` for each gateway, asking for the route `sql` again and again."""

    urls: Sequence[str]
    clients: int = 2
    answers: list[Answer] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [
            threading.Thread(target=self._ask, args=(url,)) for url in self.urls for _ in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def since(self, moment: float) -> list[Answer]:
        """The answers to what was asked after `moment`, once every gateway has given five."""

        def found() -> list[Answer]:
            return [one for one in list(self.answers) if one.asked > moment]

        until(lambda: all(sum(one.gateway == url for one in found()) >= 5 for url in self.urls), "answers of them all")
        return found()

    def _ask(self, url: str) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
        while not self._stopping.wait(PAUSE_SECONDS):
            asked = time.monotonic()
            status, stage = ask(connection)
            self.answers.append(Answer(url, asked, status, stage))
        connection.close()


def ask(connection: http.client.HTTPConnection) -> tuple[int, str | None]:
    """One request for the route `sql`: its status, and the stage of what answered (`live` or `base`)."""
    connection.request("POST", "/v1/chat/completions", BODY, {"content-type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status, response.headers.get("x-branchline-stage")


def get(url: str, path: str) -> str:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < deadline, f"it never came: {what}"
        time.sleep(0.01)


def prepare(folder: Path) -> Home:
    """A home whose route `sql` has two versions, both of which were live."""
    home = Home.at(folder / "home")
    registry, store = Registry.open(home.registry_url, actor="test"), home.open_store()
    base = make_base(folder / "pocket")
    registry.create_route("sql")
    for seed in (1, 2):
        adapter = make_adapter(folder / f"adapter-{seed}", base.id, seed=seed)
        publish_folder(registry, store, "sql", adapter, base)
        registry.promote("sql", seed, forced="test")
    registry.close()
    return home


@contextmanager
def gateways(home: Home, registry_urls: Sequence[str], *flags: str) -> Iterator[list[GatewayProcess]]:
    """A gateway (echo engine) for each URL of the registry, all serving."""
    with ExitStack() as stack:
        started = [stack.enter_context(starting(home, url, *flags)) for url in registry_urls]
        yield [one.wait_until_serving() for one in started]


@contextmanager
def starting(home: Home, registry_url: str, *flags: str) -> Iterator[GatewayProcess]:
    words = ("--backend", "echo", "--base", "pocket", "--port", "0", *flags)
    gateway = GatewayProcess.start(home.folder, *words, BRANCHLINE_REGISTRY=registry_url)
    try:
        yield gateway
    finally:
        gateway.stop()
