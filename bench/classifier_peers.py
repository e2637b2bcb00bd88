"""The accuracy harness on aurelio's semantic-router, with the same encoder and the same rows.

    python -m bench.classifier_peers --python PYTHON --encoder SOURCE [--split test]

`--python` is that of an environment with semantic-router (`pip install semantic-router`). It routes to the label whose
stored texts are most like the question. The encoder's vectors are made here and handed over, so both sides see the
same. `--top-k` and `--aggregation` are the library's own settings; it has no threshold of a stated coverage, so it is
given ours, learned on the same calibration rows from its scores. A base label is a route of its own there: where it
wins, the base answers. Confidence is the library's Platt scaling on the calibration rows.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from router.classify.abstain import conformal_threshold

from .classifier_accuracy import Plan, add_plan, measured, plan_of
from .classifier_arms import Remembered
from .classifier_command import encoder_of, parser_of, publish
from .classifier_data import Rows
from .classifier_measures import Said
from .results import Row
from .spread import row_of_times

ROOT = Path(__file__).parents[1]
NOTHING_REJECTED = -1e9
NAME = "aurelio semantic-router"


@dataclass(frozen=True, slots=True)
class Peer:
    """The library in a process of its own. `seconds` of all decisions so far, encoding not counted."""

    process: subprocess.Popen[str]
    encoder: Remembered
    top_k: int
    aggregation: str
    seconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "encoder"

    def judge(self, fitted: Rows, calibration: Rows, judged: Rows, coverage: float) -> list[Said]:
        texts = list(dict.fromkeys(row.text for rows in (fitted, calibration, judged) for row in rows))
        vectors = base64.b64encode(self.encoder.encode(texts).tobytes()).decode()
        answer = self.ask(
            texts=texts,
            vectors=vectors,
            fitted=[(row.text, "base" if row.label == "oos" else row.label) for row in fitted],
            calibration=[(row.text, row.label) for row in calibration],
            judged=[row.text for row in judged],
            top_k=self.top_k,
            aggregation=self.aggregation,
        )
        self.seconds.extend(answer["seconds"])
        kept = np.array([score - base for score, base in answer["calibration"]])
        threshold = conformal_threshold(kept, coverage) if len(kept) else None
        threshold = NOTHING_REJECTED if threshold is None else threshold
        return [
            Said(row.label, top, confidence, score - base, threshold, None)
            for row, (top, score, base, confidence) in zip(judged, answer["judged"], strict=True)
        ]

    def ask(self, **question: object) -> dict[str, Any]:
        """Its answer. Raises `RuntimeError` where it ended instead."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the peer's pipes are missing")
        if question:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peer ended by itself; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=60)


def main() -> None:
    """Measure the library."""
    parser = parser_of(__doc__)
    add_plan(parser)
    parser.add_argument("--python", required=True, help="of an environment with semantic-router")
    parser.add_argument("--top-k", type=int, default=5, help="stored texts that vote")
    parser.add_argument("--aggregation", choices=("mean", "max", "sum"), default="mean", help="of their scores")
    arguments = parser.parse_args()
    encoder = encoder_of(arguments)
    if encoder is None:
        parser.error("semantic-router needs --encoder")
    peer = Peer(start(arguments.python), encoder, arguments.top_k, arguments.aggregation)
    try:
        version = peer.ask()["version"]
        settings = f"top_k {peer.top_k}, {peer.aggregation} of the scores"
        title = f"The same rows through {NAME} {version}, {settings}, the same encoder"
        publish(f"classifier_peers_{peer.aggregation}", title, rows_of(peer, plan_of(arguments)), arguments)
    finally:
        peer.end()


def rows_of(peer: Peer, plan: Plan) -> Iterator[Row]:
    """The rows of the accuracy bench, and how long a decision takes."""
    yield from measured(peer, plan)
    note = f"{len(peer.seconds)} decisions, encoding not counted"
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield row_of_times(f"decision {name}", peer.seconds, share, note)


def start(python: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-m", "bench.classifier_peer_child"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    main()
