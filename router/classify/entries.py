"""Which exemplars memory holds: those that speak for their label, and a few of the others as their rivals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapters.exemplars import Exemplar
from adapters.rows import text_digest

IsSeen = Callable[[str, str], bool]
RIVALS_PER_LABEL = 5
MAX_RIVALS = 2_000
CORRECTIONS = ("correction:", "feedback:")  # how the source of a correction begins


@dataclass(frozen=True, slots=True)
class Entry:
    """An exemplar without its text. `seen` by the classifier's fit: it is a rival and speaks for nobody.

    `rank` orders equal ones: a correction is over an example, a later one over an earlier one.
    """

    label: str
    text_digest: str
    source: str
    seen: bool
    rank: int


def entries_of(exemplars: Sequence[Exemplar], is_seen: IsSeen) -> list[Entry]:
    """In the order of `exemplars`. What `is_seen(label, text)` the fit has seen speaks no more, unless it corrects."""
    return [_entry(one, at, len(exemplars), is_seen) for at, one in enumerate(exemplars)]


def _entry(exemplar: Exemplar, at: int, count: int, is_seen: IsSeen) -> Entry:
    corrects = exemplar.source.startswith(CORRECTIONS)
    seen = not corrects and is_seen(exemplar.label, exemplar.text)
    return Entry(exemplar.label, text_digest(exemplar.text), exemplar.source, seen, at + (count if corrects else 0))


def choose_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Those that speak and a few rivals of each label, by label; none where none speaks."""
    speaking = [entry for entry in entries if not entry.seen]
    if not speaking:
        return []
    rivals: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.text_digest):  # any few, and always the same
        if entry.seen:
            rivals[entry.label].append(entry)
    each = max(1, min(RIVALS_PER_LABEL, MAX_RIVALS // max(1, len(rivals))))
    few = [entry for label in sorted(rivals)[:MAX_RIVALS] for entry in rivals[label][:each]]
    return sorted(speaking + few, key=lambda entry: (entry.label, entry.rank))
