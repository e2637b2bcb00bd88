"""What a fuzz target is, and what must hold of it for whatever comes in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz_mutations import Files

INPUT = "input"
Parse = Callable[[Files, Path], object]


@dataclass(frozen=True, slots=True)
class Target:
    """A parser of something from outside. `refuses` are the errors its documentation names.

    `seeds` are valid, `refused` are not; both are what mutations start from. `parse` gets the files and an empty
    scratch folder.
    """

    name: str
    parse: Parse
    refuses: tuple[type[Exception], ...]
    seeds: tuple[Files, ...]
    refused: tuple[Files, ...] = ()

    def accepts(self, files: Files, scratch: Path) -> bool:
        """Whether `files` are taken; whatever else than a documented refusal comes out is the target's fault."""
        try:
            self.parse(files, _emptied(scratch))
        except self.refuses:
            return False
        return True


def of_bytes(
    name: str, parse: Callable[[bytes], object], refuses: tuple[type[Exception], ...], *seeds: bytes
) -> Target:
    """A target that reads bytes and no files."""
    return Target(name, lambda files, _: parse(files.get(INPUT, b"")), refuses, tuple({INPUT: one} for one in seeds))


def of_file(
    name: str, parse: Callable[[Path], object], refuses: tuple[type[Exception], ...], file: str, *seeds: bytes
) -> Target:
    """A target that reads one file of that name."""

    def parsed(files: Files, scratch: Path) -> object:
        return parse(written(files, scratch) / file)

    return Target(name, parsed, refuses, tuple({file: one} for one in seeds))


def written(files: Files, scratch: Path) -> Path:
    for name, content in files.items():
        (scratch / name).write_bytes(content)
    return scratch


def _emptied(scratch: Path) -> Path:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch
