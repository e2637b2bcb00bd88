"""Fresh evidence on an existing PEFT folder: other items, other decisions, or a version trained elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from adapters.base import Base
from adapters.evidence import Evidence

from .choices import require_choices
from .comparison import Compared, Comparison
from .config import AssessConfig
from .data import Dataset, halves
from .evaluate import make_evaluator
from .folder import write_text
from .harness import Suites, compare_suites
from .model import LoadedBase, load_adapter, load_base
from .observer import Observer, watch_scoring
from .page import render_page
from .probe import take_probe
from .report import Findings, make_evidence, summarise
from .task import Judges, find_max_length, read_judging, require_decisions


def assess(
    config: AssessConfig, route: str, folder: Path, base: Base, observer: Observer
) -> tuple[Evidence, dict[str, object]]:
    """Compare `folder` with its base, write OUT/evidence.json and OUT/evidence.html; returns evidence and summary.

    `route` is the name that routing decisions call the adapter by.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    observer.say(f"loading base {base.id}")
    loaded = load_base(base)
    judges = read_judges(config, loaded)
    require_choices(config.metric, judges.datasets)
    decisions = require_decisions(config.decisions, judges)
    model = load_adapter(loaded, folder)
    evaluator = make_evaluator(config, model, loaded)
    with tempfile.TemporaryDirectory() as cache:
        on_batch = watch_scoring(observer)
        comparison = Comparison(evaluator, base.fingerprint, route, decisions, Path(cache), on_batch)
        findings = Findings(
            target=comparison.compare(judges.target),
            guardrails=(*(comparison.compare(one) for one in judges.guardrails), *_suites(config, model, loaded)),
            bound=config.guardrail_bound,
        )
    probe = take_probe(model, judges.target.examples, loaded.pad_token)
    evidence = make_evidence(findings, folder, base, decisions, probe)
    write_text(config.out / "evidence.json", evidence.to_json())
    write_text(config.out / "evidence.html", render_page(route, base.id, findings, evidence))
    return evidence, summarise(findings)


def _suites(config: AssessConfig, model: Any, loaded: LoadedBase) -> list[Compared]:
    return compare_suites(Suites(config.suites, config.suite_limit), model, loaded) if config.suites else []


def read_judges(config: AssessConfig, loaded: LoadedBase) -> Judges:
    """The evaluation files, whole or the half that `train` keeps for evidence."""
    max_length = find_max_length(config.max_length, loaded)

    def read(path: Path, name: str) -> Dataset:
        dataset = read_judging(path, name, loaded, max_length)
        return dataset if config.part == "all" else halves(dataset)[1]

    return Judges(read(config.eval, "eval"), tuple(read(one, one.stem) for one in config.guardrails))
