"""The command line in this process: importing torch again for every command would take seconds."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from adapters.main import main


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended and what it printed."""

    code: int
    stdout: str
    stderr: str


class Branchline(Protocol):
    def __call__(self, *words: str, code: int = 0) -> Finished: ...


def make_branchline(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Branchline:
    """`branchline` on a home of its own; a call fails where it ends with another exit code than `code`."""
    monkeypatch.setenv("BRANCHLINE_HOME", str(home))

    def run(*words: str, code: int = 0) -> Finished:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["branchline", *words])
        ended = 0
        try:
            main()
        except SystemExit as leaving:
            ended = int(leaving.code or 0)
        printed = capsys.readouterr()
        assert ended == code, printed.err
        return Finished(ended, printed.out, printed.err)

    return run
