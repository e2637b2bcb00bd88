"""Is this PEFT folder loadable and safe? Every problem at once, before a byte of it is trusted.

Only `adapter_config.json` and `adapter_model.safetensors` are taken; other files are listed and left behind.
The rules are those vLLM and PEFT serve plain LoRA by.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .base import Base, read_chat_template, template_digest
from .check_config import config_problems
from .check_weights import weight_problems
from .errors import BadAdapter, BadInput
from .tensors import TensorEntry, read_header

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE)
MAX_CONFIG_BYTES = 1024 * 1024
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine behind the store accepts: vLLM's `max_lora_rank`, and a size in bytes."""

    max_lora_rank: int = 64
    max_bytes: int = 16 * 1024**3


@dataclass(frozen=True, slots=True)
class Checked:
    """The facts of a folder that passed. `notes` are worth showing and no reason to refuse."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    notes: tuple[str, ...]


def check_folder(
    folder: Path, base: Base, *, limits: Limits, base_is_same: str | None = None, source: Path | None = None
) -> Checked:
    """Check a PEFT folder against `base`; raises `BadAdapter` listing every problem.

    `source` is where a copied folder came from: it names the folder in messages, and its chat template is compared.
    `base_is_same` is the operator's reason to accept an adapter that names another base.
    """
    source = source or folder
    problems = file_problems(folder, limits)
    notes: list[str] = []
    config = _read_config(folder / CONFIG_FILE, problems)
    entries = _read_entries(folder / WEIGHTS_FILE, problems)
    if config is not None:
        problems += config_problems(config, base, limits.max_lora_rank, base_is_same, notes)
    problems += _template_problems(source, base)
    modules: Mapping[str, int] = {}
    if entries is not None:
        modules, found = weight_problems(folder / WEIGHTS_FILE, entries, config, base, limits.max_lora_rank, notes)
        problems += found
    if problems:
        raise BadAdapter(
            f"{source.resolve().name} cannot be served, {len(problems)} problem{'s' if len(problems) > 1 else ''}: "
            + "; ".join(problems),
            hint="mend the folder or export the adapter again as plain LoRA",
            problems=problems,
        )
    alpha = (config or {}).get("lora_alpha", 0)
    return Checked(
        rank=max(modules.values(), default=0),
        alpha=float(alpha) if isinstance(alpha, (int, float)) else 0.0,
        targets=tuple(sorted(modules)),
        notes=tuple(notes),
    )


def left_behind(folder: Path) -> list[str]:
    """The names in `folder` that publishing does not take."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in FILES)


def file_problems(folder: Path, limits: Limits) -> list[str]:
    """Missing files, links, special files and sizes: what can be told without opening anything."""
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    problems = [_one_file_problem(folder, name, limits) for name in FILES]
    if not (folder / WEIGHTS_FILE).exists():
        pickles = [name for name in _PICKLES if (folder / name).exists()]
        problems += [f"{name} is a pickle and is never opened; save with safe_serialization=True" for name in pickles]
    return [problem for problem in problems if problem]


def _one_file_problem(folder: Path, name: str, limits: Limits) -> str | None:
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            return f"{name} is a link that leaves the folder; copy the file itself"
        status = path.stat()
    except (OSError, RuntimeError) as error:
        return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name} cannot be read: {error}"
    if not stat.S_ISREG(status.st_mode):
        return f"{name} is not a regular file"
    limit = MAX_CONFIG_BYTES if name == CONFIG_FILE else limits.max_bytes
    return f"{name} has {status.st_size} bytes, the limit is {limit}" if status.st_size > limit else None


def _readable(path: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(path.parent.resolve())


def _read_config(path: Path, problems: list[str]) -> Mapping[str, object] | None:
    if not _readable(path) or path.stat().st_size > MAX_CONFIG_BYTES:
        return None
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        problems.append(f"{CONFIG_FILE} is not JSON ({error})")
        return None
    if not isinstance(value, dict):
        problems.append(f"{CONFIG_FILE} is not a JSON object")
        return None
    return value


def _read_entries(path: Path, problems: list[str]) -> Mapping[str, TensorEntry] | None:
    if not _readable(path):
        return None
    try:
        return read_header(path)
    except (ValueError, OSError) as error:
        problems.append(f"{WEIGHTS_FILE}: {error}")
        return None


def _template_problems(folder: Path, base: Base) -> list[str]:
    files = [folder / name for name in ("chat_template.jinja", "tokenizer_config.json")]
    if not folder.is_dir() or any(file.exists() and not _readable(file) for file in files):
        return []
    if any(file.exists() and file.stat().st_size > MAX_CONFIG_BYTES for file in files):
        return ["the folder's chat template or tokenizer config is too large to compare with the base's"]
    try:
        brought = template_digest(read_chat_template(folder))
    except BadInput as error:
        return [error.message]
    if brought is None or brought == base.chat_template_digest:
        return []
    return ["the folder brings a chat template that differs from the base's; engines would use the base's"]
