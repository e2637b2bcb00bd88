"""What the command line says of collisions: for `route create`, `route examples add` and `classifier fit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from adapters.classifiers import live_classifier
from adapters.errors import Refused
from adapters.example_checks import DEFAULT_MAX_LOSS, Findings
from adapters.output import note
from adapters.registry import Registry
from adapters.rows import LabelledText

from ..classify.collisions import Collisions, NewcomerRecall, RouteLoss, Taken, collisions

SHOWN_ROUTES = 5
SHOWN_SENTENCES = 5
SHOWN_CHARACTERS = 120
WORTH_SAYING = 0.5  # of a newcomer's own examples


def check_collisions(known: Sequence[LabelledText], added: Sequence[LabelledText], *, max_loss: float) -> Findings:
    """The check of examples that this room brings (`adapters.example_checks.ExampleCheck`)."""
    return findings(collisions(known, added), max_loss)


def findings(found: Collisions, max_loss: float) -> Findings:
    """`found` in words; refusals are the routes that lose more than `max_loss`."""
    lines = [line for loss in found.losses[:SHOWN_ROUTES] for line in _loss_lines(loss)]
    if len(found.losses) > SHOWN_ROUTES:
        lines.append(f"and {len(found.losses) - SHOWN_ROUTES} more routes lose less")
    lines += [line for one in found.newcomers for line in _newcomer_lines(one)]
    return Findings(tuple(lines), tuple(_refusal(one, max_loss) for one in found.over(max_loss)))


def check_fit(
    registry: Registry, rows: Sequence[LabelledText], *, forced: str | None, promote: bool
) -> dict[str, object] | None:
    """Collisions of the labels that the live classifier does not know, on stderr and as JSON values.

    `None` where it knows them all, or there is none. Raises `Refused` where it is to be promoted and a route loses
    more than `DEFAULT_MAX_LOSS`, unless `forced`.
    """
    live = live_classifier(registry)
    routes = live.summary.get("routes") if live else None
    if not isinstance(routes, list):
        return None
    old = {*routes, "base", "oos"}
    newcomers = [row for row in rows if row.label not in old]
    if not newcomers:
        return None
    found = collisions([row for row in rows if row.label in old], newcomers)
    said = findings(found, DEFAULT_MAX_LOSS)
    for line in said.notes:
        note(line)
    if promote and said.refusals and forced is None:
        raise Refused("; ".join(said.refusals), hint='change the examples, or overrule with --force "why"')
    return asdict(found)


def _refusal(loss: RouteLoss, max_loss: float) -> str:
    count = f"{len(loss.stolen)} of {loss.rows}"
    return f"{loss.route} would lose {loss.loss:.0%} of its examples ({count}), more than {max_loss:.0%}"


def _loss_lines(loss: RouteLoss) -> list[str]:
    head = f"{loss.route}: recall of its examples {loss.recall_before:.2f} -> {loss.recall_after:.2f}, it would lose"
    return [head, *_sentences(loss.stolen, "to")]


def _newcomer_lines(one: NewcomerRecall) -> list[str]:
    if one.recall is None or one.recall >= WORTH_SAYING:
        return []
    return [
        f"{one.route}: would get only {one.recall:.0%} of its own examples, others keep",
        *_sentences(one.kept, "in"),
    ]


def _sentences(taken: Sequence[Taken], word: str) -> list[str]:
    lines = [f"  {word} {one.winner}: {_short(one.text)}" for one in taken[:SHOWN_SENTENCES]]
    more = len(taken) - SHOWN_SENTENCES
    return [*lines, f"  and {more} more"] if more > 0 else lines


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
