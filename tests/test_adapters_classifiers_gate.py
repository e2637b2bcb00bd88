"""The promotion gate of classifiers: worked examples, what it refuses to believe, and where its evidence is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adapters.classifier_evidence import ClassifierEvidence, DecidedItem, distinct_items, parse_classifier_evidence
from adapters.classifier_gate import ClassifierPolicy, judge_classifier
from adapters.classifier_promotion import promote_through_gate
from adapters.classifiers import (
    add_classifier_evidence,
    classifier_evidence,
    classifier_version,
    promote_classifier,
    publish_classifier,
)
from adapters.errors import BadInput, Conflict, GateRefused, NotFound, Refused, StoreCorrupted
from adapters.home import Home
from adapters.registry import Registry
from adapters.statistics import mcnemar_p
from adapters.store import Store

MINE, LIVE, FILE = "a" * 64, "b" * 64, "f" * 64
POLICY = ClassifierPolicy()


def items(*groups: tuple[str, int, int], seen: bool = False) -> tuple[DecidedItem, ...]:
    """Rows by (label, right, wrong): a wrong row of a route goes to the base, one of the base to `sql`."""
    found = []
    for label, right, wrong in groups:
        good, bad = (None, "sql") if label == "base" else (label, None)
        found += [
            DecidedItem(f"{label}-{at}", label, good if at < right else bad, 1.0, seen) for at in range(right + wrong)
        ]
    return tuple(found)


def evidence(decided: Sequence[DecidedItem], classifier: str = MINE, *, file: str = FILE) -> ClassifierEvidence:
    return ClassifierEvidence(classifier, "file", "held.jsonl", file, tuple(decided))


def unmet(mine: Sequence[DecidedItem], live: Sequence[DecidedItem], policy: ClassifierPolicy = POLICY) -> str:
    return "; ".join(judge_classifier([evidence(mine)], [evidence(live, LIVE)], policy).unmet)


GOOD = items(("sql", 30, 0), ("booking", 30, 0), ("base", 20, 0))


def test_a_classifier_that_decides_like_the_live_one_passes() -> None:
    assert unmet(GOOD, GOOD) == ""


def test_the_first_classifier_needs_no_comparison() -> None:
    assert judge_classifier([], None, POLICY).passed
    found = judge_classifier([evidence(items(("sql", 3, 1), ("base", 1, 1)))], None, POLICY)
    assert found.passed
    assert found.numbers == {"items": 6, "accuracy": 4 / 6, "base_recall": 0.5}


def test_without_evidence_or_without_the_live_ones_there_is_nothing_to_go_by() -> None:
    assert "has no evidence" in judge_classifier([], [], POLICY).unmet[0]
    other = evidence(GOOD, LIVE, file="e" * 64)
    assert "live classifier has no evidence" in judge_classifier([evidence(GOOD)], [other], POLICY).unmet[0]


def test_evidence_on_rows_that_were_fitted_on_does_not_count() -> None:
    flattering = evidence(items(("sql", 60, 0), ("base", 20, 0), seen=True))
    found = judge_classifier([flattering], [evidence(GOOD, LIVE)], POLICY)
    assert "was not fitted on" in found.unmet[0]
    older = evidence(GOOD)
    assert judge_classifier([older, flattering], [evidence(GOOD, LIVE)], POLICY).passed


def test_the_newest_evidence_that_the_live_one_has_too_is_what_counts() -> None:
    alone, worse = evidence(GOOD, file="e" * 64), evidence(items(("sql", 10, 50), ("base", 20, 0)))
    live = [evidence(items(("sql", 60, 0), ("base", 20, 0)), LIVE)]
    assert "accuracy" in judge_classifier([worse, alone], live, POLICY).unmet[0]


def test_what_was_lost_on_one_set_of_rows_is_not_hidden_by_another() -> None:
    worse = evidence(items(("sql", 30, 30), ("base", 20, 0)))
    fine = items(("sql", 60, 0), ("base", 20, 0))
    live = [evidence(fine, LIVE), evidence(fine, LIVE, file="e" * 64)]
    for mine in ([worse, evidence(fine, file="e" * 64)], [evidence(fine, file="e" * 64), worse]):
        assert any("accuracy" in problem for problem in judge_classifier(mine, live, POLICY).unmet)
    mended = [worse, evidence(fine, file="e" * 64), evidence(fine)]
    assert judge_classifier(mended, live, POLICY).passed  # of one set of rows, the newest counts


def test_a_set_that_is_too_small_to_tell_stands_in_the_way_of_none_that_is_not() -> None:
    few, base_less = items(("sql", 5, 5)), items(("sql", 100, 0))
    live = [evidence(GOOD, LIVE), evidence(few, LIVE, file="e" * 64), evidence(base_less, LIVE, file="d" * 64)]
    mine = [evidence(GOOD), evidence(few, file="e" * 64), evidence(base_less, file="d" * 64)]
    assert judge_classifier(mine, live, POLICY).passed
    found = judge_classifier(mine[1:], live, POLICY).unmet
    assert found == ("base recall: 0 items of that kind bound nothing, the gate asks for 10 at least",)


def test_live_evidence_on_rows_that_the_live_one_was_fitted_on_counts() -> None:
    """It only flatters the live one, so the gate gets stricter; the verdict says how many there were."""
    live = evidence(items(("sql", 30, 0), ("booking", 30, 0), ("base", 20, 0), seen=True), LIVE)
    found = judge_classifier([evidence(GOOD)], [live], POLICY)
    assert found.passed
    assert found.numbers["live_seen"] == 80


def test_the_bound_is_students_of_the_paired_differences() -> None:
    """Expected: scipy's one-sided t bound; tolerance is that of the quantile's expansion."""
    mine = items(("sql", 27, 3), ("booking", 30, 0), ("base", 40, 0))
    live = items(("sql", 30, 0), ("booking", 28, 2), ("base", 40, 0))
    gains = np.array([-1.0] * 3 + [1.0] * 2 + [0.0] * 95)
    expected = float(gains.mean() - stats.t.ppf(0.95, 99) * stats.sem(gains))
    found = judge_classifier([evidence(mine)], [evidence(live, LIVE)], POLICY)
    assert found.numbers["accuracy_bound"] == pytest.approx(expected, abs=1e-4)
    assert expected < -POLICY.max_loss
    assert f"accuracy: the difference to the live classifier is at least {expected:+.3f}" in found.unmet[0]
    lenient = ClassifierPolicy(max_loss=-expected + 1e-3, max_route_loss=1)
    assert judge_classifier([evidence(mine)], [evidence(live, LIVE)], lenient).passed


def test_base_recall_may_not_be_paid_for_with_accuracy() -> None:
    mine = items(("sql", 400, 0), ("base", 35, 5))
    live = items(("sql", 370, 30), ("base", 40, 0))
    found = unmet(mine, live)
    assert "base recall" in found
    assert "accuracy" not in found


def test_base_recall_is_not_taken_for_granted_where_no_row_tells_it() -> None:
    rows = items(("sql", 60, 0), ("base", 9, 0))
    assert "base recall: 9 items of that kind bound nothing" in unmet(rows, rows)


def test_fewer_items_than_the_policy_asks_for_are_refused() -> None:
    rows = items(("sql", 39, 0), ("base", 10, 0))
    assert "49 items of held.jsonl were judged by both, the gate asks for 50" in unmet(rows, rows)
    assert unmet(rows, rows, ClassifierPolicy(min_items=49)) == ""


@pytest.mark.parametrize(
    ("rows", "lost", "refused"),
    [
        (20, 3, True),  # 0.15 lost, scipy's upper bound of the difference: -0.15 + 1.729 · 0.0819 = -0.008
        (20, 2, False),  # 0.10 lost, which may be chance: -0.10 + 1.729 · 0.0688 = +0.019
        (400, 20, False),  # 0.05 lost beyond doubt, and allowed
        (400, 21, True),
        (19, 5, False),  # too few to judge the route by itself
    ],
)
def test_a_route_may_lose_a_twentieth_of_its_recall_and_what_chance_takes(rows: int, lost: int, refused: bool) -> None:
    others = (("sql", 8000, 0), ("base", 100, 0))
    found = unmet(items(("regex", rows - lost, lost), *others), items(("regex", rows, 0), *others))
    assert ("route regex: recall falls by" in found) == refused
    assert bool(found) == refused


def test_every_unmet_condition_is_listed() -> None:
    mine = items(("sql", 10, 20), ("base", 5, 5))
    live = items(("sql", 30, 0), ("base", 10, 0))
    found = judge_classifier([evidence(mine)], [evidence(live, LIVE)], POLICY).unmet
    assert [problem.split(":")[0].split(" ")[0] for problem in found] == ["40", "accuracy", "base", "route"]


def test_held_out_evidence_is_compared_on_the_rows_both_held_out() -> None:
    mine = ClassifierEvidence(MINE, "held_out", "held-out rows", "1" * 64, items(("sql", 40, 0), ("new", 9, 0)))
    live = ClassifierEvidence(LIVE, "held_out", "held-out rows", "2" * 64, items(("sql", 30, 0), ("base", 20, 0)))
    assert judge_classifier([mine], [live], POLICY).numbers["common_items"] == 30


@given(
    st.lists(
        st.builds(
            DecidedItem,
            st.text(min_size=1),
            st.text(min_size=1),
            st.none() | st.text(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.booleans(),
        )
    )
)
@settings(max_examples=50, deadline=None)
def test_evidence_survives_its_own_writing(decided: list[DecidedItem]) -> None:
    written = evidence(distinct_items(decided))
    try:
        content = written.to_json().encode()
    except UnicodeEncodeError:
        return
    assert parse_classifier_evidence(content) == written


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"schema":1', '"schema":2'),
        ('"source":"file"', '"source":"hearsay"'),
        ('"score":1.0', '"score":NaN'),
        ('"row":"sql-1"', '"row":"sql-0"'),
        ('"label":"sql"', '"label":""'),
        ('"items":[', '"items":[3,'),
        ("{", "["),
    ],
)
def test_malformed_evidence_is_refused(old: str, new: str) -> None:
    content = evidence(items(("sql", 3, 0))).to_json()
    assert old in content
    with pytest.raises(BadInput):
        parse_classifier_evidence(content.replace(old, new, 1))


def test_mcnemars_p_is_the_exact_binomial_one() -> None:
    """Expected: scipy's two-sided binomial test; both are exact, so only rounding may differ."""
    for fixed, broken in [(3, 0), (5, 5), (10, 3), (1, 12), (800, 700)]:
        expected = float(stats.binomtest(fixed, fixed + broken, 0.5).pvalue)
        assert math.isclose(mcnemar_p(fixed, broken), expected, rel_tol=1e-9)
    assert mcnemar_p(0, 0) == 1


