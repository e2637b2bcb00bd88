"""A random but real PEFT folder on the quickstart's base: for measurements in which the weights do not matter."""

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapters.base import Base, find_base
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.store import Store
from adapters.tensors import read_header

BASE = Path(__file__).parents[1] / "examples" / "quickstart" / "base"
RANK = 4
TARGET = "q_proj"


def publish_random_adapter(registry: Registry, store: Store, route: str, *, seed: int = 0) -> None:
    """Publish a rank-4 adapter on every `q_proj` of the base as the next version of `route`."""
    base = find_base(str(BASE))
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), base, seed)
        publish_folder(registry, store, route, Path(folder), base)


def write_adapter(folder: Path, base: Base, seed: int) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    random = np.random.default_rng(seed)
    weights = {}
    for shard in base.folder.glob("*.safetensors"):
        for name, entry in read_header(shard).items():
            if name.endswith(f"{TARGET}.weight"):
                rows, columns = entry.shape
                prefix = f"base_model.model.{name.removesuffix('.weight')}"
                weights[f"{prefix}.lora_A.weight"] = random.normal(0, 0.02, (RANK, columns)).astype(np.float32)
                weights[f"{prefix}.lora_B.weight"] = random.normal(0, 0.02, (rows, RANK)).astype(np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.id,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [TARGET],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
