"""Sanity on real data, small enough to be quick. The figures themselves live in bench/."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adapters.rows import LabelledText, read_labelled
from router.classify.evaluate import evaluate
from router.classify.fit import fit_classifier

DATA = Path(os.environ.get("BRANCHLINE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def needs(path: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / path).exists(), reason=f"{path} is not there; set BRANCHLINE_DATA")


def suite(split: str) -> list[LabelledText]:
    return [
        LabelledText(row.text, row.label.replace("_", "-"))
        for row in read_labelled(DATA / "suite" / f"router_{split}.jsonl")
    ]


@needs("suite/router_train.jsonl")
def test_on_a_tenth_of_the_suite_routes_are_found_and_most_of_the_rest_stays_on_the_base() -> None:
    """Naive Bayes with all rows reaches 0.996 and 0.51 (the data's INDEX)."""
    found = evaluate(fit_classifier(suite("train")[::10]), suite("dev")[::3])
    assert (found.adapter_recall or 0) > 0.9
    assert (found.base_recall or 0) > 0.51
    assert (found.oos_auroc or 0) > 0.97


@needs("suite/router_train.jsonl")
def test_on_three_tasks_without_negatives_most_other_texts_stay_on_the_base() -> None:
    tasks = {"nl2regex", "text2sql", "scan"}
    fitted = fit_classifier([row for row in suite("train")[::10] if row.label in tasks])
    found = evaluate(fitted, [row for row in suite("dev")[::3] if row.label in {*tasks, "base"}])
    assert (found.adapter_recall or 0) > 0.95
    assert (found.base_recall or 0) > 0.6


@needs("clinc150/data_full.json")
def test_on_one_domain_of_clinc150_intents_are_told_apart_and_unknown_ones_noticed() -> None:
    data = json.loads((DATA / "clinc150" / "data_full.json").read_text())
    domains = json.loads((DATA / "clinc150" / "domains.json").read_text())
    chosen = {intent for domain in ("banking",) for intent in domains[domain]}

    def rows(split: str) -> list[LabelledText]:
        pairs = [(text, intent) for text, intent in data[split] if intent in chosen or intent == "oos"]
        return [LabelledText(text, intent.replace("_", "-")) for text, intent in pairs]

    found = evaluate(fit_classifier(rows("train")[::4], coverage=0.95), rows("val") + rows("oos_val"))
    assert (found.oos_auroc or 0) > 0.95
    assert (found.adapter_recall or 0) > 0.75
