"""A tuned encoder as one file, which the store keeps beside the classifier that was fitted with it.

A zip archive without compression: the folder under its own name. What comes out of one is trusted for nothing: who
unpacks it compares the folder's digest with the one the classifier names.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from adapters.files import make_folder

from ...errors import EncoderUnavailable
from .source import FILES

PACKED = "encoder.zip"


def pack_encoder(folder: Path, target: Path) -> None:
    """Write what makes up the encoder in `folder`; the same folder gives the same bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
            with path.open("rb") as content, archive.open(entry, "w", force_zip64=True) as packed:
                shutil.copyfileobj(content, packed)


def unpack_encoder(packed: Path, target: Path) -> Path:
    """The encoder's folder, unpacked below `target`. Raises `EncoderUnavailable` for what was not packed so."""
    try:
        with zipfile.ZipFile(packed) as archive:
            entries = archive.infolist()
            if problem := _problem(entries):
                raise EncoderUnavailable(f"the stored encoder cannot be used: {problem}", hint=_HINT)
            for entry in entries:
                make_folder((target / entry.filename).parent)
                with archive.open(entry) as content, (target / entry.filename).open("xb") as file:
                    shutil.copyfileobj(content, file)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise EncoderUnavailable(f"the stored encoder is no archive ({error!s:.100})", hint=_HINT) from error
    return target / entries[0].filename.partition("/")[0]


_HINT = "fit the classifier again where its encoder is, with --finetune or --student"


def _problem(entries: list[zipfile.ZipInfo]) -> str | None:
    if odd := next((one.filename for one in entries if not _lies_inside(one.filename)), None):
        return f"it holds {odd!r:.100}"
    if any(one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size for one in entries):
        return "it is compressed"
    if len({one.filename.partition("/")[0] for one in entries}) != 1:
        return "it is not one folder"
    return None if len({one.filename for one in entries}) == len(entries) else "it holds a file twice"


def _lies_inside(name: str) -> bool:
    """Whether it names a file of the folder or of a folder in it; a folder may be called anything."""
    parts = name.split("/")
    return len(parts) in (2, 3) and not any(part in ("", ".", "..") or "\\" in part for part in parts)
