"""Fuzz targets of the offline plane: YAML plans, decisions, what a monitor reads, scores of what a model wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import yaml

from tests.fuzz_mutations import Files
from tests.fuzz_target import Target, of_bytes, of_file, written
from trainer.config import AssessConfig, TrainConfig, read_config, read_yaml
from trainer.decisions import read_decisions
from trainer.errors import CheckpointInvalid, ConfigInvalid, DecisionsInvalid
from trainer.merging.config import read_merge
from trainer.metrics import TextMetric, score_text
from trainer.monitoring.state import StateFile
from trainer.sequences.config import read_sequence

PLAN = "plan.yaml"


def trainer_targets(root: Path) -> list[Target]:
    """`root` is a folder to put a row file in."""
    rows = root / "rows.jsonl"
    rows.write_text('{"input": "a", "output": "b"}\n', encoding="utf-8")
    return [*_plans(str(rows)), _decisions(), _state(), _scores()]


def _plans(rows: str) -> list[Target]:
    train: dict[str, object] = {
        "name": "sql",
        "base": "tiny",
        "data": rows,
        "eval": rows,
        "guardrails": [rows],
        "out": "out",
    }
    train |= {"methods": ["ewc:weight=3", "replay:share=0.3"], "targets": ["q_proj"], "rank": 8, "lr": 0.001}
    task = {"name": "red", "data": rows, "eval": rows, "dev": rows}
    arms = [{"name": "shared", "mode": "shared", "methods": ["si:weight=7"], "settings": {"rank": 4}, "seeds": [1]}]
    sequence = {"base": "tiny", "tasks": [task], "arms": arms, "seeds": [0, 1], "settings": {"max_tokens": 50}}
    assess = {"base": "tiny", "eval": rows, "out": "out", "part": "evidence", "suites": ["arc_easy"]}
    merge = {"base": "tiny", "method": "ties", "out": "out", "density": 0.3}
    plain = {
        "train plan": (lambda path: read_config(TrainConfig, read_yaml(path)), train),
        "evaluate plan": (lambda path: read_config(AssessConfig, read_yaml(path)), assess),
        "sequence plan": (lambda path: read_sequence(read_yaml(path)), sequence),
        "merge plan": (lambda path: read_merge(read_yaml(path), ["one", "two=0.5"]), merge),
    }
    return [
        of_file(name, parse, (ConfigInvalid,), PLAN, yaml.safe_dump(document).encode(), json.dumps(document).encode())
        for name, (parse, document) in plain.items()
    ]


def _decisions() -> Target:
    lines = b"".join(
        json.dumps({"row": f"{n:064x}", "route": route, "score": 0.5, "classifier": "c" * 64}).encode() + b"\n"
        for n, route in enumerate(("sql", None, "regex"))
    )
    return of_file("trainer decisions", read_decisions, (DecisionsInvalid,), "decisions.jsonl", lines)


def _state() -> Target:
    look = {"number": 1, "at": 5.0, "severity": None, "findings": [{"name": "sql"}], "said": "fine"}
    watch = {"looks": [look], "reference": {"f": {"row": 0.5}}, "reference_at": 1.0}
    document = {"schema": 1, "route": "sql", "plan": {"alpha": 0.05}, "watches": {"sql@1.0": watch}}

    def read(files: Files, scratch: Path) -> object:
        found = StateFile(written(files, scratch) / "sql.json", "sql", {}).read("sql@1.0")
        return found.last_at, found.critical

    return Target("monitor state", read, (CheckpointInvalid,), ({"sql.json": json.dumps(document).encode()},))


def _scores() -> Target:
    """Never refused: whatever a model writes has a score."""

    def score(raw: bytes) -> None:
        output = raw.decode("utf-8", "replace")
        for metric in get_args(TextMetric):
            assert 0.0 <= score_text(metric, output, '{"a": [1, 2]}') <= 1.0

    return of_bytes("a model's answer", score, (), b'{"a": [1, 2]}', b"the answer is {}")
