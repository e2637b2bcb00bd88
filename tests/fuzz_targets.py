"""Every parser of something from outside as a fuzz target: tests/test_fuzz_parsers.py and tests/fuzz.py run them."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz_target import Target
from tests.fuzz_targets_adapters import adapters_targets
from tests.fuzz_targets_router import router_targets
from tests.fuzz_targets_trainer import trainer_targets


def all_targets(root: Path) -> list[Target]:
    """`root` is an empty folder for what the targets need beside their input."""
    made = root / "targets"
    made.mkdir()
    return [*router_targets(made), *adapters_targets(made), *trainer_targets(made)]