# -- in the registry and the store ------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(Home.at(tmp_path / "home").registry_url)
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path, registry: Registry) -> Store:
    """With classifiers 1 and 2 published, the first of them live."""
    made = Store(tmp_path / "store")
    for number, digest in enumerate((LIVE, MINE), 1):
        folder = tmp_path / f"classifier-{number}"
        folder.mkdir()
        (folder / "weights").write_text(digest)
        publish_classifier(registry, made, folder, digest=digest, summary={})
    promote_classifier(registry, 1)
    return made


def test_a_promotion_passes_the_gate_and_is_recorded_with_its_numbers(registry: Registry, store: Store) -> None:
    with pytest.raises(GateRefused, match="has no evidence") as refused:
        promote_through_gate(registry, store, 2, policy=POLICY)
    assert len(refused.value.unmet) == 1
    add_classifier_evidence(registry, store, classifier_version(registry, 2), evidence(GOOD))
    with pytest.raises(GateRefused, match="live classifier has no evidence"):
        promote_through_gate(registry, store, 2, policy=POLICY)
    add_classifier_evidence(registry, store, classifier_version(registry, 1), evidence(GOOD, LIVE))
    done = promote_through_gate(registry, store, 2, policy=POLICY)
    assert (done.event.number, done.replaced, registry.classifier_state().live) == (2, 1, 2)
    gate = done.event.payload["gate"]
    assert isinstance(gate, dict)
    assert (gate["unmet"], gate["forced"], gate["numbers"]["common_items"]) == ([], False, 80)


