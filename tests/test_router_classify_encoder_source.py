"""What the hub's cache holds only a part of is completed; the hub is a server on this machine that talks as it does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from router.classify.encoder.layout import read_layout
from router.errors import EncoderUnavailable
from tests.encoder_folders import write_layout

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """One model, `acme/tiny`, with the files that `files` names."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        content, kind = self._find(path), "application/json" if path.startswith("/api/") else "application/octet-stream"
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_etag(content or b"")}"')
        self.end_headers()
        if self.command == "GET" and content:
            self.wfile.write(content)

    def _find(self, path: str) -> bytes | None:
        if path == "/api/models/acme/tiny/revision/main":
            return json.dumps({"id": "acme/tiny", "sha": COMMIT, "siblings": []}).encode()
        if path == f"/api/models/acme/tiny/tree/{COMMIT}":
            return json.dumps(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                    for name, content in self.files.items()
                ]
            ).encode()
        return self.files.get(path.removeprefix(f"/acme/tiny/resolve/{COMMIT}/"))


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HF_XET_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub" / "models--acme--tiny"


@pytest.fixture
def hub(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """On the network, with every file of an encoder."""
    folder = write_layout(tmp_path / "whole")
    Hub.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def keep_a_part(hub_cache: Path, *names: str) -> None:
    """As another program leaves it that took these files alone."""
    whole, snapshot = write_layout(hub_cache.parent.parent / "part"), hub_cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (hub_cache / "refs").mkdir()
    (hub_cache / "refs" / "main").write_text(COMMIT)
    for name in names:
        (snapshot / name).write_bytes((whole / name).read_bytes())


@pytest.mark.parametrize("names", [(), ("config.json",), ("config.json", "tokenizer.json", "modules.json")])
def test_a_part_in_the_hubs_cache_is_completed(
    hub: type[Hub], hub_cache: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    if names:
        keep_a_part(hub_cache, *names)
    found = read_layout("acme/tiny")
    assert found.digest == read_layout(str(tmp_path / "whole")).digest
    before = list(hub.asked)
    assert read_layout("acme/tiny").digest == found.digest
    assert hub.asked == before  # what is whole is used as it is


def test_without_a_network_a_part_says_what_it_lacks(hub_cache: Path) -> None:
    keep_a_part(hub_cache, "config.json")
    with pytest.raises(
        EncoderUnavailable, match=r"'acme/tiny' lacks tokenizer\.json, \*\.safetensors in the hub's"
    ) as refused:
        read_layout("acme/tiny")
    assert "network" in refused.value.hint


def test_without_a_network_a_whole_one_is_read(hub_cache: Path) -> None:
    keep_a_part(hub_cache, "config.json", "tokenizer.json", "model.safetensors")
    assert read_layout("acme/tiny").dimension == 32


def test_a_model_that_the_hub_has_only_as_a_pickle_is_refused(hub: type[Hub]) -> None:
    hub.files = {name: content for name, content in hub.files.items() if name != "model.safetensors"}
    with pytest.raises(EncoderUnavailable, match=r"lacks \*\.safetensors") as refused:
        read_layout("acme/tiny")
    assert "pickle" in refused.value.hint
