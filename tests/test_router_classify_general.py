"""General prompts: what is drawn, what is left to the routes, and what a fit makes of them."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from adapters.rows import LabelledText
from router.classify.abstain import choose_score, decision_scores
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


def test_none_are_given_where_there_are_base_rows() -> None:
    assert unclaimed_prompts(routes_rows(5) + base_rows()) == []
    assert unclaimed_prompts([*routes_rows(5), LabelledText("anything", "oos")]) == []


def test_routes_of_a_single_example_claim_what_is_nearly_the_same() -> None:
    prompts = general_prompts(500)
    taken = next(prompt for prompt in prompts if len(prompt.split()) > 6)
    left = unclaimed_prompts([LabelledText(taken, "one"), LabelledText("select name from users", "two")], 500)
    assert taken not in left
    assert len(left) > 450


def test_the_score_of_the_routes_alone_leaves_the_base_class_out() -> None:
    """T ln Σ exp(z / T) over the routes, by hand; without negatives the score asked for is taken."""
    logits = np.array([[1.0, 2.0, 5.0]])
    expected = 0.5 * np.log(np.exp(1.0 / 0.5) + np.exp(2.0 / 0.5))
    assert decision_scores("routes", logits, 0.5, 2) == pytest.approx([expected])
    assert choose_score(logits, np.array([False]), 1.0, 2, "routes") == "routes"