def test_a_forced_promotion_stays_in_the_history_with_its_reason(registry: Registry, store: Store) -> None:
    done = promote_through_gate(registry, store, 2, policy=POLICY, forced="the old one is on fire")
    event = registry.events()[-1]
    assert (event.why, event.payload["gate"]) == (
        "the old one is on fire",
        {"unmet": list(done.verdict.unmet), "numbers": {}, "forced": True},
    )


def test_the_same_evidence_again_changes_nothing(registry: Registry, store: Store) -> None:
    version = classifier_version(registry, 2)
    digest = add_classifier_evidence(registry, store, version, evidence(GOOD))
    serial = registry.serial()
    assert add_classifier_evidence(registry, store, version, evidence(GOOD)) == digest
    assert registry.serial() == serial
    assert classifier_evidence(registry, store, version) == [evidence(GOOD)]


def test_evidence_that_is_filed_again_is_no_newer_than_it_was(registry: Registry, store: Store) -> None:
    version = classifier_version(registry, 2)
    bad = evidence(items(("sql", 1, 59)))
    for one in (evidence(GOOD), bad, evidence(GOOD)):
        add_classifier_evidence(registry, store, version, one)
    assert classifier_evidence(registry, store, version) == [evidence(GOOD), bad]


def test_the_hint_says_what_would_mend_it(registry: Registry, store: Store) -> None:
    def hint(mine: tuple[DecidedItem, ...], live: tuple[DecidedItem, ...], file: str) -> str:
        for number, digest, decided in ((1, LIVE, live), (2, MINE, mine)):
            one = evidence(decided, digest, file=file * 64)
            add_classifier_evidence(registry, store, classifier_version(registry, number), one)
        with pytest.raises(GateRefused) as refused:
            promote_through_gate(registry, store, 2, policy=POLICY)
        return refused.value.hint

    few = items(("sql", 20, 0))
    with pytest.raises(GateRefused) as refused:
        promote_through_gate(registry, store, 2, policy=POLICY)
    more = "`branchline classifier eval FILE --classifier 2 --evidence`"
    assert more in refused.value.hint
    add_classifier_evidence(registry, store, classifier_version(registry, 2), evidence(few))
    with pytest.raises(GateRefused) as refused:  # a live one of an older build can have no evidence
        promote_through_gate(registry, store, 2, policy=POLICY)
    assert refused.value.hint.endswith("fit again and promote with --force")
    assert more in hint(few, few, "1")
    assert "classifier diff live 2 FILE" in hint(items(("sql", 0, 30), ("base", 20, 0)), GOOD, "2")


