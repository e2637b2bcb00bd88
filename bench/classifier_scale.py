"""Fit time, memory, accuracy and decision latency from 10 to 10,000 routes, each fit in a process of its own.

    python -m bench.classifier_scale [--encoder SOURCE] [--split test] [--size 10 --size 100 …]

The routes are made of real sentences (`classifier_routes`), ten rows each to fit on. Up to 1,000 routes the standard
head is fitted and the cheaper one (`router.classify.centroids`) beside it; beyond, the cheaper one alone. Decisions
are timed one after another in the process that fitted, in CPU time, which other work on the machine leaves alone; an
encoder's vectors are there already. A process may take `--gib` of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from router.classify.classifier import Classifier
from router.classify.encoding import Encoder
from router.classify.features import Floats
from router.classify.fit import HeadName, fit_classifier

from .classifier_accuracy import COVERAGE
from .classifier_command import encoder_of, parser_of, publish
from .classifier_data import clinc150
from .classifier_routes import Compound, compound_routes
from .data import find_data
from .results import Row
from .spread import percentile

SIZES = (10, 100, 1_000, 10_000)
HEADS = ("standard", "cheaper")
STANDARD_UP_TO = 1_000
ROWS_OF_ROUTE = 10
OTHER_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Measured:
    """CPU and wall seconds of the fit, peak memory of the process, shares of the judged rows, times of a decision."""

    fit_cpu: float
    fit_wall: float
    peak_mb: float
    top: float
    coverage: float
    p50_ms: float
    p99_ms: float


def main() -> None:
    """Measure every size, or be the process that measures one fit."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", type=int, action="append", help="routes; may be repeated")
    parser.add_argument("--gib", type=int, default=12, help="memory that a fit may take")
    parser.add_argument("--head", choices=HEADS, help="be the process that measures this head at one --size")
    arguments = parser.parse_args()
    if arguments.head:
        resource.setrlimit(resource.RLIMIT_AS, (arguments.gib << 30, arguments.gib << 30))
        print(json.dumps(asdict(measure(arguments.size[0], arguments))))
        return
    name = "encoder" if arguments.encoder else "sparse"
    title = f"The classifier from 10 to 10,000 routes, {'with encoder' if arguments.encoder else 'sparse only'}"
    publish(f"classifier_scale_{name}", title, table(arguments), arguments)


def table(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows of each size and head, and what the cheaper head loses where both ran."""
    for size in arguments.size or SIZES:
        found: dict[str, Measured] = {}
        for head in HEADS if size <= STANDARD_UP_TO else HEADS[1:]:
            name = f"{size:,} routes, {head} head"
            measured = in_own_process(size, head, arguments)
            if isinstance(measured, str):
                yield Row(f"{name}, fit", None, "s", measured)
            else:
                found[head] = measured
                yield from fit_rows(name, measured)
        if len(found) == len(HEADS):
            lost = 100 * (found["standard"].top - found["cheaper"].top)
            yield Row(f"{size:,} routes, accuracy that the cheaper head loses", lost, "points", "top route")


def fit_rows(name: str, found: Measured) -> Iterator[Row]:
    yield Row(f"{name}, fit", found.fit_cpu, "CPU s", f"{ROWS_OF_ROUTE} rows a route; {found.fit_wall:.1f} s wall")
    yield Row(f"{name}, peak memory of the process", found.peak_mb, "MB", "Python and its libraries included")
    yield Row(f"{name}, accuracy, top route", 100 * found.top, "%", f"{100 * found.coverage:.1f} % kept")
    yield Row(f"{name}, decision p50", found.p50_ms, "CPU ms", f"p99 {found.p99_ms:.3g} ms; no gateway, no encoding")


def in_own_process(size: int, head: str, arguments: argparse.Namespace) -> Measured | str:
    """What was measured, or why it was not."""
    command = [sys.executable, "-m", "bench.classifier_scale", "--size", str(size), "--head", head]
    command += ["--split", arguments.split, "--gib", str(arguments.gib), "--precision", arguments.precision]
    command += ["--encoder", arguments.encoder] if arguments.encoder else []
    command += ["--cache", str(arguments.cache)] if arguments.cache else []
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if ran.returncode:
        last = ran.stderr.strip().rpartition("\n")[2]
        return f"failed with {arguments.gib} GiB allowed: {last}"[:200]
    return Measured(**json.loads(ran.stdout))


def measure(size: int, arguments: argparse.Namespace) -> Measured:
    """Fit one head on `size` routes and time its decisions."""
    encoder = encoder_of(arguments)
    task = clinc150(find_data(), arguments.split)
    rows = compound_routes(
        task, size, fitted=ROWS_OF_ROUTE * size, calibration=OTHER_ROWS, judged=max(OTHER_ROWS, size)
    )
    vectors: Sequence[Floats | None] = [None] * len(rows.judged)
    if encoder:
        vectors = list(encoder.encode([row.text for row in rows.judged]))
        encoder.encode([row.text for row in [*rows.fitted, *rows.calibration]])  # no part of the fit's time
    cpu, wall = time.process_time(), time.perf_counter()
    classifier = fit(arguments.head, rows, encoder)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    seconds, right, kept = [], 0, 0
    for row, vector in zip(rows.judged, vectors, strict=True):
        started = time.process_time()
        scores = classifier.scores(row.text, vector)
        seconds.append(time.process_time() - started)
        right += scores.route == row.label
        kept += not scores.abstains
    return Measured(
        fit_cpu=cpu,
        fit_wall=wall,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        top=right / len(seconds),
        coverage=kept / len(seconds),
        p50_ms=1000 * (percentile(seconds, 0.5) or 0.0),
        p99_ms=1000 * (percentile(seconds, 0.99) or 0.0),
    )


def fit(head: str, rows: Compound, encoder: Encoder | None) -> Classifier:
    name: HeadName = "centroids" if head == "cheaper" else "logistic"
    return fit_classifier(rows.fitted, coverage=COVERAGE, calibration=rows.calibration, encoder=encoder, head=name)


if __name__ == "__main__":
    main()
