"""Checks of new examples against those of the other routes, brought by other rooms and imported only when needed.

A room registers a check in the entry-point group `branchline.example_checks`; this room knows none itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from .errors import BadInput, InvalidName, Refused
from .exemplars import exemplars_of
from .output import note
from .registry import Registry
from .rows import LabelledText

CHECKS = "branchline.example_checks"
DEFAULT_MAX_LOSS = 0.05


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check has to say: lines to read, and the reasons to refuse, if any."""

    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


class ExampleCheck(Protocol):
    """Judges examples before they are stored. Changes nothing, opens nothing, may take seconds."""

    def __call__(self, known: Sequence[LabelledText], added: Sequence[LabelledText], *, max_loss: float) -> Findings:
        """`known`: exemplars stored so far (label: a route or `base`); `added`: those to come; `max_loss`: recall that
        another route may lose.
        """


def check_examples(
    registry: Registry,
    route: str,
    texts: Sequence[str],
    *,
    max_loss: float,
    forced: str | None,
    say: Callable[[str], None] = note,
) -> None:
    """Run every installed check on `texts` as new examples of `route`, and `say` what they found: it quotes examples.

    Raises `Refused` with all reasons, unless `forced` says why to go on.
    """
    if forced is not None and not forced.strip():
        raise InvalidName("--force needs a reason", hint='write --force "why"')
    if not 0 <= max_loss <= 1:
        raise BadInput(f"--max-loss {max_loss} is no share", hint="give a number from 0 to 1")
    added = [LabelledText(text, route) for text in texts]
    known = [LabelledText(one.text, one.label) for one in exemplars_of(registry).rows]
    refusals: list[str] = []
    for found in _findings(known, added, max_loss, say):
        for line in found.notes:
            say(line)
        refusals += found.refusals
    if refusals and forced is None:
        raise Refused("; ".join(refusals), hint='change the examples, or overrule with --force "why"')
    for reason in refusals:
        say(f"forced over: {reason}")


def _findings(
    known: Sequence[LabelledText], added: Sequence[LabelledText], max_loss: float, say: Callable[[str], None]
) -> Iterator[Findings]:
    installed = entry_points(group=CHECKS)
    for one in installed:
        try:
            check: ExampleCheck = one.load()
            yield check(known, added, max_loss=max_loss)
        except ModuleNotFoundError as error:
            say(f"note: the check {one.name!r} is left out, it needs the package {error.name!r}")
    if not installed:
        say("note: no check of examples is installed, so nothing was compared with the other routes")
