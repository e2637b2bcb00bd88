"""A store of real adapters on the pocket base whose answers all differ, and ways to damage it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adapters.base import Base, find_base
from adapters.check import CONFIG_FILE, FILES, WEIGHTS_FILE
from adapters.manifests import digest_of_files
from adapters.remote import Remote
from adapters.rows import sha256_file
from adapters.store import Store
from adapters.tensors import read_header
from adapters.types import Manifest, RouteName
from tests.adapter_folders import tensor_file
from tests.vllm_engine import POCKET_BASE

TARGET = "q_proj"
Tensors = dict[str, npt.NDArray[np.float32]]
SQL = RouteName("sql")


class EngineStore:
    """Publishes straight into a store: an engine knows no registry, and takes the number in a name as it comes."""

    def __init__(self, root: Path, remote: str | None = None) -> None:
        self.store = Store(root, Remote(remote) if remote else None)
        self.base = find_base(str(POCKET_BASE))

    def publish(self, seed: int, *, rank: int = 4, **changes: str) -> str:
        """Publish a random adapter of this rank and return its engine name; `changes` go over its manifest."""
        return self.publish_tensors(seed, random_tensors(self.base, seed, rank), {"r": rank}, **changes)

    def publish_tensors(self, number: int, tensors: Tensors, config: Mapping[str, object], **changes: str) -> str:
        """Publish these tensors as version `number` with `config` over a plain adapter's."""
        with tempfile.TemporaryDirectory() as made:
            write_adapter(Path(made), self.base, tensors, config)
            with self.store.staged(Path(made)) as staged:
                manifest = replace(_manifest(staged, self.base), **changes)  # type: ignore[arg-type]
                self.store.publish(SQL, staged, manifest)
        return f"{SQL}@{number}.{manifest.digest[:16]}"

    def folder(self, name: str) -> Path:
        return self.store.folder(SQL, self.store.find(SQL, name.partition(".")[2]))


def random_tensors(base: Base, seed: int, rank: int) -> Tensors:
    """A and B for every `q_proj` of `base`, strong enough to move every log-probability."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for shard in base.folder.glob("*.safetensors"):
        for name, entry in read_header(shard).items():
            if name.endswith(f"{TARGET}.weight"):
                rows, columns = entry.shape
                module = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{module}.lora_A.weight"] = random.normal(0, 0.2, (rank, columns)).astype(np.float32)
                tensors[f"{module}.lora_B.weight"] = random.normal(0, 0.2, (rows, rank)).astype(np.float32)
    return tensors


def write_adapter(folder: Path, base: Base, tensors: Tensors, config: Mapping[str, object]) -> None:
    """A PEFT folder on `base`."""
    plain = {"peft_type": "LORA", "lora_alpha": 4, "target_modules": [TARGET], "bias": "none"}
    document = {**plain, "base_model_name_or_path": base.id, **config}
    (folder / WEIGHTS_FILE).write_bytes(tensor_file(tensors))
    (folder / CONFIG_FILE).write_text(json.dumps(document))


def swap(folder: Path, other: Path) -> None:
    """Put another version's weights in place of these, in the same inode, as a careless `cp` does."""
    (folder / WEIGHTS_FILE).chmod(0o600)
    (folder / WEIGHTS_FILE).write_bytes((other / WEIGHTS_FILE).read_bytes())


def truncate(folder: Path, other: Path) -> None:
    """Cut the weights in half."""
    (folder / WEIGHTS_FILE).chmod(0o600)
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[: len(whole) // 2])


def delete(folder: Path, other: Path) -> None:
    """Remove the whole folder."""
    shutil.rmtree(folder)


DAMAGES = (swap, truncate, delete)


def _manifest(staged: Path, base: Base) -> Manifest:
    files = {name: sha256_file(staged / name) for name in FILES}
    return Manifest(
        digest=digest_of_files(files),
        files=files,
        size_bytes=sum((staged / name).stat().st_size for name in FILES),
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        rank=4,
        alpha=4.0,
        targets=(TARGET,),
    )
