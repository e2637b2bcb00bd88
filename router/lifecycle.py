"""How a gateway says that it serves, and how signals end it; the same for one process and for several."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import Callable, Sequence

from adapters.output import note

from .catalog import Catalog
from .collector import settle
from .settings import Settings

WARM_SECONDS = 30


def gateway_id() -> str:
    """Unique to this process: host, process number and a few random letters."""
    return f"{socket.gethostname()[:30]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def stop_on_signals(work: asyncio.Task[None], drain: Callable[[], bool]) -> None:
    """The first signal lets running answers finish; the second, or one that comes before there are any, does not.

    `drain` begins with the former, and says whether it could.
    """

    def stop() -> None:
        if drain():
            note("stopping: running answers may finish; again to stop at once")
        else:
            note("stopping at once")
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def addresses_of(bound: Sequence[socket.socket]) -> list[tuple[str, int]]:
    """Host and port of each socket."""
    return [one.getsockname()[:2] for one in bound]


async def announce(catalog: Catalog, addresses: Sequence[tuple[str, int]], settings: Settings) -> None:
    """Say where the gateway listens, and where operators are answered if that is elsewhere.

    That is once what is live is warm, or after a while: it answers before that already.
    """
    await catalog.settled(WARM_SECONDS)
    settle()
    live = [f"{route.name}@{route.in_force}" for route in catalog.snapshot.routes.values() if route.in_force]
    for name, problem in catalog.problems.items():
        note(f"route {name}: {problem}")
    digest = catalog.snapshot.classifier_digest
    note(f"routes in force: {', '.join(live) or 'none'}; classifier: {digest[:16] if digest else 'none'}")
    kept = settings.decision_log
    if kept is not None and kept.text:
        note(f"classified texts are kept for {kept.days} days, in a file for each beside {kept.path.name}")
    with_key = "with" if settings.api_key or catalog.keys.asks else "without"
    workers = f", {settings.workers} workers" if settings.workers > 1 else ""
    for host, port in addresses[1:]:
        note(f"operators are answered on {_url(host, port)}/admin/v1 alone")
    note(f"serving on {_url(*addresses[0])}/v1 {with_key} a key{workers}")


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
