"""How a gateway says that it serves, and how signals end it; the same for one process and for several."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import Callable

from adapters.output import note

from .catalog import Catalog
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


async def announce(catalog: Catalog, address: tuple[str, int], settings: Settings) -> None:
    """Say where the gateway listens, once what is live is warm, or after a while: it answers before that already."""
    await catalog.settled(WARM_SECONDS)
    host, port = address
    live = [f"{route.name}@{route.in_force}" for route in catalog.snapshot.routes.values() if route.in_force]
    for name, problem in catalog.problems.items():
        note(f"route {name}: {problem}")
    digest = catalog.snapshot.classifier_digest
    note(f"routes in force: {', '.join(live) or 'none'}; classifier: {digest[:16] if digest else 'none'}")
    kept = settings.decision_log
    if kept is not None and kept.text:
        note(f"classified texts are kept for {kept.days} days, in a file for each beside {kept.path.name}")
    shown = f"[{host}]" if ":" in host else host
    with_key = "with" if settings.api_key or catalog.keys.asks else "without"
    workers = f", {settings.workers} workers" if settings.workers > 1 else ""
    note(f"serving on http://{shown}:{port}/v1 {with_key} a key{workers}")
