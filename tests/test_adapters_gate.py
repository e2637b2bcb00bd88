"""The promotion gate: worked examples, bounds against scipy, and what it refuses to believe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adapters.base import Base
from adapters.classifiers import promote_classifier, publish_classifier
from adapters.errors import Conflict, GateRefused, InvalidName
from adapters.evidence import Evaluation, Evidence, Item, Score
from adapters.gate import Candidate, guardrail_problem, judge
from adapters.manifests import weights_digest
from adapters.policy import Policy, merge_policy, parse_assignments, policy_keys
from adapters.promotion import promote
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.statistics import MIN_ITEMS, lower_bound, student_t_quantile, upper_bound
from adapters.store import Store
from tests.adapter_folders import evaluation, make_adapter, make_base, make_evidence

WEIGHTS, BASE = "a" * 64, "b" * 64
POLICY = Policy()


def unmet(*evidence: Evidence, live: list[Evidence] | None = None, policy: Policy = POLICY, **options: Any) -> str:
    verdict = judge(Candidate(WEIGHTS, BASE, evidence), live, policy, options.get("classifier"))
    assert verdict.passed == (not verdict.unmet)
    return "; ".join(verdict.unmet)


def good(**changes: Any) -> Evidence:
    return make_evidence(WEIGHTS, BASE, **changes)


def scored(base: list[float], adapter: list[float], *, nll: list[float] | None = None) -> Evaluation:
    """An evaluation with these scores; `nll` is the adapter's, the base's is 1."""
    items = (
        Item(f"row-{i}", Score(one, 1.0, 5), Score(other, 1.0 if nll is None else nll[i], 5))
        for i, (one, other) in enumerate(zip(base, adapter, strict=True))
    )
    return Evaluation("target", "a" * 64, "exact_match", tuple(items))


# -- statistics -----------------------------------------------------------------------------------------------------


@given(probability=st.floats(0.9, 0.99), degrees=st.integers(9, 5000))
@settings(max_examples=300, deadline=None)
def test_the_t_quantile_is_within_a_thousandth_of_scipys(probability: float, degrees: int) -> None:
    assert student_t_quantile(probability, degrees) == pytest.approx(float(stats.t.ppf(probability, degrees)), abs=1e-3)


@given(st.lists(st.floats(-1, 1), min_size=MIN_ITEMS, max_size=80))
@settings(max_examples=200, deadline=None)
def test_the_bounds_are_scipys_one_sided_t_bounds(differences: list[float]) -> None:
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1) / math.sqrt(len(differences)))
    half = float(stats.t.ppf(0.95, len(differences) - 1)) * error
    tolerance = 1e-3 * error + 1e-9  # the quantile's own tolerance
    assert lower_bound(differences) == pytest.approx(mean - half, abs=tolerance)
    assert upper_bound(differences) == pytest.approx(mean + half, abs=tolerance)


def test_nine_items_bound_nothing() -> None:
    assert lower_bound([1.0] * (MIN_ITEMS - 1)) == -math.inf
    assert upper_bound([0.0] * (MIN_ITEMS - 1)) == math.inf
    assert lower_bound([]) == -math.inf


# -- the target -----------------------------------------------------------------------------------------------------


def test_a_sure_gain_with_a_guardrail_that_holds_passes() -> None:
    assert unmet(good()) == ""


def test_no_evidence_is_refused() -> None:
    assert unmet() == "the version has no evidence"


def test_forty_nine_items_are_refused_and_fifty_pass() -> None:
    assert "has 49 items, the policy asks for 50" in unmet(good(target=evaluation(n=49)))
    assert unmet(good(target=evaluation(n=50))) == ""


def test_the_gain_over_the_base_is_the_worked_bound() -> None:
    # 60 items, 4 gains and 56 ties: mean 1/15, s = sqrt(60/59 · 1/15 · 14/15) = 0.25155, t(.95, 59) = 1.6711:
    # bound = 0.066667 − 1.6711 · 0.25155 / sqrt(60) = +0.0124. With 2 gains: 0.033333 − 0.039054 = −0.0057.
    four = good(target=scored([0.0] * 60, [1.0] * 4 + [0.0] * 56))
    verdict = judge(Candidate(WEIGHTS, BASE, [four]), None, POLICY, None)
    assert verdict.passed
    assert verdict.numbers["gain_bound"] == pytest.approx(0.0124, abs=1e-4)
    two = good(target=scored([0.0] * 60, [1.0] * 2 + [0.0] * 58))
    assert "the gain over the base is at least -0.0057" in unmet(two)


def test_equal_scores_are_no_gain() -> None:
    assert "at least +0.0000" in unmet(good(target=evaluation(base=1.0, adapter=1.0)))


@given(gains=st.lists(st.sampled_from([-1, 0, 1]), min_size=50, max_size=70))
@settings(max_examples=100, deadline=None)
def test_the_gate_passes_exactly_where_scipys_bound_is_over_zero(gains: list[int]) -> None:
    base = [0.0 if gain > 0 else 1.0 for gain in gains]
    adapter = [one + gain for one, gain in zip(base, gains, strict=True)]
    bound = np.mean(gains) - stats.t.ppf(0.95, len(gains) - 1) * np.std(gains, ddof=1) / math.sqrt(len(gains))
    if abs(float(bound)) > 1e-3:
        assert (unmet(good(target=scored(base, adapter))) == "") == (float(bound) > 0)


# -- bound to this version ------------------------------------------------------------------------------------------


def test_another_versions_evidence_is_not_judged() -> None:
    text = unmet(make_evidence("c" * 64, BASE), make_evidence(WEIGHTS, "d" * 64))
    assert "evidence speaks of weights cccccccccccccccc, this version is aaaaaaaaaaaaaaaa" in text
    assert "evidence was taken on base dddddddddddddddd" in text


def test_the_newest_evidence_that_is_bound_decides() -> None:
    bad = good(target=evaluation(adapter=0.0))
    assert "gain over the base" in unmet(good(), bad)
    assert unmet(bad, good()) == ""
    assert unmet(good(), make_evidence("c" * 64, BASE, target=evaluation(adapter=0.0))) == ""


def test_lying_summary_fields_change_nothing() -> None:
    lie = good(
        guardrails=(evaluation("general", base=0.5, adapter=0.5, rise=0.5, file="b"),),
        guardrail_failed=False,
        selection={"passed": True, "gain_bound": 1.0},
        probe={"passed": True},
    )
    assert "NLL rise is at most 0.5000" in unmet(lie)
    assert unmet(good(guardrail_failed=True, selection={"passed": False})) == ""


# -- against the live version ---------------------------------------------------------------------------------------


def test_a_version_two_points_worse_than_the_live_one_passes_and_three_points_does_not() -> None:
    live = [make_evidence("c" * 64, BASE, target=evaluation(adapter=0.9, file="a"))]
    assert unmet(good(target=evaluation(adapter=0.881, file="a")), live=live) == ""
    text = unmet(good(target=evaluation(adapter=0.87, file="a")), live=live)
    assert "the difference to the live version is at least -0.0300" in text


def test_the_comparison_with_the_live_version_is_paired_by_row_and_not_by_place() -> None:
    target = scored([0.0] * 60, [1.0] * 40 + [0.0] * 20)
    same = replace(target, items=tuple(reversed(target.items)))
    live = [make_evidence("c" * 64, BASE, target=same)]
    verdict = judge(Candidate(WEIGHTS, BASE, [good(target=target)]), live, POLICY, None)
    assert verdict.passed
    assert verdict.numbers["live_bound"] == 0.0


@pytest.mark.parametrize(
    "other",
    [
        evaluation(file="e"),
        evaluation(file="a", n=59),
        replace(evaluation(file="a"), metric="contains"),
        replace(evaluation(file="a"), items=tuple(replace(i, row=f"{i.row}x") for i in evaluation().items)),
    ],
    ids=["another file", "fewer rows", "another metric", "other rows"],
)
def test_a_live_version_without_evidence_on_the_same_items_must_be_evaluated_first(other: Evaluation) -> None:
    live = [make_evidence("c" * 64, BASE, target=other)]
    assert "the live version has no evidence on the same items" in unmet(good(), live=live)
    assert "the live version has no evidence on the same items" in unmet(good(), live=[])


# -- guardrails -----------------------------------------------------------------------------------------------------


def test_evidence_without_a_guardrail_is_refused() -> None:
    assert "evidence has 0 guardrails, the policy asks for 1" in unmet(good(guardrails=()))


def test_one_file_given_twice_is_one_guardrail() -> None:
    one = evaluation("general", file="b")
    two = Policy(min_guardrails=2)
    assert "evidence has 1 guardrails, the policy asks for 2" in unmet(good(guardrails=(one, one)), policy=two)
    assert unmet(good(guardrails=(one, evaluation("law", file="c"))), policy=two) == ""


def test_every_failing_guardrail_is_listed() -> None:
    text = unmet(good(guardrails=tuple(evaluation(name, rise=0.1, file=name[0]) for name in ("beta", "code", "deed"))))
    assert all(f"guardrail {name}" in text for name in ("beta", "code", "deed"))


def test_a_rise_of_nll_is_judged_by_its_bound_and_not_by_its_mean() -> None:
    # Rises alternate 0 and 0.03: mean 0.015, s = 0.01513 (n = 60), bound = 0.015 + 1.6711 · 0.01513 / √60 = 0.01826;
    # alternating −0.05 and 0.08 has the same mean and bound 0.015 + 1.6711 · 0.06555 / √60 = 0.02914.
    calm = scored([0.5] * 60, [0.5] * 60, nll=[1.0, 1.03] * 30)
    wild = scored([0.5] * 60, [0.5] * 60, nll=[0.95, 1.08] * 30)
    assert guardrail_problem(calm, "forced", 0.02) is None
    assert "rise is at most 0.0291" in str(guardrail_problem(wild, "forced", 0.02))


@pytest.mark.parametrize(
    ("n", "base", "adapter", "holds"),
    [
        (1500, 0.5, 0.49, True),
        (1499, 0.5, 0.49, False),
        (1500, 0.5, 0.47, False),
        (1500, 0.29, 0.29, False),
    ],
    ids=["large", "one item short", "over two points", "base under 30 %"],
)
def test_a_large_guardrail_may_hold_by_score_instead(n: int, base: float, adapter: float, holds: bool) -> None:
    found = guardrail_problem(evaluation("g", n=n, base=base, adapter=adapter, rise=0.5), "forced", 0.02)
    assert (found is None) == holds


def test_a_guardrail_of_no_items_does_not_hold() -> None:
    assert guardrail_problem(evaluation("g", n=0), "forced", 0.02) is not None


def test_a_routed_guardrail_counts_what_would_really_answer() -> None:
    away = evaluation("g", rise=0.5, routed_to="base")
    taken = evaluation("g", rise=0.5, routed_to="adapter")
    assert guardrail_problem(away, "forced", 0.02) is not None
    assert guardrail_problem(away, "routed", 0.02) is None
    assert guardrail_problem(taken, "routed", 0.02) is not None
    assert guardrail_problem(evaluation("g"), "routed", 0.02) == "guardrail g: carries no routing decisions"


def test_routed_guardrails_need_the_live_classifiers_decisions() -> None:
    routed = Policy(guardrails="routed")
    evidence = good(guardrails=(evaluation("g", rise=0.5, routed_to="base", file="b"),), classifier_digest="c" * 64)
    assert unmet(evidence, policy=routed, classifier="c" * 64) == ""
    for live in (None, "d" * 64):
        assert "guardrails were routed by classifier cccccccccccccccc" in unmet(
            evidence, policy=routed, classifier=live
        )
    undecided = replace(evidence, classifier_digest=None)
    assert "routed by classifier none" in unmet(undecided, policy=routed, classifier=None)


def test_every_unmet_condition_is_listed_at_once() -> None:
    bad = good(target=evaluation(n=20, adapter=0.0, file="a"), guardrails=(evaluation("g", rise=1.0, file="b"),))
    text = unmet(bad, live=[make_evidence("c" * 64, BASE)], policy=Policy(guardrails="routed", min_guardrails=2))
    for expected in ("20 items", "gain over the base", "live version", "1 guardrails", "routed by", "carries no"):
        assert expected in text


# -- promote() through the gate -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    registry: Registry
    store: Store
    base: Base
    root: Path

    def add(self, seed: int, **changes: Any) -> int:
        """Publish an adapter with evidence that passes, but for `changes`."""
        folder = make_adapter(self.root / f"adapter-{seed}", "pocket", seed=seed)
        evidence = make_evidence(weights_digest(folder), self.base.fingerprint, **changes)
        return publish_folder(self.registry, self.store, "sql", folder, self.base, evidence=evidence).version.number


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    registry = Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", actor="tester")
    registry.create_route("sql")
    yield House(registry, Store(tmp_path / "store"), make_base(tmp_path / "pocket"), tmp_path)
    registry.close()


def test_a_passing_version_goes_live_and_the_numbers_stay_in_the_history(house: House) -> None:
    done = promote(house.registry, house.store, "sql", house.add(1))
    assert done.change.state.live == 1
    payload = done.change.event.payload
    assert payload["forced"] is False
    assert payload["gate"] == {"unmet": [], "numbers": {"items": 60.0, "gain_bound": 1.0, "guardrails": 1.0}}


def test_a_failing_version_stays_out_unless_forced_and_the_reason_stays_in_the_history(house: House) -> None:
    number = house.add(1, target=evaluation(adapter=0.0, file="a"))
    with pytest.raises(GateRefused) as caught:
        promote(house.registry, house.store, "sql", number)
    assert len(caught.value.unmet) == 1
    assert house.registry.route("sql").live is None
    done = promote(house.registry, house.store, "sql", number, forced="demo at noon")
    assert done.change.event.why == "demo at noon"
    gate: Any = done.change.event.payload["gate"]
    assert done.change.event.payload["forced"] is True
    assert gate["unmet"] == list(caught.value.unmet)


def test_evidence_filed_for_one_version_and_pointed_to_from_another_is_refused(house: House) -> None:
    house.add(1)
    house.add(2, target=evaluation(adapter=0.0, file="a"))
    stolen = house.registry.evidence_digests("sql", 1)[0]
    house.registry.add_evidence("sql", 2, stolen)  # around the check that attaching makes
    with pytest.raises(GateRefused, match="gain over the base"):
        promote(house.registry, house.store, "sql", 2)


def test_a_live_version_that_changes_while_the_evidence_is_read_is_judged_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.add(1)
    house.add(2, target=evaluation(adapter=0.5, file="a"))
    real = Registry.promote
    raced: list[int] = []

    def overtaken(self: Registry, name: str, number: int, **options: Any) -> Any:
        if not raced:
            raced.append(number)
            real(self, "sql", 1, forced="somebody else")
        return real(self, name, number, **options)

    monkeypatch.setattr(Registry, "promote", overtaken)
    with pytest.raises(GateRefused, match="difference to the live version"):
        promote(house.registry, house.store, "sql", 2)
    assert house.registry.route("sql").live == 1


def test_a_caller_with_an_expected_revision_is_told_of_the_conflict(house: House) -> None:
    number = house.add(1)
    with pytest.raises(Conflict, match="at revision 1, expected 7"):
        promote(house.registry, house.store, "sql", number, expected_revision=7)


def test_routed_guardrails_follow_the_classifier_that_is_live_in_the_registry(house: House) -> None:
    source = house.root / "classifier"
    source.mkdir()
    (source / "weights.npy").write_bytes(b"w")
    house.registry.change_route("sql", policy={"guardrails": "routed"})
    guardrails = (evaluation("g", routed_to="base", file="b"),)
    number = house.add(1, guardrails=guardrails, classifier_digest="c" * 64)
    with pytest.raises(GateRefused, match="the live one is none"):
        promote(house.registry, house.store, "sql", number)
    publish_classifier(house.registry, house.store, source, digest="c" * 64, summary={})
    promote_classifier(house.registry, 1)
    assert promote(house.registry, house.store, "sql", number).change.state.live == 1


# -- policy ---------------------------------------------------------------------------------------------------------


def test_every_problem_of_a_policy_is_named_with_the_known_keys() -> None:
    with pytest.raises(InvalidName) as caught:
        Policy.of({"min_item": 1, "min_items": "many", "min_gain": math.nan, "guardrails": "both", "on_disabled": 1})
    for expected in ("unknown policy key 'min_item'", "min_items is 'many'", "min_gain is nan", "guardrails is 'both'"):
        assert expected in caught.value.message
    assert "on_disabled is 1" in caught.value.message
    assert all(key in caught.value.hint for key in policy_keys())


@pytest.mark.parametrize("value", [-1, 1.5, True, None, [], {}, "1e3", "-1", "inf", "", 10**9, "9" * 5000])
def test_a_count_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(InvalidName, match="min_items is"):
        Policy.of({"min_items": value})


def test_policies_from_words_and_from_the_registry_are_the_same() -> None:
    words = parse_assignments(["min_items=10", "min_gain=0.1", "guardrails=routed"])
    stored = merge_policy({}, words)
    assert stored == {"min_items": 10, "min_gain": 0.1, "guardrails": "routed"}
    assert Policy.of(stored) == Policy(min_items=10, min_gain=0.1, guardrails="routed")


def test_an_empty_value_goes_back_to_the_default_and_unknown_keys_do_not_pass_that_way() -> None:
    assert merge_policy({"min_items": 10, "min_gain": 0.5}, parse_assignments(["min_items="])) == {"min_gain": 0.5}
    with pytest.raises(InvalidName, match="unknown policy key 'nonsense'"):
        merge_policy({}, parse_assignments(["nonsense="]))
    with pytest.raises(InvalidName, match="is no KEY=VALUE"):
        parse_assignments(["min_items"])


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)


@given(
    st.dictionaries(
        st.sampled_from(policy_keys()) | st.text(max_size=6), SCALAR | st.lists(SCALAR, max_size=2), max_size=5
    )
)
@settings(max_examples=200, deadline=None)
def test_any_mapping_is_a_policy_that_survives_json_or_an_invalid_name(stored: dict[str, object]) -> None:
    try:
        policy = Policy.of(stored)
    except InvalidName:
        return
    assert Policy.of(policy.to_json()) == policy