def test_evidence_about_another_classifier_is_refused(registry: Registry, store: Store) -> None:
    with pytest.raises(Refused, match="speaks of classifier bbbb"):
        add_classifier_evidence(registry, store, classifier_version(registry, 2), evidence(GOOD, LIVE))
    with pytest.raises(NotFound):
        classifier_version(registry, 3)


def test_altered_evidence_is_not_believed(registry: Registry, store: Store) -> None:
    version = classifier_version(registry, 2)
    digest = add_classifier_evidence(registry, store, version, evidence(items(("sql", 1, 9))))
    file = store.root / "classifier" / "evidence" / f"{digest}.json"
    file.chmod(0o600)
    file.write_text(file.read_text().replace('"route":null', '"route":"sql"'))
    with pytest.raises(StoreCorrupted):
        promote_through_gate(registry, store, 2, policy=POLICY)


def test_a_promotion_judged_against_another_live_classifier_is_a_conflict(registry: Registry, store: Store) -> None:
    judged = registry.classifier_state()
    promote_classifier(registry, 2)
    with pytest.raises(Conflict):
        promote_classifier(registry, 1, expected=judged)


def test_a_classifier_that_goes_live_while_the_evidence_is_read_is_what_counts(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    """Number 3 goes live between the verdict and the promotion; compared with it, number 2 is worse."""
    publish_classifier(registry, store, tmp_path / "classifier-1", digest="c" * 64, summary={})
    worse, better = items(("sql", 30, 30), ("base", 20, 0)), items(("sql", 60, 0), ("base", 20, 0))
    for number, digest, decided in ((1, LIVE, worse), (2, MINE, worse), (3, "c" * 64, better)):
        add_classifier_evidence(registry, store, classifier_version(registry, number), evidence(decided, digest))

    class Interrupted(Store):
        def classifier_evidence(self, digest: str) -> ClassifierEvidence:
            if registry.classifier_state().live == 1:
                promote_classifier(registry, 3)
            return super().classifier_evidence(digest)

    with pytest.raises(GateRefused, match="route sql: recall falls by"):
        promote_through_gate(registry, Interrupted(store.root), 2, policy=POLICY)
    assert registry.classifier_state().live == 3
