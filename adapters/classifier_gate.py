"""The promotion gate of classifiers: a candidate's evidence against the live one's on the same items. Pure.

Everything is recomputed from item-level results, and every unmet condition is listed. Differences are paired by
item, in shares of items; bounds are one-sided at 95 % (`statistics.lower_bound`). A route is lost where its recall
falls by more than is allowed and chance is no excuse: the upper bound of its difference is below zero. With the 20
items that a route may have, a lower bound would refuse every change, and a point estimate two sentences lost: in a
refit of CLINC150 with five per cent more rows, one route in forty lost as many while the whole became better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from .classifier_evidence import ClassifierEvidence, DecidedItem
from .gate import Verdict
from .statistics import MIN_ITEMS, lower_bound, upper_bound

Pair = tuple[DecidedItem, DecidedItem]


@dataclass(frozen=True, slots=True)
class ClassifierPolicy:
    """What a classifier needs to take the live one's place.

    `min_items`: items that both were judged on. `max_loss`, `max_base_loss`: the bounds of the differences in
    accuracy and in base recall (rows that no route should take, kept on the base) must be at least minus this.
    `max_route_loss`: what a route's recall may fall by beyond chance, where it has `route_items` items or more.
    """

    min_items: int = 50
    max_loss: float = 0.02
    max_base_loss: float = 0.02
    max_route_loss: float = 0.05
    route_items: int = 20


def judge_classifier(
    candidate: Sequence[ClassifierEvidence],
    live: Sequence[ClassifierEvidence] | None,
    policy: ClassifierPolicy,
) -> Verdict:
    """Judge by the candidate's newest evidence on each set of rows that the live one has evidence on too.

    What is lost on any of them counts, so that filing more never hides it. A set with fewer common items than the
    gate asks for says nothing where another has enough; base recall must be bounded on one of them at least.
    Evidence with an item that the candidate was fitted on does not count. `live` is the live classifier's evidence,
    `None` where none is live: the first has nothing to be compared with, and needs none. Live evidence on rows that
    the live classifier was fitted on only makes the gate stricter.
    """
    unseen = [one for one in reversed(candidate) if not one.seen]
    numbers = _own_numbers(unseen[0].items) if unseen else {}
    if live is None:
        return Verdict((), numbers)
    if not unseen:
        return Verdict(("the classifier has no evidence on rows that it was not fitted on",), numbers)
    comparisons = _comparisons(unseen, live)
    if not comparisons:
        return Verdict((f"the live classifier has no evidence on the same items of {unseen[0].name}",), numbers)
    counted = [one for one in comparisons if len(one.pairs) >= policy.min_items] or comparisons[:1]
    numbers = {**_own_numbers(counted[0].mine.items), "live_seen": float(counted[0].theirs.seen)}
    missing = _missing_problems(counted, policy)
    lost = [*_loss_problems(counted[0], policy, numbers)]
    for older in counted[1:]:
        lost += [f"{problem} ({older.mine.name})" for problem in _loss_problems(older, policy, {})]
    return Verdict((*missing, *lost), {**numbers, "missing": float(len(missing))})


@dataclass(frozen=True, slots=True)
class _Comparison:
    mine: ClassifierEvidence
    theirs: ClassifierEvidence
    pairs: tuple[Pair, ...]

    @property
    def negatives(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair[0].is_negative]


def _comparisons(mine: Sequence[ClassifierEvidence], live: Sequence[ClassifierEvidence]) -> list[_Comparison]:
    """The first of `mine` (newest first) on each set of rows, with the newest of the live one's on the same."""
    newest: dict[tuple[str, str], ClassifierEvidence] = {}
    for one in mine:
        newest.setdefault((one.source, one.rows_digest), one)
    found = []
    for one in newest.values():
        theirs = next((other for other in reversed(live) if _comparable(one, other)), None)
        if theirs is not None:
            known = theirs.by_key
            pairs = tuple((item, known[key]) for key, item in one.by_key.items() if key in known)
            found.append(_Comparison(one, theirs, pairs))
    return found


def _comparable(one: ClassifierEvidence, other: ClassifierEvidence) -> bool:
    """Two fits hold out their own rows, of which many are the same; a file is the same or another."""
    return one.source == other.source and (one.source == "held_out" or one.rows_digest == other.rows_digest)


def _own_numbers(items: Sequence[DecidedItem]) -> dict[str, float]:
    negatives = [item for item in items if item.is_negative]
    numbers = {"items": float(len(items))}
    if items:
        numbers["accuracy"] = fmean(item.is_right for item in items)
    if negatives:
        numbers["base_recall"] = fmean(item.is_right for item in negatives)
    return numbers


def _missing_problems(counted: Sequence[_Comparison], policy: ClassifierPolicy) -> list[str]:
    """What more evidence would mend."""
    first, problems = counted[0], []
    if len(first.pairs) < policy.min_items:
        asked = f"the gate asks for {policy.min_items}"
        problems.append(f"{len(first.pairs)} items of {first.mine.name} were judged by both, {asked}")
    for what, counts in (
        ("accuracy", [len(one.pairs) for one in counted]),
        ("base recall", [len(one.negatives) for one in counted]),
    ):
        if max(counts) < MIN_ITEMS:
            problems.append(
                f"{what}: {max(counts)} items of that kind bound nothing, the gate asks for {MIN_ITEMS} at least"
            )
    return problems


def _loss_problems(found: _Comparison, policy: ClassifierPolicy, numbers: dict[str, float]) -> list[str]:
    pairs, negatives = found.pairs, found.negatives
    numbers |= {"common_items": float(len(pairs)), "common_base_items": float(len(negatives))}
    return [
        *_bound_problems("accuracy", pairs, policy.max_loss, numbers),
        *_bound_problems("base recall", negatives, policy.max_base_loss, numbers),
        *_route_problems(pairs, policy, numbers),
    ]


def _bound_problems(what: str, pairs: Sequence[Pair], allowed: float, numbers: dict[str, float]) -> list[str]:
    bound = lower_bound(_gains(pairs))
    key = what.replace(" ", "_")
    if pairs:
        numbers |= {f"live_{key}": fmean(theirs.is_right for _, theirs in pairs)}
        numbers |= {f"common_{key}": fmean(mine.is_right for mine, _ in pairs)}
    if math.isfinite(bound):
        numbers[f"{key}_bound"] = bound
    if not math.isfinite(bound) or bound >= -allowed:
        return []
    return [
        f"{what}: the difference to the live classifier is at least {bound:+.4f} with 95 % confidence "
        f"(n = {len(pairs)}), the gate asks for {-allowed:+g} or better"
    ]


def _route_problems(pairs: Sequence[Pair], policy: ClassifierPolicy, numbers: dict[str, float]) -> list[str]:
    rows: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if not pair[0].is_negative:
            rows[pair[0].label].append(pair)
    gains = {label: _gains(own) for label, own in rows.items() if len(own) >= policy.route_items}
    if gains:
        numbers["worst_route_difference"] = min(map(fmean, gains.values()))
    return [
        f"route {label}: recall falls by {-fmean(own):.3f} on {len(own)} items, by {-upper_bound(own):.3f} at least "
        f"with 95 % confidence, and the gate allows {policy.max_route_loss:g}"
        for label, own in sorted(gains.items())
        if round(-fmean(own), 9) > policy.max_route_loss and upper_bound(own) < 0
    ]


def _gains(pairs: Sequence[Pair]) -> list[float]:
    return [float(mine.is_right) - float(theirs.is_right) for mine, theirs in pairs]
