"""Kills processes that work on a home: `python -m tests.adapter_crasher publish|promote HOME KILLS SEED`.

Each child publishes or promotes as fast as it can, and says on a pipe what was acknowledged to it. It is killed with
SIGKILL after a random while, up to about two of its own operations. Prints one JSON object: how many were killed, and
the acknowledgements. A process of its own, because forking wants a parent without threads.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from adapters.base import Base, find_base
from adapters.errors import BranchlineError
from adapters.promotion import promote
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.store import Store
from tests.adapter_folders import make_adapter

ROUTE = "sql"
Acknowledge = Callable[[list[object]], None]


def open_home(home: Path) -> tuple[Registry, Store]:
    return Registry.open(f"sqlite:///{home / 'registry.db'}", actor=f"child-{os.getpid()}"), Store(home / "store")


def publish_for_ever(home: Path, base: Base, kill: int, acknowledge: Acknowledge) -> None:
    """Publish one folder of new bytes after the other; the last source stays, so that it can be published again."""
    registry, store = open_home(home)
    count = 0
    while True:
        seed = kill * 1_000 + count
        folder = make_adapter(home / "sources" / str(seed), base.id, seed=seed)
        acknowledge(["start"])
        done = publish_folder(registry, store, ROUTE, folder, base)
        acknowledge(["published", done.version.number, done.version.digest])
        shutil.rmtree(folder)
        count += 1


def promote_for_ever(home: Path, base: Base, kill: int, acknowledge: Acknowledge) -> None:
    """Promote one of three versions after the other; now and then roll back, disable and enable."""
    registry, store = open_home(home)
    chosen = random.Random(kill)
    while True:
        acknowledge(["start"])
        act = chosen.choice(("promote", "promote", "rollback", "disable", "enable"))
        with contextlib.suppress(BranchlineError):  # live already, disabled already, nothing below
            if act == "promote":
                change = promote(registry, store, ROUTE, chosen.randint(1, 3), forced="why").change
            else:
                change = getattr(registry, act)(ROUTE)
            acknowledge(["changed", change.event.serial, change.event.kind])


def say(pipe: int, words: list[object]) -> None:
    os.write(pipe, json.dumps(words).encode() + b"\n")


def killed(work: Callable[[Acknowledge], None], seconds: float) -> tuple[list[list[object]], float]:
    """Fork a child at `work`, kill it a while after its first operation began; its words, and how long it lived."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(functools.partial(say, writer))
        finally:
            os._exit(1)
    os.close(writer)
    said = os.read(reader, 65536)  # waits for the first "start"
    began = time.monotonic()
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    lived = time.monotonic() - began
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"the child ended by itself, having said {said!r}")
    with os.fdopen(reader, "rb") as rest:
        lines = (said + rest.read()).split(b"\n")
    return [json.loads(line) for line in lines if line.endswith(b"]")], lived


def main(kind: str, home: Path, kills: int, seed: int) -> None:
    base = find_base(str(home / "pocket"))
    work = publish_for_ever if kind == "publish" else promote_for_ever
    chosen = random.Random(seed)
    one_operation = 0.02  # seconds; follows what this machine needs
    acknowledged: list[list[object]] = []
    died_inside = 0
    for kill in range(kills):
        wait = chosen.uniform(0, 2 * one_operation)
        words, lived = killed(functools.partial(work, home, base, seed + kill), wait)
        starts = sum(word == ["start"] for word in words)
        one_operation = min(0.2, 0.8 * one_operation + 0.2 * lived / max(starts - 0.5, 0.5))
        acknowledged += [word for word in words if word != ["start"]]
        died_inside += words[-1] == ["start"]
    json.dump({"kills": kills, "died_inside": died_inside, "acknowledged": acknowledged}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
