"""An S3 server of the test's own: moto's, a process that speaks the protocol on loopback. Skips where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec

import pytest

from tests.vllm_engine import free_port

START_SECONDS = 60.0
BUCKET = "adapters"


@dataclass(frozen=True)
class S3Server:
    """A server with an empty bucket; any key is good, unless it is `refusing_unknown_keys`."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client needs to find it and to be let in."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """One plain request, which the server does not ask a key for."""
        headers = {"content-type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=START_SECONDS) as response:
            content: bytes = response.read()
            return content

    def keys(self) -> list[str]:
        """The names of all objects in the bucket."""
        listing = self.call("GET", f"/{BUCKET}?list-type=2").decode()
        return [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]

    @contextmanager
    def refusing_unknown_keys(self) -> Iterator[None]:
        """Inside, only users that were made count, and none was."""
        self.call("POST", "/moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self.call("POST", "/moto-api/reset-auth", b"inf")


@contextmanager
def s3_server() -> Iterator[S3Server]:
    missing = [name for name in ("moto", "flask", "s3fs") if find_spec(name) is None]
    if missing:
        pytest.skip(f"no S3 server or client: {', '.join(missing)} not installed")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    server = S3Server(f"http://127.0.0.1:{port}", process)
    try:
        _wait_until_up(server)
        server.call("PUT", f"/{BUCKET}", b"")
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_until_up(server: S3Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError):
            server.call("GET", "/")
            return
        time.sleep(0.05)
    pytest.fail("moto's server did not start")
