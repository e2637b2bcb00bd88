"""What another classifier would change: decision against decision, for the same texts. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.statistics import mcnemar_p

from .classifier import BASE


@dataclass(frozen=True, slots=True)
class Judged:
    """Where one text goes by the one classifier and by the other (`base` or a route), and its label where known."""

    before: str
    after: str
    label: str | None = None

    @property
    def wanted(self) -> str | None:
        return BASE if self.label in NEGATIVE_LABELS else self.label

    @property
    def is_fixed(self) -> bool:
        return self.label is not None and self.before != self.wanted == self.after

    @property
    def is_broken(self) -> bool:
        return self.label is not None and self.before == self.wanted != self.after


@dataclass(frozen=True, slots=True)
class Move:
    """Texts that go from `before` to `after`; `places` are theirs, `fixed` and `broken` count those with a label."""

    before: str
    after: str
    places: tuple[int, ...]
    fixed: int
    broken: int


@dataclass(frozen=True, slots=True)
class RouteShare:
    """How many texts `route` (or the base) takes before and after, and how many it gains and loses on the way."""

    route: str
    before: int
    after: int
    gained: int
    lost: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """On the rows with a label: accuracy before and after, what was fixed and broken, McNemar's exact p."""

    rows: int
    before: float
    after: float
    fixed: int
    broken: int
    p: float


@dataclass(frozen=True, slots=True)
class Differences:
    """`moves` and `routes`, the largest first; `labelled` is `None` where no row has a label."""

    rows: int
    moved: int
    moves: tuple[Move, ...]
    routes: tuple[RouteShare, ...]
    labelled: Agreement | None


def find_differences(rows: Sequence[Judged]) -> Differences:
    """The places in `rows` stand for the texts."""
    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row.before != row.after:
            places[row.before, row.after].append(place)
    moves = [
        Move(*ends, tuple(found), sum(rows[at].is_fixed for at in found), sum(rows[at].is_broken for at in found))
        for ends, found in places.items()
    ]
    moves.sort(key=lambda move: (-len(move.places), move.before, move.after))
    return Differences(len(rows), sum(map(len, places.values())), tuple(moves), _shares(rows), _agreement(rows))


def _shares(rows: Sequence[Judged]) -> tuple[RouteShare, ...]:
    before, after = Counter(row.before for row in rows), Counter(row.after for row in rows)
    gained = Counter(row.after for row in rows if row.before != row.after)
    lost = Counter(row.before for row in rows if row.before != row.after)
    names = sorted(before | after, key=lambda name: (-max(before[name], after[name]), name))
    return tuple(RouteShare(name, before[name], after[name], gained[name], lost[name]) for name in names)


def _agreement(rows: Sequence[Judged]) -> Agreement | None:
    labelled = [row for row in rows if row.label is not None]
    if not labelled:
        return None
    fixed, broken = sum(row.is_fixed for row in labelled), sum(row.is_broken for row in labelled)
    right = sum(row.before == row.wanted for row in labelled)
    count = len(labelled)
    return Agreement(count, right / count, (right + fixed - broken) / count, fixed, broken, mcnemar_p(fixed, broken))
