"""The long run of the fuzz targets: `python -m tests.fuzz --minutes 10 [--seed N] [--only WORD]`.

Each target gets the same share of the time. A case that takes over `HANG_SECONDS`, lets the process grow by more than
`GROWTH_BYTES`, or brings out anything but a documented error ends up as a file, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from types import FrameType

import click

from tests.adapter_folders import memory_folder
from tests.fuzz_mutations import Files, mutate
from tests.fuzz_target import Target
from tests.fuzz_targets import all_targets

HANG_SECONDS = 5  # of the processor: other programs do not count
BLOCKED_SECONDS = 60  # of waiting
GROWTH_BYTES = 512 * 1024 * 1024
MAX_KINDS = 12  # of failures of one target


class Hang(BaseException):
    """Not an `Exception`, so that no parser takes it for one of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Targets whose name holds this word.")
    parser.add_argument("--keep", type=Path, default=None, help="Folder for the inputs that failed.")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _hang)
    signal.signal(signal.SIGPROF, _hang)
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        targets = [target for target in all_targets(Path(folder)) if options.only in target.name]
        seconds = options.minutes * 60 / len(targets)
        failed = [_run(target, Path(folder), seconds, options.seed, options.keep) for target in targets]
    return 1 if any(failed) else 0


def _run(target: Target, folder: Path, seconds: float, seed: int, keep: Path | None) -> bool:
    """Fuzz one target; whether it failed. A case follows from the target's name, the seed and its number."""
    failures: dict[str, tuple[str, Files]] = {}
    cases = taken = refused = 0
    slowest = 0.0
    until = time.monotonic() + seconds
    while time.monotonic() < until and len(failures) < MAX_KINDS:
        random = Random(f"{target.name} {seed} {cases}")
        files = mutate(random, random.choice(target.seeds + target.refused))
        started, before = time.process_time(), _peak_bytes()
        try:
            signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
            signal.alarm(BLOCKED_SECONDS)
            good = target.accepts(files, folder / "scratch")
            taken += good
            refused += not good
        except (Exception, Hang) as error:  # noqa: BLE001 - whatever comes out is what is looked for
            failures.setdefault(_place(error), (f"{error!s:.160}", files))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
        if _peak_bytes() - before > GROWTH_BYTES:
            failures.setdefault("grew", (f"by {(_peak_bytes() - before) >> 20} MiB", files))
        slowest = max(slowest, time.process_time() - started)
        cases += 1
    click.echo(
        f"{target.name:28} {cases:9d} cases {taken:8d} taken {refused:9d} refused  slowest {slowest:6.3f} s  "
        f"{len(failures)} failures"
    )
    for number, (place, (said, found)) in enumerate(failures.items()):
        click.echo(f"    {place}: {said}")
        if keep is not None:
            path = keep / f"{target.name.replace(' ', '-').replace('/', '-')}-{number}.json"
            path.write_text(json.dumps({name: content.decode("latin-1") for name, content in found.items()}))
    return bool(failures)


def _place(error: BaseException) -> str:
    """What came out, and from which line of ours."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "site-packages" not in one.filename]
    ours = [one for one in frames if "/tests/" not in one.filename and "/lib/python" not in one.filename] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {where}"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise Hang(f"over {HANG_SECONDS} s at work, or {BLOCKED_SECONDS} s waiting")


if __name__ == "__main__":
    sys.exit(main())
