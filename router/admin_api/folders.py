"""Which folders of this machine adapters may be loaded from over HTTP: those under `--lora-folder`, links followed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import Forbidden, InvalidRequest


def find_folder(given: str, allowed: Sequence[Path]) -> Path:
    """The real folder that `given` names, absolute or relative to an allowed one.

    Raises `Forbidden` where it leads out of all of them, or there are none; `InvalidRequest` where there is no such
    folder. What lies outside is refused alike, there or not.
    """
    if not allowed:
        raise Forbidden("this server loads no adapters over HTTP; start it with --lora-folder", code="loading_disabled")
    refusal: Forbidden | InvalidRequest = Forbidden(
        "the folder does not lie under a folder that this server loads from", code="folder_not_allowed"
    )
    if "\0" in given:
        raise refusal
    for top in allowed:
        try:
            root = top.resolve(strict=True)
            found = (root / given).resolve()
            there = found.is_dir()
        except (OSError, RuntimeError):  # a link that leads to itself, a name that is too long
            continue
        if not found.is_relative_to(root):
            continue
        if there:
            return found
        refusal = InvalidRequest("there is no such folder", code="folder_not_found")
    raise refusal
