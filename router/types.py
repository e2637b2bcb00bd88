"""The nouns of the data plane: frozen values, no I/O."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal

Endpoint = Literal["chat/completions", "completions", "responses", "tokenize"]
FinishReason = Literal["stop", "length"]
Reason = Literal[
    "classified",
    "pinned",
    "base_requested",
    "abstained",
    "route_disabled",
    "no_live_version",
    "adapter_unavailable",
    "no_classifier",
    "not_text",
    "not_permitted",
]
DecisionStage = Literal["live", "pinned", "base"]
EngineState = Literal["starting", "up", "draining", "down"]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the classifier, or memory, says of one text.

    `route` is the top route (or `base`, where memory means the base) and `confidence` its calibrated probability.
    `score` is the decision's own score and `threshold` what it is compared with: below it the base answers.
    `exemplar` is the text digest of the exemplar that decided, `None` where the classifier did. `turn` is the place
    of the text among the user turns that were judged together, newest first.
    """

    route: str
    confidence: float
    score: float
    threshold: float
    exemplar: str | None = None
    turn: int = 0

    @property
    def abstains(self) -> bool:
        return not self.score >= self.threshold or self.route == "base"  # a score that is no number abstains


@dataclass(frozen=True, slots=True)
class Judged:
    """Scores, and the digests of the classifier and of the exemplars that they come from."""

    scores: Scores
    classifier_digest: str | None
    exemplars_digest: str | None


@dataclass(frozen=True, slots=True)
class Decision:
    """Where one request goes. `route` and `version` are `None` where nothing but the base was ever meant.

    `engine_name` is what the engine is asked for: a version's engine name, or the base's id. `exemplar` is the text
    digest of the exemplar that decided, where memory did and not the classifier.
    """

    engine_name: str
    stage: DecisionStage
    reason: Reason
    route: str | None = None
    version: int | None = None
    confidence: float | None = None
    classifier_digest: str | None = None
    exemplars_digest: str | None = None
    exemplar: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, as OpenAI counts them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of generated text; the last one of a choice carries `finish_reason` and `usage`."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an engine. `body` is the client's parsed body; `engine_name` replaces its `model`."""

    endpoint: Endpoint
    engine_name: str
    body: Mapping[str, object]
    stream: bool
    request_id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """An engine's answer on the wire: server-sent events where the call streams, one JSON document where not.

    Closing `body` early tells the engine that the client went away.
    """

    body: AsyncIterator[bytes]
    content_type: str


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine process as the gateway sees it. `name` is shown to operators, `problem` is why it is not up.

    `outstanding` counts calls being answered, `resident` versions proved on this start, `restarts` starts after the
    first. `base_fingerprint` is `None` where nobody could look at the base this engine serves.
    """

    name: str
    state: EngineState
    outstanding: int = 0
    resident: int = 0
    restarts: int = 0
    problem: str | None = None
    base_fingerprint: str | None = None
