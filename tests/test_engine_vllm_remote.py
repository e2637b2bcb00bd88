"""A real vLLM on a remote store, killed: its copies are there until the next engine starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.engine.copies import Copies, copies_root
from adapters.remote import Remote
from tests.engine_store import SQL, EngineStore
from tests.vllm_engine import needs_vllm, vllm_engine

pytest.importorskip("fsspec")


@needs_vllm
def test_an_engine_serves_from_a_remote_store_and_the_next_start_clears_up_after_its_death(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    stored = EngineStore(tmp_path / "publisher", url)
    good, bad = stored.publish(1), stored.publish(2)
    Remote(url).put(b"damaged", f"{SQL}/{stored.folder(bad).name}/adapter_model.safetensors")
    variables = {"BRANCHLINE_ENGINE_COPIES": str(tmp_path)}
    with vllm_engine(tmp_path / "log", store=url, variables=variables) as engine:
        assert engine.chat(good, "hello")["model"] == good
        body = {"model": bad, "messages": [{"role": "user", "content": "hello"}]}
        assert engine.post("/v1/chat/completions", body)[0] == 404
        facts = json.loads(engine.get("/branchline")[1])
        assert (facts["store"], facts["copies"]) == ("file", 1)
        engine.kill()
    root = copies_root(tmp_path)
    (dead,) = root.glob("engine-*")
    mine = Copies(root).take(stored.store, SQL, stored.store.manifest(SQL, stored.folder(good).name))
    assert list(root.glob("engine-*")) == [mine.parent]
    assert not dead.exists()
