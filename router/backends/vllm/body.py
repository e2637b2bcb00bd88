"""The bytes of an answer on their way through, never parsed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from ...errors import EngineFailed
from .client import Begun

Ended = Callable[[bool], None]  # whether the engine broke off


class Body(AsyncIterator[bytes]):
    """The rest of an answer that has begun. `heard` is called for every piece, `ended` once, whatever ends it.

    Closing it closes the connection, by which vLLM learns that it shall stop; so does dropping it unread.
    """

    def __init__(self, begun: Begun, heard: Callable[[], None], ended: Ended) -> None:
        self._first = begun.first
        self._response = begun.response
        self._heard = heard
        self._ended: Ended | None = ended
        self._failure: EngineFailed | None = None
        if self._response is None:
            self._end()

    async def __anext__(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._response is None:
            raise StopAsyncIteration
        try:
            piece = await self._response.readany()
        except asyncio.CancelledError:
            self._close()
            raise
        except EngineFailed:  # `fail` was called while this waited
            raise
        except Exception as error:
            self._failure = EngineFailed("the engine's answer broke off")
            self._close(broke_off=True)
            raise self._failure from error
        if not piece:
            self._close()
            raise StopAsyncIteration
        self._heard()
        return piece

    def fail(self, error: EngineFailed) -> None:
        """End the answer with `error`, for whoever reads it now or later. Nothing where it has ended."""
        if self._response is None:
            return
        self._failure = error
        self._response.fail(error)
        self._close()

    async def aclose(self) -> None:
        self._first = b""
        self._close()

    def __del__(self) -> None:
        if self._ended is not None:
            self._close()

    def _close(self, *, broke_off: bool = False) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()
        self._end(broke_off)

    def _end(self, broke_off: bool = False) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(broke_off)
