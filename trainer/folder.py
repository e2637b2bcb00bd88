"""The output folder of a run: what is in it, whose it is, and whether it is done. No torch here.

OUT/adapter/        the PEFT folder of the chosen checkpoint
OUT/evidence.json   what `adapter add --evidence` takes
OUT/evidence.html   the same to look at
OUT/run.json        settings, digests, versions, timings; written last: where it is, the run is done
OUT/methods/        what methods leave for later stages, where there is any
OUT/tracker/        what a tracker like TensorBoard wrote, where one was asked for
OUT/work/           while the run lasts: identity, resumable state, candidates, cached base scores
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .errors import ConfigInvalid, DataInvalid, FolderOccupied, LeakFound

METHODS = "methods"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths below `out`, and the only code that writes the files that claim it."""

    out: Path

    @property
    def adapter(self) -> Path:
        return self.out / "adapter"

    @property
    def evidence(self) -> Path:
        return self.out / "evidence.json"

    @property
    def page(self) -> Path:
        return self.out / "evidence.html"

    @property
    def methods(self) -> Path:
        """What methods leave behind for later stages, one folder each."""
        return self.out / METHODS

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def cache(self) -> Path:
        """What methods found out once, for as long as the run lasts."""
        return self.work / "methods"

    @property
    def states(self) -> Path:
        return self.work / "states"

    def candidate(self, step: int) -> Path:
        return self.work / "candidates" / f"step-{step:08d}"

    def finished(self, identity: str) -> Mapping[str, object] | None:
        """The summary of a finished run of `identity`; `None` where it is still to do.

        Raises `FolderOccupied` where the folder belongs to another configuration.
        """
        claims = [read_json(self.out / "run.json"), read_json(self.work / "run.json")]
        for claim in claims:
            if claim is not None and claim.get("identity") != identity:
                raise FolderOccupied(
                    f"{self.out.name} holds a run of other settings, base or data",
                    hint="give another --out, or remove that folder",
                )
        return claims[0]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however it ends."""
        occupied = FolderOccupied(
            f"another process is training in {self.out.name}", hint="wait for it, or give another --out"
        )
        with hold(self.work / "lock", occupied):
            yield

    def claim(self, identity: str) -> None:
        """Say whose work this is. Called once the run's files are known to be good: bad ones leave no claim."""
        write_json(self.work / "run.json", {"identity": identity})

    @contextlib.contextmanager
    def claimed(self, identity: str) -> Iterator[None]:
        """Claim the folder for what is built inside. Settings and rows that are refused there leave no claim, so that
        the corrected command may use the folder; an interruption leaves it, so that what was read is found again.
        """
        self.claim(identity)
        try:
            yield
        except (ConfigInvalid, DataInvalid, LeakFound):
            if not self.states.exists():
                shutil.rmtree(self.work, ignore_errors=True)
            raise

    def finish(self, summary: Mapping[str, object]) -> None:
        """Say that the run is done, then drop what only a running one needs."""
        write_json(self.out / "run.json", summary)
        shutil.rmtree(self.work, ignore_errors=True)


def read_versions() -> dict[str, str]:
    """Of what computes the weights. They stand in run.json and in no identity: another version is not another run."""
    return {name: version(name) for name in ("branchline", "torch", "transformers", "peft")}


@contextlib.contextmanager
def hold(lock: Path, occupied: FolderOccupied) -> Iterator[None]:
    """Hold the file `lock` for this process; raises `occupied` where another one does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise occupied from error
        yield


def write_bytes(path: Path, content: bytes) -> None:
    """Write `path` aside and rename it: nobody reads half a file, and two processes that write the same do not meet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, object]) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Mapping[str, Any] | None:
    """The JSON object in `path`; `None` where there is none, or half of one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
