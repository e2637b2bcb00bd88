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
    """Judge by the candidate's newest evidence on the same items as evidence of the live one.

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
    both = ((one, other) for one in unseen for other in reversed(live) if _comparable(one, other))
    mine, theirs = next(both, (None, None))
    if mine is None or theirs is None:
        return Verdict((f"the live classifier has no evidence on the same items of {unseen[0].name}",), numbers)
    known = theirs.by_key
    pairs = [(item, known[key]) for key, item in mine.by_key.items() if key in known]
    numbers = {**_own_numbers(mine.items), "live_seen": float(theirs.seen)}
    return Verdict(tuple(_loss_problems(mine.name, pairs, policy, numbers)), numbers)


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


def _loss_problems(name: str, pairs: Sequence[Pair], policy: ClassifierPolicy, numbers: dict[str, float]) -> list[str]:
    problems = []
    if len(pairs) < policy.min_items:
        problems.append(f"{len(pairs)} items of {name} were judged by both, the gate asks for {policy.min_items}")
    negatives = [pair for pair in pairs if pair[0].is_negative]
    numbers |= {"common_items": float(len(pairs)), "common_base_items": float(len(negatives))}
    problems += _bound_problems("accuracy", pairs, policy.max_loss, numbers)
    problems += _bound_problems("base recall", negatives, policy.max_base_loss, numbers)
    return problems + _route_problems(pairs, policy, numbers)


def _bound_problems(what: str, pairs: Sequence[Pair], allowed: float, numbers: dict[str, float]) -> list[str]:
    bound = lower_bound(_gains(pairs))
    key = what.replace(" ", "_")
    if pairs:
        numbers |= {f"live_{key}": fmean(theirs.is_right for _, theirs in pairs)}
        numbers |= {f"common_{key}": fmean(mine.is_right for mine, _ in pairs)}
    if math.isfinite(bound):
        numbers[f"{key}_bound"] = bound
    if bound >= -allowed:
        return []
    if not math.isfinite(bound):
        return [f"{what}: {len(pairs)} items of that kind bound nothing, the gate asks for {MIN_ITEMS} at least"]
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
