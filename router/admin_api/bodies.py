"""What requests of the admin API carry, checked at the edge. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.classifier_gate import ClassifierPolicy
from adapters.example_checks import DEFAULT_MAX_LOSS
from adapters.keys import MAX_LIMIT, Role

MAX_TEXTS = 10_000
MAX_WAIT_SECONDS = 30.0
_GATE = ClassifierPolicy()
Number = Annotated[int, Field(ge=1, le=999_999_999)]
Id = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Why = Annotated[str, Field(max_length=4096)]
Reason = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"\S")]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


class Nothing(BaseModel):
    """A body, or a query, without fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid")  # its values come as text


class Waits(Query):
    """How long to wait until gateways follow, in seconds; the answer then tells which do."""

    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False)] | None = None


class Page(Query):
    """Events after this serial, oldest first."""

    after: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class KeyFilter(Query):
    revoked: bool = False


class CorrectionFilter(Query):
    state: Literal["waiting", "in_force"] = "waiting"
    source: str | None = None


class Because(Nothing):
    why: Why | None = None


class NewRoute(Nothing):
    name: str
    description: str = ""
    examples: list[str] = Field(default_factory=list, max_length=MAX_TEXTS)
    max_loss: Share = DEFAULT_MAX_LOSS
    force: Reason | None = None


class RouteChange(Nothing):
    """Policy keys given as `null` go back to their defaults."""

    description: str | None = None
    policy: dict[str, str | int | float | None] | None = None


class Promotion(Nothing):
    version: Number
    force: Reason | None = None


class Rollback(Because):
    to: Number | None = None


class Publication(Nothing):
    """`folder` lies under one of the server's `--lora-folder`; `evidence` is what an evaluation wrote."""

    folder: Annotated[str, Field(min_length=1, max_length=4096)]
    evidence: dict[str, Any] | None = None
    base_is_same: Reason | None = None


class NewEvidence(Nothing):
    """What an evaluation wrote: `evidence.json`, as it is."""

    model_config = ConfigDict(extra="allow")


class NewExamples(Nothing):
    texts: Texts
    max_loss: Share = DEFAULT_MAX_LOSS
    force: Reason | None = None


class OldExamples(Nothing):
    texts: Texts


class Correction(Because):
    """`route` is a route's name, or `base`."""

    route: str
    texts: Texts


class Chosen(Because):
    """Exactly one of `ids`, `source` and `all`."""

    ids: list[Id] = Field(default_factory=list, max_length=MAX_TEXTS)
    source: str | None = None
    all: bool = False


class Removed(Because):
    """Text digests, or the first characters of them."""

    digests: Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]


class ClassifierPromotion(Because):
    force: Reason | None = None
    min_items: Number = _GATE.min_items
    max_loss: Share = _GATE.max_loss
    max_base_loss: Share = _GATE.max_base_loss
    max_route_loss: Share = _GATE.max_route_loss


class KeyLimitsGiven(Nothing):
    """`null` is no limit; what is left out stays as it is."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_concurrent: Limit | None = None


class NewKey(Because):
    name: str
    role: Role
    routes: list[str] | None = None
    limits: KeyLimitsGiven = Field(default_factory=KeyLimitsGiven)


class KeyChange(Because):
    """`routes` given as `null` allows all routes; what is left out stays as it is."""

    routes: list[str] | None = None
    limits: KeyLimitsGiven = Field(default_factory=KeyLimitsGiven)


class Load(BaseModel):
    """As vLLM takes it; other fields change nothing here."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False


class Unload(BaseModel):
    """As vLLM takes it; other fields change nothing here."""

    lora_name: str = ""
