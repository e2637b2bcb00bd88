"""Why a gateway with this registry would send a text where it does: classifier, memory and the route's own state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.errors import NotFound
from adapters.exemplars import Exemplar
from adapters.registry import Registry
from adapters.rows import text_digest

from ..classify.classifier import Classifier, Explanation
from ..classify.encoding import Encoder
from ..classify.features import Floats
from ..classify.judge import Judge
from ..classify.memory import Memory
from ..classify.weighing import THRESHOLD, probability_of
from ..types import Reason, Scores

NEAREST = 5


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An exemplar like the text. `speaks` is false where the classifier's fit has seen it: memory leaves it to that."""

    similarity: float
    label: str
    source: str
    text: str
    speaks: bool


@dataclass(frozen=True, slots=True)
class Recalled:
    """What memory holds of the text: `probability` that it belongs where the exemplar `text` does."""

    label: str
    probability: float
    threshold: float
    evidence: float
    rival: float | None
    text: str
    source: str
    decides: bool


@dataclass(frozen=True, slots=True)
class Explained:
    """`turn` counts the user turns back from the newest: which of them decided. `classifier` is `None` without one.

    `version` is what would answer, `None` for the base; `because` says so in the gateway's own words.
    """

    turn: int
    scores: Scores
    classifier: Explanation | None
    memory: Recalled | None
    nearest: tuple[Neighbour, ...]
    because: Reason
    version: int | None

    @property
    def route(self) -> str | None:
        """The route chosen, `None` for the base."""
        return None if self.scores.abstains else self.scores.route


def explain_turns(
    turns: Sequence[str],
    judge: Judge,
    exemplars: Sequence[Exemplar],
    encoder: Encoder | None,
    registry: Registry | None,
) -> Explained:
    """Explain the decision on user turns, newest first; `registry` is `None` where no route's state is known.

    Raises what `Encoder.encode` raises.
    """
    vectors = None if encoder is None else encoder.encode(turns)
    at = _deciding(judge, turns, vectors)
    text, vector = turns[at], None if vectors is None else vectors[at]
    scores = judge.judge(turns, vectors)
    because, version = _outcome(scores, registry)
    return Explained(
        at,
        scores,
        _explained(judge.classifier, text, vector),
        _recalled(judge, text, vector, scores, exemplars),
        _nearest(judge, text, vector, exemplars, encoder),
        because,
        version,
    )


def _deciding(judge: Judge, turns: Sequence[str], vectors: Floats | None) -> int:
    """The place of the turn that decides, by the judge's own rule: the first after which no other is asked for."""
    wanted = judge.judge(turns, vectors)
    if wanted.abstains and wanted.exemplar is None:
        return 0
    return next(at for at in range(len(turns)) if judge.judge(turns[: at + 1], vectors) == wanted)


def _explained(classifier: Classifier | None, text: str, vector: Floats | None) -> Explanation | None:
    if classifier is None:
        return None
    return classifier.explain(text, vector if classifier.encoder else None)


def _recalled(
    judge: Judge, text: str, vector: Floats | None, scores: Scores, exemplars: Sequence[Exemplar]
) -> Recalled | None:
    found = judge.memory.recollect(text, vector)
    if found is None:
        return None
    said = judge.classifier.scores(text, vector if judge.classifier.encoder else None) if judge.classifier else None
    match = found.match
    return Recalled(
        match.label,
        probability_of(said, found),
        THRESHOLD,
        found.evidence,
        found.rival,
        _texts(exemplars).get(match.text_digest, ""),
        match.source,
        scores.exemplar is not None,
    )


def _nearest(
    judge: Judge, text: str, vector: Floats | None, exemplars: Sequence[Exemplar], encoder: Encoder | None
) -> tuple[Neighbour, ...]:
    """Of all exemplars, also of those that memory leaves to the classifier."""
    everything = Memory.build(exemplars, encoder=encoder, before=judge.memory)
    texts = _texts(exemplars)
    speaking = {(entry.label, entry.text_digest) for entry in judge.memory.entries if not entry.seen}
    return tuple(
        Neighbour(
            match.similarity,
            match.label,
            match.source,
            texts[match.text_digest],
            (match.label, match.text_digest) in speaking,
        )
        for match in everything.nearest(text, vector, NEAREST)
        if match.similarity > 0
    )


def _texts(exemplars: Sequence[Exemplar]) -> dict[str, str]:
    return {text_digest(one.text): one.text for one in exemplars}


def _outcome(scores: Scores, registry: Registry | None) -> tuple[Reason, int | None]:
    """What `policy.decide` would say where everything wanted is in force."""
    if scores.abstains:
        return "abstained", None
    if registry is None:
        return "classified", None
    try:
        route = registry.route(scores.route)
    except NotFound:
        return "no_live_version", None
    if not route.enabled:
        return "route_disabled", None
    return ("no_live_version", None) if route.live is None else ("classified", route.live)
