"""A stock vLLM into which tests put any adapter; adapters for it: whole, scaled, and with what their trainer saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from adapters.base import find_base
from adapters.probes import Probes, RecordedPrompt
from adapters.rows import Example, Message
from router.backends.vllm.client import EngineClient, FixedAddress
from router.backends.vllm.proof import Ask
from tests.tiny_model import make_adapter
from tests.vllm_engine import BASE_ID, POCKET_BASE, VllmEngine, vllm_engine
from trainer.data import encode
from trainer.model import load_adapter, load_base
from trainer.probe import take_probe

SECONDS = 120.0
TEXTS = (
    "Show the users older than 30",
    "List every order of last week",
    "How many rooms are free tomorrow?",
    "Book a table for two at eight",
    "A pattern for three digits and a dash",
    "Match lines that start with a hash",
    "Wer hat gestern bezahlt?",
    "hello",
)


@contextmanager
def mixed_engine(folder: Path, *words: str) -> Iterator[VllmEngine]:
    """vLLM without our resolver and guard; only that its base's answers stay the base's in a batch with adapters."""
    packages = folder / "packages"
    facts = packages / "skip_base_rows-0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: skip-base-rows\nVersion: 0\n", encoding="utf-8")
    entry = "[vllm.general_plugins]\nskip_base_rows = adapters.engine.base_rows:skip_base_rows\n"
    (facts / "entry_points.txt").write_text(entry, encoding="utf-8")
    with vllm_engine(
        folder / "log", "--max-cpu-loras", "32", *words, variables={"PYTHONPATH": str(packages)}
    ) as engine:
        yield engine


def put(engine: VllmEngine, name: str, folder: Path) -> str:
    """Make `folder` servable as `name`."""
    status, answer = engine.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
    assert status == 200, answer
    return name


@asynccontextmanager
async def asking(engine: VllmEngine) -> AsyncIterator[Ask]:
    """Requests as the gateway sends them."""
    client = EngineClient(FixedAddress(engine.url, engine.key), BASE_ID)

    async def ask(path: str, body: Mapping[str, object]) -> dict[str, Any]:
        return await client.ask(path, body, seconds=SECONDS, request_id="test")

    try:
        yield ask
    finally:
        await client.close()


def pocket_adapter(folder: Path, *, seed: int) -> Path:
    """A strong random adapter of the pocket base: other answers from the first tokens on."""
    return make_adapter(POCKET_BASE, folder, seed=seed, scale=0.2)


def scaled(source: Path, folder: Path, factor: float) -> Path:
    """`source` with its update multiplied by `factor`."""
    folder.mkdir()
    weights = load_file(source / "adapter_model.safetensors")
    changed = {name: value * np.float32(factor) if "lora_B" in name else value for name, value in weights.items()}
    save_file(changed, folder / "adapter_model.safetensors")
    shutil.copy(source / "adapter_config.json", folder)
    return folder


def recorded_by_trainer(adapter: Path) -> Probes:
    """The texts, and what the trainer records of `adapter` on them: float32, PEFT, no vLLM."""
    loaded = load_base(find_base(str(POCKET_BASE)))
    examples = [Example((Message("user", text),), "yes") for text in TEXTS]
    encoded = encode(loaded.tokenizer, examples, loaded.end_tokens)
    probe: Any = json.loads(json.dumps(take_probe(load_adapter(loaded, adapter), encoded, loaded.pad_token)))
    names = ("prompt_tokens", "tokens", "logprobs", "base_logprobs")
    return Probes(TEXTS, tuple(RecordedPrompt(*(tuple(one[name]) for name in names)) for one in probe["prompts"]))
