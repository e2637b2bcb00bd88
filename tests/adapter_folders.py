"""Bases, PEFT folders and evidence made of bytes: numpy and hand-written safetensors, no torch, milliseconds."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters.base import Base, find_base
from adapters.check import CONFIG_FILE, WEIGHTS_FILE
from adapters.evidence import Evaluation, Evidence, Item, RoutedTo, Score

Array = npt.NDArray[Any]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
HIDDEN, OUT, RANK = 8, 6, 2
MODULES = tuple(f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj"))
_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int32": "I32", "float64": "F64"}


def container(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header (bytes are taken as they are) and this data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor_file(tensors: Mapping[str, Array]) -> bytes:
    """A well-formed safetensors file; uint16 arrays are bf16 bit patterns."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        content = array.tobytes()
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    return container(header, data)


def make_base(folder: Path, *, seed: int = 0) -> Base:
    """A model folder with the linear layers of `MODULES`, an embedding and a chat template."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": HIDDEN}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {"model.embed_tokens.weight": _normal(random, 16, HIDDEN)}
    for module in MODULES:
        tensors[f"{module}.weight"] = _normal(random, HIDDEN if module.endswith("q_proj") else OUT, HIDDEN)
    (folder / "model.safetensors").write_bytes(tensor_file(tensors))
    return find_base(str(folder))


def adapter_config(base_name: str, **changes: object) -> dict[str, object]:
    """What PEFT writes for plain LoRA, with `changes` over it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": RANK,
        "lora_alpha": 4,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "use_dora": False,
        **changes,
    }


def adapter_tensors(*, seed: int = 1, rank: int = RANK, dtype: str = "float32") -> dict[str, Array]:
    """A and B for every module of the base, as PEFT names them."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for module in MODULES:
        out = HIDDEN if module.endswith("q_proj") else OUT
        tensors[weight(module, "A")] = _normal(random, rank, HIDDEN).astype(dtype)
        tensors[weight(module, "B")] = _normal(random, out, rank).astype(dtype)
    return tensors


def weight(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def bf16(values: Array) -> Array:
    """The bit patterns of `values` cut to bf16."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def make_adapter(
    folder: Path, base_name: str, *, tensors: Mapping[str, Array] | None = None, seed: int = 1, **changes: Any
) -> Path:
    """A PEFT folder that passes; `changes` go over its config, `tensors` replace its weights."""
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps(adapter_config(base_name, **changes)))
    (folder / WEIGHTS_FILE).write_bytes(tensor_file(adapter_tensors(seed=seed) if tensors is None else tensors))
    return folder


def evaluation(
    name: str = "target",
    *,
    n: int = 60,
    base: float = 0.0,
    adapter: float = 1.0,
    rise: float = 0.0,
    routed_to: RoutedTo | None = None,
    file: str = "f",
) -> Evaluation:
    """`n` items that all score `base` and `adapter`; the adapter's NLL is `rise` over the base's."""
    items = tuple(
        Item(f"row-{i}", Score(base, 1.0, 5), Score(adapter, 1.0 + rise, 5), routed_to=routed_to) for i in range(n)
    )
    return Evaluation(name, (file * 64)[:64], "exact_match", items)


def make_evidence(weights_digest: str, base_fingerprint: str, **changes: Any) -> Evidence:
    """Evidence that passes the default policy: a sure gain, and one guardrail that does not move."""
    plain = Evidence(
        weights_digest,
        base_fingerprint,
        created="2026-01-01T00:00:00+00:00",
        target=evaluation(file="a"),
        guardrails=(evaluation("general", base=0.5, adapter=0.5, file="b"),),
    )
    return replace(plain, **changes)


def _normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype("<f4")


def memory_folder() -> Path | None:
    """Where files lie in memory, for tests that write very often; `None` (the usual place) where there is none."""
    folder = Path("/dev/shm")  # noqa: S108  # only temporary folders of our own are made in it
    return folder if folder.is_dir() and os.access(folder, os.W_OK) else None
