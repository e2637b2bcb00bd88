"""An engine that answers at once with fixed bytes: what stands behind every gateway that is measured.

    python -m bench.gateway_upstream --port PORT

A process of its own. Events of a stream are written one by one, as an engine's tokens come.
`GET /behave?first_ms=50&event_ms=2` makes it wait before an answer and between events, until it is told otherwise;
`GET /count` says how many inference requests have come. To Branchline it is a vLLM with the plugin that holds every
version, to other routers a healthy worker.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl

from .gateway_answers import FACTS, NOTHING, STREAM, WHOLE, proof, response


@dataclass(slots=True)
class Behaviour:
    """Seconds before the first byte of an answer, and between the events of a stream; `asked` counts requests."""

    first: float = 0.0
    event: float = 0.0
    asked: int = 0


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    gc.freeze()
    asyncio.run(serve(parser.parse_args().port))


async def serve(port: int) -> None:
    """Listen on loopback, for ever."""
    behaviour = Behaviour()
    server = await asyncio.get_running_loop().create_server(
        lambda: Upstream(behaviour), "127.0.0.1", port, backlog=2048
    )
    await server.serve_forever()


class Upstream(asyncio.Protocol):
    """One connection: requests with a content-length, the next one only after the answer."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._head = 0
        self._needed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if not self._needed:
            self._head = received.find(b"\r\n\r\n") + 4
            if self._head < 4:
                return
            self._needed = self._head + _content_length(bytes(received[: self._head]))
        if len(received) >= self._needed:
            request, self._received, self._needed = bytes(received), bytearray(), 0
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if not request.startswith(b"POST"):
            self._transport.write(self._fact(request.split(b" ", 2)[1].decode()))
        elif self._behaviour.first:
            self._loop.call_later(self._behaviour.first, self._infer, request, self._head)
        else:
            self._infer(request, self._head)

    def _infer(self, request: bytes, head: int) -> None:
        self._behaviour.asked += 1
        if b'"stream":true' in request or b'"stream": true' in request:
            self._write_event(0)
        elif b'"return_tokens_as_token_ids":true' in request:  # only Branchline's proof asks for that
            self._transport.write(proof(request[head:]))
        else:
            self._transport.write(WHOLE)

    def _write_event(self, number: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(STREAM[number])
        if number + 1 == len(STREAM):
            return
        if self._behaviour.event:
            self._loop.call_later(self._behaviour.event, self._write_event, number + 1)
        else:
            self._loop.call_soon(self._write_event, number + 1)

    def _fact(self, target: str) -> bytes:
        path, _, query = target.partition("?")
        if path == "/count":
            return response(str(self._behaviour.asked))
        if path == "/behave":
            asked = dict(parse_qsl(query))
            self._behaviour.first, self._behaviour.event = (float(asked[k]) / 1000 for k in ("first_ms", "event_ms"))
        return FACTS.get(path, NOTHING)


def _content_length(head: bytes) -> int:
    """0 where none is given."""
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    return int(lower[at + 17 : lower.index(b"\r\n", at + 17)]) if at >= 0 else 0


if __name__ == "__main__":
    main()
