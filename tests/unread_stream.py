"""An answer that has begun and cannot end: what a gateway that stops has to wait for, or to cut off."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from tests.gateway_process import GatewayProcess

DEADLINE = 60.0
LONG_TEXT = " ".join(["w" * 3700] * 2040)  # echoed, more than all buffers on the way to a client that does not read


@contextmanager
def unread_stream(gateway: GatewayProcess, key: str = "") -> Iterator[socket.socket]:
    """A streaming answer that has begun and cannot end, because nobody reads it yet."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": LONG_TEXT}], "stream": True}
    raw = json.dumps(body).encode()
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(DEADLINE)
        connection.connect(("127.0.0.1", port_of(gateway)))
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        )
        connection.sendall(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield connection


def port_of(gateway: GatewayProcess) -> int:
    return int(gateway.url.rpartition(":")[2])


def read_to_the_end(connection: socket.socket) -> bytes:
    """What is left of the answer, also where the connection is cut."""
    pieces: list[bytes] = []
    with suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)
