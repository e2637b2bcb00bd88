"""Whatever comes in, every parser takes it or refuses it with the error it documents, in bounded time.

`EXAMPLES` mutated inputs for each target here, on every run others; `python -m tests.fuzz --minutes N` is the long run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz_mutations import mutate
from tests.fuzz_target import Target
from tests.fuzz_targets import all_targets

EXAMPLES = 60
NAMES = (
    "two readers",
    *("chat/completions body", "completions body", "responses body", "tokenize body"),
    *("chat/completions in process", "completions in process", "tokenize in process"),
    *("/v1/feedback body", "Host and Origin", "engine error", "engine stream", "classifier folder", "encoder folder"),
    *("adapter folder", "safetensors header", "base folder", "stored manifest", "rows", "rows, gzip"),
    *("evidence", "classifier evidence", "decision log", "names", "policy", "policy words", "registry"),
    *("train plan", "evaluate plan", "sequence plan", "merge plan", "trainer decisions", "monitor state"),
    "a model's answer",
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Target]:
    return {target.name: target for target in all_targets(tmp_path_factory.mktemp("fuzz"))}


def test_every_target_is_run_here(targets: Mapping[str, Target]) -> None:
    assert tuple(targets) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_valid_is_taken(name: str, targets: Mapping[str, Target], tmp_path: Path) -> None:
    taken = [targets[name].accepts(files, tmp_path / "scratch") for files in targets[name].seeds]
    assert taken == [True] * len(taken) != []


@pytest.mark.timeout(60)  # of a parser that hangs
@pytest.mark.parametrize("name", NAMES)
def test_what_is_hostile_is_taken_or_refused_and_nothing_else(
    name: str, targets: Mapping[str, Target], tmp_path: Path
) -> None:
    target = targets[name]

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**63))
    def hostile(number: int) -> None:
        random = Random(number)
        target.accepts(mutate(random, random.choice(target.seeds + target.refused)), tmp_path / "scratch")

    hostile()
