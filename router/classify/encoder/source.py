"""Where an encoder is: a folder in the Hugging Face layout, or a hub id whose snapshot is such a folder."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import EncoderUnavailable

FILES = ("*.json", "*.safetensors", "*/config.json")  # of a snapshot; everything else stays on the hub
NEEDED = ("config.json", "tokenizer.json", "*.safetensors")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_folder(source: str) -> Path:
    """The folder that `source` names. What the hub's cache holds is used as it is; only what it lacks is fetched.

    Raises `EncoderUnavailable` where there is neither such a folder nor a way to the hub.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise EncoderUnavailable(
            f"encoder {folder.name!r:.100} is no folder", hint="give the folder of a sentence encoder, or its hub id"
        )
    return _snapshot(source)


def source_name(source: str) -> str:
    """What an encoder is called: its hub id, or its folder's name, never a path."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def _snapshot(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise missing_package(error) from error
    try:
        try:
            found = Path(snapshot_download(hub_id, allow_patterns=list(FILES), local_files_only=True))
        except LocalEntryNotFoundError:
            found = None
        if found is None or _lacks(found):  # a download that was broken off, or another program's, leaves a part
            found = Path(snapshot_download(hub_id, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        raise EncoderUnavailable(
            f"encoder {hub_id!r:.100} is neither a folder nor in the hub's cache, and the hub did not give it"
            f" ({type(error).__name__})",
            hint="check the name and the network, or give a folder",
        ) from error
    if lacking := _lacks(found):  # without a network the hub's library hands out the part it has
        raise EncoderUnavailable(
            f"encoder {hub_id!r:.100} lacks {', '.join(lacking)} in the hub's cache, and the hub did not give them",
            hint="check the network, or give a sentence encoder that has them; weights in pickle files are not opened",
        )
    return found


def _lacks(folder: Path) -> list[str]:
    return [name for name in NEEDED if not any(path.is_file() for path in folder.glob(name))]


def missing_package(error: ImportError) -> EncoderUnavailable:
    return EncoderUnavailable(
        f"the encoder needs the package {error.name}", hint="install it: pip install 'branchline[encoder]'"
    )
