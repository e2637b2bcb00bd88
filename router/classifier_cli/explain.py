"""`explain`: where a text would be routed, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from adapters.classifiers import live_classifier
from adapters.command import open_home
from adapters.errors import NotFound
from adapters.exemplars import Exemplars, exemplars_of
from adapters.home import Home, home_options
from adapters.output import json_option, print_json, print_table, shortened

from ..commands.encoder_flags import DEFAULT_PRECISION, encoder_option
from .choice import LIVE, Chosen, choose_classifier, classifier_option, is_folder

if TYPE_CHECKING:
    from ..classify.encoding import Encoder
    from .explanation import Explained

LABELS = 5


@click.command()
@click.argument("text")
@click.option("--earlier", multiple=True, help="An earlier user turn of the conversation; repeat it, newest first.")
@classifier_option
@encoder_option
@json_option
@home_options
def explain(home: Home, text: str, earlier: tuple[str, ...], named: str, encoder: str | None, as_json: bool) -> None:
    """Say where a gateway would send TEXT, and why.

    With a folder as --classifier that classifier alone is asked, and neither memory nor the state of routes.
    """
    from ..classify.judge import Judge
    from ..classify.memory import Memory
    from .explanation import explain_turns

    registry = None if is_folder(named) else open_home(home)[0]
    exemplars = Exemplars(None, ()) if registry is None else exemplars_of(registry)
    is_missing = registry is not None and named == LIVE and live_classifier(registry) is None
    if is_missing and not exemplars.rows:
        raise NotFound("no classifier is live", hint="run `branchline classifier fit --promote`")
    chosen = None if is_missing else choose_classifier(home, named, encoder)
    reading = (chosen.encoder if chosen else None) or _beside(home, encoder)
    classifier = chosen.classifier if chosen else None
    is_seen = classifier.has_row if classifier else lambda _label, _text: False
    memory = Memory.build(exemplars.rows, is_seen=is_seen, encoder=reading)
    found = explain_turns([text, *earlier], Judge(classifier, memory), exemplars.rows, reading, registry)
    if as_json:
        print_json(_document(found, chosen, exemplars.digest))
    else:
        _print(found, chosen, exemplars)


def _beside(home: Home, source: str | None) -> Encoder | None:
    """As in a gateway: memory reads with an encoder also where the classifier has none."""
    if source is None:
        return None
    from ..classify.encoder.opening import encoder_cache, open_encoder

    return open_encoder(source, precision=DEFAULT_PRECISION, cache=encoder_cache(home))


def _document(found: Explained, chosen: Chosen | None, exemplars_digest: str | None) -> dict[str, object]:
    said = asdict(found.classifier) if found.classifier else {}
    return {
        "route": found.route,
        "version": found.version,
        "because": found.because,
        "decided_by": _decider(found),
        "turn": found.turn,
        "classifier": chosen.classifier.digest if chosen else None,
        "number": chosen.number if chosen else None,
        "exemplars": exemplars_digest,
        **said,
        "scores": asdict(found.scores),
        "memory": asdict(found.memory) if found.memory else None,
        "nearest": [asdict(one) for one in found.nearest],
    }


def _decider(found: Explained) -> str:
    return "memory" if found.scores.exemplar is not None else "classifier"


def _print(found: Explained, chosen: Chosen | None, exemplars: Exemplars) -> None:
    click.echo(_headline(found))
    facts: list[list[object]] = [
        [f"classifier {chosen.name}" if chosen else "no classifier", found.classifier and found.classifier.reason],
        [f"memory of {len(exemplars.rows)} exemplars ({(exemplars.digest or 'none')[:16]})", _memory_line(found)],
        ["its exemplar", found.memory and shortened(found.memory.text)],
        ["decision", _decider(found) + (f", {found.turn} turns back" if found.turn else "")],
    ]
    _section(["judged by", "what it says"], facts)
    if found.classifier:
        shares = list(found.classifier.probabilities.items())[:LABELS]
        _section(["label", "probability"], [[label, f"{share:.4f}"] for label, share in shares])
    cells: list[list[object]] = [
        [f"{one.similarity:.3f}", one.label, one.source, "yes" if one.speaks else "fitted", shortened(one.text)]
        for one in found.nearest
    ]
    _section(["similarity", "label", "source", "speaks", "nearest exemplars"], cells)
    if found.classifier:
        _section(["term", f"for {found.classifier.scores.route}"], _term_lines(found))


def _headline(found: Explained) -> str:
    route = found.route
    if found.version is not None:
        return f"{route}@{found.version} answers"
    if found.because == "route_disabled":
        return f"the base answers: route {route} is disabled"
    if found.because == "no_live_version":
        return f"the base answers: route {route} has no live version"
    return f"{route} answers" if route else "the base answers"


def _memory_line(found: Explained) -> str | None:
    said = found.memory
    if said is None:
        return None
    relation = "reaches" if said.probability >= said.threshold else "is under"
    rival = "no rival" if said.rival is None else f"nearest rival {said.rival:.3f}"
    return (
        f"probability {said.probability:.4f} of {said.label} {relation} {said.threshold:g} "
        f"(evidence {said.evidence:.3f}, {rival})"
    )


def _term_lines(found: Explained) -> list[list[object]]:
    if found.classifier is None:
        return []
    lines: list[list[object]] = [[repr(term), f"{gain:.4f}"] for term, gain in found.classifier.terms]
    share = found.classifier.encoder
    return lines if share is None else [*lines, ["(the encoder)", f"{share:.4f}"]]


def _section(header: list[str], cells: list[list[object]]) -> None:
    if cells:
        click.echo()
        print_table(header, cells)
