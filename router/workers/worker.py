"""One worker: `python -m router.workers.worker BOUND TABLE CONTROL CALLS`, inherited descriptors; see `process.py`."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict

from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.errors import BranchlineError

from ..admin_api.surface import Admin
from ..app import Parts, create_app
from ..auth import Gatekeeper
from ..backends.vllm.followed import FollowedEngines
from ..backends.vllm.told import ToldEngines
from ..collector import settle
from ..decision_log import DecisionLog
from ..dispatch import MAX_UNRELEASED, Dispatcher
from ..errors import EngineUnavailable
from ..http.feedback import Feedback
from ..http.server import GatewayServer, Listening
from ..settings import Settings
from ..telemetry import Telemetry
from .calls import CallClient
from .channel import Channel, Document
from .followed import Followed, RemoteEngine
from .messages import Hello, Told
from .shapes import shape
from .shared_limits import SharedLimits, Table
from .totals import families

JUDGE_SECONDS = 30.0  # a worker that cannot have its judge by then answers without


class WorkerProcess:
    """Lives on its process's event loop. Everything it knows, it was told; when its parent ends, so does it."""

    def __init__(
        self, bound: Sequence[socket.socket], table: int, control: socket.socket, calls: socket.socket
    ) -> None:
        self._bound = bound
        self._table = table
        self._calls = calls
        self._channel = Channel(control, self._hear, self._answer)
        self._greeted = asyncio.Event()
        self._may_serve = asyncio.Event()
        self._stopping = False
        self._server: GatewayServer | None = None
        self._engines: FollowedEngines | None = None
        self._number = 0
        self._followed: Followed
        self._settings: Settings
        self._telemetry: Telemetry
        self._gatekeeper: Gatekeeper

    async def run(self) -> None:
        """Until the parent says so, is gone, or a signal comes; running answers may finish."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._drain)
        following = asyncio.create_task(self._channel.run())
        serving = asyncio.create_task(self._serve())
        try:
            await asyncio.wait({following, serving}, return_when=asyncio.FIRST_COMPLETED)
            self._drain()
            await serving
            if following.done():
                following.result()  # what it was told could not be done
        finally:
            following.cancel()
            self._channel.close()

    async def _serve(self) -> None:
        await self._greeted.wait()
        if self._stopping:
            return
        feedback, admin, app = self._app()
        try:
            await self._followed.settled(JUDGE_SECONDS)
            settle()
            self._channel.tell("ready", {})
            await self._may_serve.wait()
            if not self._stopping:
                # One at a time: who takes all that wait would keep them, and the others would have nothing to do.
                self._server = GatewayServer(app, accepted_at_once=1)
                await self._server.serve(list(self._bound))
        finally:
            await self._followed.stop()
            if self._engines is not None:
                await self._engines.close()
            feedback.close()
            admin.desk.close()
            self._telemetry.close()

    def _app(self) -> tuple[Feedback, Admin, ASGIApp]:
        settings, kept = self._settings, self._settings.decision_log
        engine = RemoteEngine(self._followed, self._channel, self._engines or CallClient(self._calls))
        feedback = Feedback(settings.home.registry_url, kept.path if kept and kept.text else None)
        dispatcher = Dispatcher(
            self._followed,
            engine,
            self._telemetry,
            allow_unreleased=settings.allow_unreleased,
            max_unreleased=max(1, MAX_UNRELEASED // settings.workers),
        )
        admin = Admin.of(settings, self._bound)
        parts = Parts(
            self._followed,
            engine,
            dispatcher,
            self._gatekeeper,
            self._telemetry,
            settings.max_body_bytes,
            feedback,
            self._metrics_page,
            SharedLimits(Table(self._table, self._number)),
            admin,
        )
        app = create_app(parts)
        app.add_middleware(UpToDate, followed=self._followed)
        return feedback, admin, app

    async def _metrics_page(self) -> bytes:
        page: str = (await self._channel.ask("metrics", {}))["page"]
        return page.encode()

    def _drain(self) -> None:
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True
        self._greeted.set()
        self._may_serve.set()

    async def _answer(self, what: str, _body: Document) -> Document:
        if what != "counts":
            raise ValueError(what)
        work = self._engines.work() if self._engines is not None else {}
        return {"families": families(self._telemetry.registry), "work": work}

    def _hear(self, what: str, body: Document) -> None:
        if what == "hello":
            self._greet(shape(Hello).validate_python(body))
        elif what == "told":
            told: Told = shape(Told).validate_python(body)
            self._followed.take(told)
            self._channel.tell("acknowledged", {"sequence": told.sequence})
        elif what == "judge":
            self._followed.judge_with(body["classifier"], body["exemplars"])
            self._greeted.set()  # it is the last of the greeting
        elif what == "engines" and self._engines is not None:
            self._engines.follow(shape(ToldEngines).validate_python(body))
        elif what == "go":
            self._may_serve.set()
        elif what == "drain":
            self._drain()

    def _greet(self, hello: Hello) -> None:
        logging.basicConfig(
            level=logging.INFO,
            format=f"%(asctime)s %(levelname)s worker {hello.number} %(name)s: %(message)s",
            stream=sys.stderr,
        )
        self._number = hello.number
        self._settings = hello.settings
        kept = hello.settings.decision_log
        self._telemetry = Telemetry(DecisionLog(kept.path, text=kept.text, days=kept.days) if kept else None)
        followed = self._followed = Followed(hello.settings, hello.base_id, self._channel, self._judged)
        if hello.follows_engines:
            self._engines = FollowedEngines(hello.base_id, self._lacks)
        digest = bytes.fromhex(hello.key_digest) if hello.key_digest else None
        self._gatekeeper = Gatekeeper(digest, hello.loopback, lambda: followed.keys)

    async def _lacks(self, engine: str, version: str) -> None:
        await self._channel.ask("lacks", {"engine": engine, "version": version})

    def _judged(self) -> None:
        self._channel.tell("judged", asdict(self._followed.judged_with))


class UpToDate:
    """Has the parent's facts looked up before pages that show them, so that every worker shows the same."""

    def __init__(self, app: ASGIApp, followed: Followed) -> None:
        self._app = app
        self._followed = followed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"] == "/ready" or scope["path"].startswith("/admin/")):
            try:
                await self._followed.look()
            except EngineUnavailable:
                self._followed.learn({"ready": False})
        await self._app(scope, receive, send)


async def main(bound: str, table: int, control: int, calls: int) -> None:
    """Raises what building a gateway raises."""
    listening = [Listening(fileno=int(one)) for one in bound.split(",")]
    with socket.socket(fileno=calls) as handed:  # nobody else closes it where the worker calls engines by itself
        await WorkerProcess(listening, table, socket.socket(fileno=control), handed).run()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:5])))
    except BranchlineError as error:
        sys.exit(f"a worker cannot serve: {error}")
