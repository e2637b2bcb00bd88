"""A sequence of three tiny tasks for the tests: each asks about one colour and wants one word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from adapters.base import find_base
from adapters.rows import text_digest
from tests.trainer_base import make_trainable_base, write_rows
from tests.trainer_runs import Watcher
from trainer.sequences.config import read_sequence
from trainer.sequences.folder import SequenceFolder
from trainer.sequences.run import SequenceRun, prepare_sequence

ANSWERS = {"red": "yes", "blue": "no", "green": "maybe"}
PARTS = {"data": (0, 48), "dev": (1000, 12), "eval": (2000, 16)}
SETTINGS = {"rank": 4, "alpha": 8, "lr": 0.02, "max_tokens": 5000, "batch_tokens": 256}
ARMS: list[dict[str, object]] = [
    {"name": "base", "mode": "base"},
    {"name": "sequential", "mode": "shared"},
    {"name": "isolated", "mode": "isolated"},
    {"name": "replay", "mode": "shared", "methods": ["replay:share=0.3"], "seeds": [0]},
    {"name": "joint", "mode": "joint", "seeds": [0]},
]


def make_plan(root: Path) -> dict[str, object]:
    """What FILE.yaml holds: base, three tasks, five arms, two seeds at most, decisions per stage."""
    tasks = [
        {"name": colour}
        | {
            part: str(write_rows(root / f"{colour}-{part}.jsonl", [(text, answer) for text in texts(colour, part)]))
            for part in PARTS
        }
        for colour, answer in ANSWERS.items()
    ]
    return {
        "base": str(make_trainable_base(root / "tiny")),
        "tasks": tasks,
        "arms": ARMS,
        "seeds": [0, 1],
        "settings": SETTINGS,
        "decisions": [str(write_decisions(root / f"decisions-{stage}.jsonl", stage)) for stage in (1, 2, 3)],
        "threads": 1,
    }


def texts(colour: str, part: str) -> list[str]:
    start, count = PARTS[part]
    return [f"{colour} {number}?" for number in range(start, start + count)]


def routes_of(colour: str, stage: int) -> list[str | None]:
    """By hand: of each task's 16 judged rows 4 go to the base, 4 of red's go to blue, tasks not learned yet to the
    base. Blue's are named from stage 1 on, before it is learned.
    """
    learned = list(ANSWERS)[:stage]
    own = colour if colour in learned else None
    wrong = "blue" if colour == "red" else own
    return [None] * 4 + [wrong] * 4 + [own] * 8


def write_decisions(path: Path, stage: int, skip: int = 0) -> Path:
    rows = [
        {"row": text_digest(text), "route": route, "score": 0.5, "classifier": f"stage {stage}"}
        for colour in ANSWERS
        for text, route in zip(texts(colour, "eval"), routes_of(colour, stage), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[skip:]), encoding="utf-8")
    return path


def prepare(plan: dict[str, object], out: Path, watcher: Watcher | None = None) -> SequenceRun:
    config = read_sequence(plan)
    return prepare_sequence(config, find_base(config.base), SequenceFolder(out), watcher or Watcher())


def run_all(run: SequenceRun, seeds: Sequence[int]) -> None:
    run.run(run.config.arms, seeds, lambda: None)
