"""`branchline serve`: the one place that builds a gateway from its parts."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from adapters.home import Home, home_options
from adapters.keyring import keys_of
from adapters.output import note
from adapters.registry import Registry

from .admin_api.surface import Admin
from .app import Parts, create_app
from .auth import Gatekeeper
from .backends import make_backend
from .backends.base import Backend
from .catalog import Catalog
from .classify.encoder.layout import read_layout
from .commands.encoder_flags import encoder_option, precision_option
from .commands.engine_flags import engine_flags
from .decision_log import DAYS, DecisionLog, keep_swept
from .dispatch import Dispatcher
from .errors import ConfigInvalid
from .following.opening import open_classifier, open_own_encoder
from .http.feedback import Feedback
from .http.server import GatewayServer, Listening
from .keys.principal import KeyRing
from .lifecycle import addresses_of, announce, gateway_id, stop_on_signals
from .settings import MAX_WORKERS, Settings, read_settings
from .telemetry import Telemetry

BACKLOG = 2048
OPEN_FILES = 65_536  # two for each request; the usual 1024 let one busy client lock out everybody else


@click.command()
@engine_flags
@click.option("--host", default="127.0.0.1", show_default=True, help="Beyond loopback there must be a key.")
@click.option("--port", default=8000, show_default=True, help="0 takes a free port.")
@click.option("--allow-unreleased", is_flag=True, help="Let every key ask for versions that were never live.")
@click.option("--decision-log", type=click.Path(path_type=Path), help="Append one JSON line per request, no prompts.")
@click.option("--decision-log-text", is_flag=True, help="Add the classified texts, in a file for each day.")
@click.option("--decision-log-days", type=int, help=f"Delete files with texts after so many days [default: {DAYS}].")
@encoder_option
@precision_option("--encoder-precision")
@click.option("--max-body-mb", default=8, show_default=True, help="Largest request body.")
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=1,
    show_default=True,
    help="Processes that answer requests, beside one that has the engine.",
)
@click.option("--admin-port", type=int, help="Answer operators on this port, and nowhere else.")
@click.option("--admin-host", help="Where that port listens. [default: as --host]")
@click.option(
    "--lora-folder",
    "lora_folders",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Admins may load adapters from under it over HTTP; several times.",
)
@home_options
def serve(home: Home, engine: dict[str, object], **flags: Any) -> None:
    """Start a gateway: an OpenAI-compatible server that routes each request to an adapter or to the base."""
    settings = read_settings(home, os.environ, engine=engine, **flags)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    _allow_open_files()
    if settings.encoder is not None:
        read_layout(settings.encoder.source)  # what is wrong with it is said before anything expensive begins
    registry = Registry.open(home.registry_url)
    try:
        gatekeeper = Gatekeeper.for_bind(settings.host, settings.api_key, KeyRing().updated(keys_of(registry)))
        with ExitStack() as listening:
            bound = [listening.enter_context(listen(settings.host, settings.port))]
            if settings.admin.port is not None:
                bound.append(listening.enter_context(listen(settings.admin.host, settings.admin.port)))
            backend = make_backend(settings.engine, home, registry.versions(), say=note)
            if settings.workers > 1:
                from .workers.gateway import run_parent

                asyncio.run(run_parent(settings, gatekeeper, registry, backend, bound))
            else:
                asyncio.run(run_gateway(settings, gatekeeper, registry, backend, bound))
    finally:
        registry.close()


def _allow_open_files() -> None:
    """As many connections as this user may have, at most `OPEN_FILES` files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int) -> socket.socket:
    """Bind before anything expensive; raises `ConfigInvalid` with one clear line where that is impossible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only then; without it each answer waits 40 ms for an ACK.
    bound = Listening(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.begin(BACKLOG)  # only a listening socket keeps a second server off its port
    except OSError as error:
        bound.close()
        raise ConfigInvalid(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="choose another port, or stop what listens there",
        ) from error
    return bound


async def run_gateway(
    settings: Settings, gatekeeper: Gatekeeper, registry: Registry, engine: Backend, bound: Sequence[socket.socket]
) -> None:
    """Engine up, catalog following, then HTTP until SIGINT or SIGTERM; running answers get `GRACE_SECONDS`.

    The second socket of `bound`, if there is one, is for operators.
    """
    kept = settings.decision_log
    decision_log = DecisionLog(kept.path, text=kept.text, days=kept.days) if kept else None
    telemetry = Telemetry(decision_log)
    feedback = Feedback(settings.home.registry_url, kept.path if kept and kept.text else None)
    store = settings.home.open_store()
    catalog = Catalog(
        registry,
        store,
        engine,
        open_classifier,
        gateway_id(),
        find_encoder=partial(open_own_encoder, settings),
        on_load=telemetry.loaded,
    )
    dispatcher = Dispatcher(catalog, engine, telemetry, allow_unreleased=settings.allow_unreleased)
    gatekeeper = gatekeeper.following(lambda: catalog.keys)
    admin = Admin.of(settings, bound)
    limit = settings.max_body_bytes
    app = create_app(Parts(catalog, engine, dispatcher, gatekeeper, telemetry, limit, feedback, admin=admin))
    server = GatewayServer(app)

    async def serving() -> None:
        note(f"starting the {settings.engine.backend} engine on base {engine.base_id}")
        await engine.start()
        await catalog.start()
        beside = [asyncio.create_task(announce(catalog, addresses_of(bound), settings))]
        if decision_log is not None:
            beside.append(asyncio.create_task(keep_swept(decision_log, registry)))
        await server.serve(list(bound))
        for task in beside:
            task.cancel()

    work = asyncio.create_task(serving())
    stop_on_signals(work, server.drain)
    try:
        with suppress(asyncio.CancelledError):
            await work
    finally:
        await catalog.stop()
        await engine.stop()
        feedback.close()
        admin.desk.close()
        telemetry.close()
