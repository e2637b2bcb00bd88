"""The base model as the control plane sees it: where its folder is, and its fingerprint.

The fingerprint is a digest of config, tokenizer, chat template, safetensors headers and a fixed 64 KB sample
of each shard, so that a different base is told apart without reading gigabytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import BadInput, NotFound
from .rows import sha256_json

SAMPLE_BYTES = 64 * 1024
MAX_HEADER_BYTES = 100 * 1024 * 1024
_TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on disk. `id` is the name it is served under: for a folder, the folder's name."""

    id: str
    folder: Path
    fingerprint: str
    chat_template_digest: str | None


def find_base(name: str, *, cache: Path | None = None) -> Base:
    """Open the base `name`: a folder, or a hub id that is already in the local hub cache.

    Nothing is downloaded. `cache` is a JSON file that remembers fingerprints by path, size and mtime.
    Raises `NotFound` where there is no such folder and `BadInput` where it holds no safetensors model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        base_id = folder.name
    else:
        folder, base_id = _cached_snapshot(name), name
    return Base(base_id, folder, _fingerprint(folder, cache), _template_digest(folder))


def _cached_snapshot(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise NotFound(f"no base folder {name!r}", hint="give a folder, or install the [serve] extra") from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotFound(
            f"base {name!r} is neither a folder nor in the local hub cache",
            hint="check the path, or download it once with `hf download`",
        ) from error


def _fingerprint(folder: Path, cache: Path | None) -> str:
    shards = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not shards:
        raise BadInput(
            f"{folder.name} is not a model folder: expected config.json and *.safetensors",
            hint="convert the weights to safetensors",
        )
    files = [folder / name for name in _TEXT_FILES if (folder / name).is_file()] + shards
    key = sha256_json([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    known = _read_cache(cache)
    if key not in known:
        known[key] = sha256_json({file.name: _digest_of(file) for file in files})
        _write_cache(cache, known)
    return known[key]


def _digest_of(file: Path) -> str:
    if file.suffix != ".safetensors":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    size = file.stat().st_size
    with file.open("rb") as shard:
        prefix = shard.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise BadInput(f"{file.name} is not a safetensors file", hint="download the base again")
        digest = hashlib.sha256(prefix + shard.read(length))
        shard.seek(8 + length + max(0, size - 8 - length - SAMPLE_BYTES) // 2)
        digest.update(shard.read(SAMPLE_BYTES))
    digest.update(size.to_bytes(8, "little"))
    return digest.hexdigest()


def _template_digest(folder: Path) -> str | None:
    """Digest of the chat template, wherever this tokenizer keeps it."""
    return template_digest(read_chat_template(folder))


def template_digest(template: str | None) -> str | None:
    """Digest of a template's text; `None` stays `None`."""
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a model or adapter folder, `None` where it brings none; raises `BadInput`."""
    file = folder / "chat_template.jinja"
    config = folder / "tokenizer_config.json"
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
        value = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        template = value.get("chat_template")
        if isinstance(template, list):  # several named ones: a request without a name gets the default
            template = {one["name"]: one["template"] for one in template}.get("default")
        return template if isinstance(template, str) and template.encode() else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise BadInput(
            f"the chat template of {folder.name} cannot be read ({error})", hint="mend or remove the template's file"
        ) from error


def _read_cache(cache: Path | None) -> dict[str, str]:
    try:
        value = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
    except (OSError, ValueError):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def _write_cache(cache: Path | None, known: dict[str, str]) -> None:
    if cache is None:
        return
    aside = cache.with_suffix(".tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside.write_text(json.dumps(known), encoding="utf-8")
        aside.replace(cache)
    except OSError:
        return  # a cache that cannot be written only costs time
