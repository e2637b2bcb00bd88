"""General prompts: what is drawn, what is left to the routes, and what a fit makes of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from adapters.rows import LabelledText
from router.classifier_cli.group import classifier
from router.classify.classifier import BASE
from router.classify.fit import HeadName, fit_and_judge, fit_classifier
from router.classify.general import general_prompts, load_phrases, unclaimed_prompts
from tests.classifier_rows import base_rows, routes_rows


def test_the_same_count_and_seed_give_the_same_prompts_and_another_seed_others() -> None:
    prompts = general_prompts(300, seed=4)
    assert prompts == general_prompts(300, seed=4)
    assert len(set(prompts) & set(general_prompts(300, seed=5))) < 100


def test_thousands_of_prompts_are_distinct_texts_of_many_kinds_and_lengths() -> None:
    prompts = general_prompts(5_000)
    assert len(set(prompts)) == 5_000
    assert all(prompt.strip() for prompt in prompts)
    lengths = np.array([len(prompt) for prompt in prompts])
    assert (lengths < 5).sum() > 20
    assert (lengths > 500).sum() > 100
    latin = re.compile(r"[a-zA-Z]")
    assert sum(not latin.search(prompt) for prompt in prompts) > 150  # other scripts, numbers, signs
    openings = Counter(prompt.split()[0].lower() for prompt in prompts)
    assert len(openings) > 400
    assert max(openings.values()) < 0.15 * len(prompts)


def test_no_slot_of_a_template_is_left_open_or_without_a_list() -> None:
    phrases = load_phrases()
    used = {slot for texts in [*phrases.kinds.values(), *phrases.lists.values()] for text in texts
            for slot in re.findall(r"\{(\w+)\}", text)}  # fmt: skip
    assert used == set(phrases.lists)
    assert not [prompt for prompt in general_prompts(5_000) if re.search(r"\{[a-z]+2?\}", prompt)]


def test_prompts_that_a_route_claims_are_left_to_it() -> None:
    def joking(prompts: list[str]) -> set[str]:
        return {prompt for prompt in prompts if re.search("joke|riddle|pun about", prompt.lower())}

    jokes = [LabelledText(text, "jokes") for text in sorted(joking(general_prompts(3_000, seed=9)))]
    drawn, left = joking(general_prompts(3_000)), unclaimed_prompts(jokes + routes_rows(20), 3_000)
    assert len(drawn) > 15
    assert len(joking(left)) < len(drawn) / 2
    assert len(left) > 2_900
    assert joking(unclaimed_prompts(routes_rows(20), 3_000)) == drawn


def test_none_are_given_where_there_are_base_rows_enough() -> None:
    enough = [LabelledText(f"anything {at}", "oos") for at in range(10)]
    assert unclaimed_prompts(routes_rows(5) + enough) == []
    assert unclaimed_prompts(routes_rows(5) + enough[:9]) == unclaimed_prompts(routes_rows(5))


def test_a_first_base_row_is_no_class_of_its_own_beside_them() -> None:
    rows = [*routes_rows(20), LabelledText("what is a table of contents", BASE)]
    beside = fit_classifier(rows, general=unclaimed_prompts(rows))
    assert beside.base_column is None
    assert beside.summary["calibration_negatives"] == 0  # a label's only row is not held out
    assert fit_classifier(rows).base_column is not None


def test_routes_of_a_single_example_claim_what_is_nearly_the_same() -> None:
    prompts = general_prompts(500)
    taken = next(prompt for prompt in prompts if len(prompt.split()) > 6)
    left = unclaimed_prompts([LabelledText(taken, "one"), LabelledText("select name from users", "two")], 500)
    assert taken not in left
    assert len(left) > 450


def test_they_are_fitted_beside_the_routes_and_leave_no_class_of_their_own() -> None:
    rows = routes_rows(6)
    prompts = unclaimed_prompts(rows)
    plain, taught = fit_classifier(rows), fit_classifier(rows, general=prompts)
    assert taught.head.labels == plain.head.labels == ("booking", "regex", "sql")
    assert taught.features.size > plain.features.size
    assert taught.summary["general_prompts"] == len(prompts)
    for key in ("rows", "calibration_rows", "calibration_negatives"):
        assert taught.summary[key] == plain.summary[key]
    assert not taught.has_row("base", prompts[0])


def test_they_are_held_out_in_turn_like_rows_and_are_evidence_of_what_the_base_keeps() -> None:
    rows = routes_rows(6)
    prompts = unclaimed_prompts(rows, 200)
    fitted = fit_and_judge(rows, general=prompts)
    assert Counter(row.label for row, _ in fitted.held_out) == {"booking": 6, "regex": 6, "sql": 6, BASE: 100}
    assert len(prompts) > 150  # those who were made do not outvote the rows
    kept = [scores.abstains for row, scores in fitted.held_out if row.label == BASE]
    assert sum(kept) > 0.8 * len(kept)
    # Judged by weights that were taught a prompt itself, it would speak for the routes less.
    own = [fitted.classifier.scores(row.text).score for row, _ in fitted.held_out if row.label == BASE]
    assert sum(own) < sum(scores.score for row, scores in fitted.held_out if row.label == BASE)


@pytest.mark.parametrize("head", ["logistic", "centroids"])
def test_a_word_that_they_use_too_speaks_less_for_a_route(head: HeadName) -> None:
    """Every row of the route says both `please` and `book`; the prompts say `please` far more often."""
    rows = routes_rows(20)

    def share(general: list[str]) -> float:
        found = fit_classifier(rows, head=head, general=general)
        columns = [found.features.words[word] for word in ("please", "book")]
        please, book = found.head.weights_of(np.array(columns))[:, found.head.labels.index("booking")]
        return float(please / book)

    assert share([]) == pytest.approx(1, abs=0.01)
    assert share(unclaimed_prompts(rows, 600)) < 0.9


def test_classifier_fit_takes_them_unless_told_not_to_or_given_base_examples(tmp_path: Path) -> None:
    def learned(rows: list[LabelledText], *words: str) -> int:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows))
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        command = ["fit", "--examples", str(file), "--out", str(out), "--json", *words]
        found: int = json.loads(CliRunner().invoke(classifier, command).stdout)["general_prompts"]
        return found

    rows = routes_rows(6)
    assert learned(rows) == len(unclaimed_prompts(rows)) > 100
    assert learned(rows, "--no-general-prompts") == 0
    assert learned(rows + base_rows()) == 0
