"""The contract every engine keeps; `tests/backend_contract.py` is its conformance suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from adapters.errors import NotFound
from adapters.probes import NO_PROBES, Probes
from adapters.types import AdapterVersion

from ..errors import InvalidRequest
from ..types import Call, EngineStatus, Reply


class Serving(Protocol):
    """What requests and operators ask of an engine that is up. A worker process has this much of it.

    All methods run on the gateway's event loop and must not block it: work goes to threads or processes.
    Methods may be called concurrently. Errors come from `router.errors`.
    """

    @property
    def base_id(self) -> str:
        """The id the base is served under. Constant."""

    @property
    def engines(self) -> Sequence[EngineStatus]:
        """The engine processes behind this backend, for operators. Never blocks."""

    async def ready(self) -> bool:
        """Whether the base can answer now. Never raises."""

    async def drain(self, name: str) -> None:
        """Give the engine `name` (of `engines`) no further calls; those running finish. Idempotent.

        Raises `adapters.errors.NotFound` for an unknown name, `InvalidRequest` where this engine cannot be drained.
        """

    async def resume(self, name: str) -> None:
        """Give a drained engine calls again. Idempotent; raises as `drain` does."""

    async def open(self, call: Call) -> Reply:
        """Begin to answer. Everything that can be refused is refused here, before the first byte:

        `InvalidRequest` (wrong or unsupported parameter, named; too long for the context),
        `AdapterUnavailable` (the version is not resident), `EngineOverloaded`, `EngineFailed`.
        An endpoint this engine does not serve is `InvalidRequest` with code `unsupported_endpoint`.
        Afterwards `reply.body` may raise `EngineFailed`. For a stream, the body ends with `data: [DONE]`
        (of `responses`: with the event `response.completed`, `response.incomplete` or `response.failed`).
        `model` in the answer is `call.engine_name`. Closing `reply.body` stops the work for this call
        within one decoding step.
        """


class Backend(Serving, Protocol):
    """An engine that serves one base and any number of adapter versions, with its life and what it holds."""

    @property
    def base_fingerprint(self) -> str | None:
        """The base's fingerprint, `None` where this engine cannot tell. Constant after `start`."""

    @property
    def capacity(self) -> int | None:
        """How many versions can be resident at once, `None` where only memory limits it."""

    async def start(self) -> None:
        """Bring the engine up; returns once the base can answer. Raises `EngineFailed`."""

    async def stop(self) -> None:
        """Stop taking calls, end running ones with `EngineFailed`, free everything. Idempotent."""

    async def load(self, version: AdapterVersion, folder: Path, probes: Probes = NO_PROBES) -> None:
        """Make `version` (files in `folder`, verified) resident, and prove that it is applied; `probes` may help.

        Afterwards calls for `version.engine_name` pay no load. Idempotent; runs beside traffic without
        disturbing it. Raises `AdapterUnavailable` (`NotApplied` where the proof fails) and leaves everything as it was.
        """

    async def unload(self, engine_name: str) -> None:
        """Forget a version nobody will ask for again; calls already running for it finish. Idempotent."""

    def is_resident(self, engine_name: str) -> bool:
        """Whether a call for `engine_name` would pay no load."""


def refuse_drain(own: str, name: str) -> NoReturn:
    """How a backend with one engine `own`, in the gateway's process, answers `drain` and `resume`."""
    if name != own:
        raise NotFound(f"no engine {name!r:.100}", hint="see `branchline engine list`")
    raise InvalidRequest(f"the engine {own!r} cannot be drained: it is the only one, stop the gateway instead")
