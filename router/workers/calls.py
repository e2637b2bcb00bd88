"""Calls to an engine that lives in the parent, each over a pair of sockets of its own.

A worker makes the pair and hands one end to the parent over the socket both have had since the worker's start. So the
kernel's buffers hold back an engine that is faster than its reader, closing an end stops the engine's work, there is
no file that anybody could open, and nothing is left of a process that was killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import fields
from functools import partial

from adapters.errors import BranchlineError

from ..backends.base import Serving
from ..background import Background
from ..dispatch import close
from ..errors import EngineFailed, EngineOverloaded, EngineUnavailable
from ..types import Call, Reply
from .framing import frame, json_frame, read_frame
from .trip import error_document, error_from

MAX_HANDED = 64  # ends of sockets taken over at once
log = logging.getLogger("branchline.workers")


class CallServer:
    """The parent's side: answers the calls that one worker hands over through `handed`. Lives on one event loop."""

    def __init__(self, backend: Serving, handed: socket.socket) -> None:
        self._backend = backend
        self._handed = handed
        self._calls = Background()

    def start(self) -> None:
        self._handed.setblocking(False)
        asyncio.get_running_loop().add_reader(self._handed, self._take)

    async def stop(self) -> None:
        """End all its calls."""
        asyncio.get_running_loop().remove_reader(self._handed)
        self._handed.close()
        await self._calls.stop()

    def _take(self) -> None:
        try:
            said, ends, _, _ = socket.recv_fds(self._handed, MAX_HANDED, MAX_HANDED)
        except BlockingIOError:
            return
        except OSError as error:
            log.error("a call could not be taken over: %s", error.strerror)
            said, ends = b"", []
        for end in ends:
            call = socket.socket(fileno=end)
            self._calls.spawn(self._serve(call)).add_done_callback(partial(_close_unserved, call))
        if not said:
            asyncio.get_running_loop().remove_reader(self._handed)

    async def _serve(self, end: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=end)
        try:
            found = await read_frame(reader)
            if found is None:
                return
            answering = asyncio.ensure_future(self._answer(Call(**json.loads(found[1])), writer))
            gone = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                answering.cancel()
                await asyncio.gather(answering, gone, return_exceptions=True)
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await self._backend.open(call)
            try:
                writer.write(json_frame({"content_type": reply.content_type}))
                async for piece in reply.body:
                    writer.write(frame(b"B", piece))
                    await writer.drain()
                writer.write(frame(b"E"))
            finally:
                await close(reply.body)
        except ConnectionError:
            return
        except Exception as error:  # it is raised in the worker
            if not isinstance(error, BranchlineError):
                log.exception("the engine failed at %s", call.request_id)
            writer.write(json_frame(error_document(error), b"X"))
        with suppress(ConnectionError):
            await writer.drain()


class CallClient:
    """The worker's side. `open` keeps the contract of `Backend.open`."""

    def __init__(self, handing: socket.socket) -> None:
        self._handing = handing
        handing.setblocking(False)

    async def open(self, call: Call) -> Reply:
        reader, writer = await asyncio.open_unix_connection(sock=self._hand_over())
        try:
            writer.write(json_frame({field.name: getattr(call, field.name) for field in fields(Call)}))
            _, payload = await _expect(reader)
            return Reply(RemoteBody(reader, writer), json.loads(payload)["content_type"])
        except BaseException:
            writer.close()
            raise

    def _hand_over(self) -> socket.socket:
        mine, theirs = socket.socketpair()
        try:
            socket.send_fds(self._handing, [b"\0"], [theirs.fileno()])
        except BlockingIOError:
            mine.close()
            raise EngineOverloaded("more calls wait for the engine than it takes") from None
        except OSError as error:
            mine.close()
            raise EngineUnavailable(f"the engine cannot be reached: {os.strerror(error.errno or 0)}") from None
        finally:
            theirs.close()
        return mine


class RemoteBody(AsyncIterator[bytes]):
    """The bytes of an answer as they come. Closed or forgotten, it ends the engine's work."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __anext__(self) -> bytes:
        if self._writer.is_closing():
            raise StopAsyncIteration
        try:
            kind, payload = await _expect(self._reader)
        except BaseException:
            self._writer.close()
            raise
        if kind == b"B":
            return payload
        self._writer.close()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._writer.close()


def _close_unserved(end: socket.socket, serving: asyncio.Task[None]) -> None:
    """Cancelled before it began, a task closes nothing."""
    if serving.cancelled():
        end.close()


async def _expect(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next frame; raises the error that it carries, and `EngineFailed` where the parent broke off."""
    found = await read_frame(reader)
    if found is None:
        raise EngineFailed("the engine's process ended")
    if found[0] == b"X":
        raise error_from(json.loads(found[1]))
    return found
