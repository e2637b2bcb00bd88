"""`explain`: where a text would be routed, and why."""

from __future__ import annotations

from dataclasses import asdict

import click

from adapters.home import Home, home_options
from adapters.output import json_option, print_json, print_table

from .classifier_choice import choose_classifier, classifier_option
from .encoder_flags import encoder_option


@click.command()
@click.argument("text")
@classifier_option
@encoder_option
@json_option
@home_options
def explain(home: Home, text: str, named: str, encoder: str | None, as_json: bool) -> None:
    """Say where TEXT would be routed, and why."""
    chosen = choose_classifier(home, named, encoder)
    found = chosen.classifier.explain(text)
    scores = found.scores
    if as_json:
        route = None if scores.abstains else scores.route
        print_json({"route": route, "classifier": chosen.classifier.digest, **asdict(found)})
        return
    click.echo(found.reason)
    shares = list(found.probabilities.items())[:5]
    print_table(["label", "probability"], [[label, f"{share:.4f}"] for label, share in shares])
    if found.terms:
        print_table(["term", f"for {scores.route}"], [[repr(term), f"{gain:.4f}"] for term, gain in found.terms])
