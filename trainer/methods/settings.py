"""What can be set about every method. No torch here: the command line reads it.

On the command line `--method NAME:KEY=VALUE,KEY=VALUE`; in YAML the same text, or a mapping with the key `method`.
A weight multiplies a term in nats per supervised token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

ImportanceKind = Literal["diagonal", "kron_diagonal", "kfac"]
Labels = Literal["sampled", "data", "exact"]
Selection = Literal["random", "diverse", "difficult", "self"]
Teacher = Literal["live", "cached"]


class _Method(BaseModel):
    """`on_first_task`: what the method does where nothing came before. What it then only measures, for later stages,
    does not depend on its weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    on_first_task: ClassVar[Literal["acts", "nothing", "measures"]] = "acts"


class _Fisher(_Method):
    labels: Labels = Field("sampled", description="Labels of the Fisher: drawn from the model, the data's, or all.")
    sequences: int = Field(256, ge=1, description="Rows the Fisher is estimated on.")


class Ewc(_Fisher):
    """One penalty on ΔW around the start, with the Fisher of the last task (or of the anchors)."""

    on_first_task = "nothing"
    method: Literal["ewc"] = "ewc"
    weight: float = Field(1.0, ge=0, description="λ_rel; 1 is the Laplace weight T_old / T_new.")
    importance: ImportanceKind = Field("kfac", description="Shape of the Fisher.")
    budget: float | None = Field(None, gt=0, description="Adapt the weight to this KL on the anchors, nats per token.")


class OnlineEwc(_Fisher):
    """One penalty on ΔW around the latest optimum, with the Fishers of all tasks before it."""

    on_first_task = "measures"
    method: Literal["online_ewc"] = "online_ewc"
    weight: float = Field(1.0, ge=0, description="λ_rel; 1 is the Laplace weight.")
    importance: ImportanceKind = Field("kfac", description="Shape of the Fisher.")
    gamma: float = Field(1.0, gt=0, le=1, description="What a task's Fisher keeps with every later task.")


class EwcFactors(_Fisher):
    """Control: diagonal EWC on A and B apart, as most published code has it."""

    on_first_task = "nothing"
    method: Literal["ewc_factors"] = "ewc_factors"
    weight: float = Field(1.0, ge=0, description="λ_rel.")


class L2(_Fisher):
    """Control: the Fisher replaced by its mean, one number for all layers."""

    on_first_task = "nothing"
    method: Literal["l2"] = "l2"
    weight: float = Field(1.0, ge=0, description="λ_rel.")


class SynapticIntelligence(_Method):
    """Element-wise importance from the path that training took."""

    on_first_task = "measures"
    method: Literal["si"] = "si"
    weight: float = Field(1.0, ge=0, description="λ_rel.")
    damping: float = Field(1e-3, gt=0, description="ξ, relative to the mean squared move.")


class MemoryAware(_Method):
    """Element-wise importance from the sensitivity of the output's squared norm."""

    on_first_task = "nothing"
    method: Literal["mas"] = "mas"
    weight: float = Field(1.0, ge=0, description="λ_rel.")
    sequences: int = Field(256, ge=1, description="Rows the importance is estimated on.")


class Replay(_Method):
    """A share of the stream comes from earlier tasks' rows or from the base itself."""

    on_first_task = "nothing"
    method: Literal["replay"] = "replay"
    share: float = Field(0.1, gt=0, lt=1, description="ρ: share of the stream's tokens.")
    capacity: int = Field(1000, ge=1, description="Rows kept in all.")
    selection: Selection = Field("random", description="random, diverse, difficult or self.")


class Distill(_Method):
    """Stay near a frozen teacher: the version the run starts from."""

    on_first_task = "nothing"
    method: Literal["distill"] = "distill"
    weight: float = Field(1.0, ge=0, description="λ_kd.")
    temperature: float = Field(1.0, gt=0, description="τ.")
    teacher: Teacher = Field("live", description="live, or cached: sparse log-probabilities drawn once.")
    draws: int = Field(64, ge=1, description="Tokens drawn per position for the cache.")


class Kl(_Method):
    """Stay near the base on the new data."""

    method: Literal["kl"] = "kl"
    weight: float = Field(0.1, ge=0, description="λ_kl.")
    non_target: bool = Field(False, description="Leave the target token's probability free.")


class Masking(_Method):
    """Drop target tokens that the start finds improbable from the loss."""

    method: Literal["masking"] = "masking"
    threshold: float = Field(2.5, gt=1, description="τ: largest perplexity of a kept token.")


class InvariantPath(_Method):
    """Experimental: penalise the change of outputs on the anchors from step to step."""

    on_first_task = "nothing"
    method: Literal["invariant_path"] = "invariant_path"
    weight: float = Field(1.0, ge=0, description="Weight of the output change per token.")
    rows: int = Field(8, ge=1, description="Anchors read at every step.")


class Orthogonal(_Method):
    """Keep the new A orthogonal to earlier adapters'."""

    on_first_task = "nothing"
    method: Literal["orthogonal"] = "orthogonal"
    weight: float = Field(0.5, ge=0, description="λ of Σ |A_old A_newᵀ|.")


class Projection(_Method):
    """A-GEM: project gradients that would raise the loss on remembered rows."""

    on_first_task = "nothing"
    method: Literal["projection"] = "projection"
    capacity: int = Field(1000, ge=1, description="Rows remembered in all.")
    rows: int = Field(16, ge=1, description="Remembered rows read at every step.")


class Ema(_Method):
    """Keep, and judge, an exponential moving average of the adapter's weights."""

    method: Literal["ema"] = "ema"
    decay: float = Field(0.99, gt=0, lt=1, description="Share of the average that stays at every step.")


MethodSettings = Annotated[
    Ewc
    | OnlineEwc
    | EwcFactors
    | L2
    | SynapticIntelligence
    | MemoryAware
    | Replay
    | Distill
    | Kl
    | Masking
    | InvariantPath
    | Orthogonal
    | Projection
    | Ema,
    Field(discriminator="method"),
]
METHODS: Mapping[str, type[_Method]] = {
    kind.model_fields["method"].default: kind for kind in get_args(get_args(MethodSettings)[0])
}


def repeated_methods(methods: Sequence[MethodSettings]) -> list[str]:
    """Names of methods that stand there more than once, which would report, leave and weigh under one name. Replay of
    rows and of the base's own answers are two.
    """
    names = [
        f"{one.method} self" if isinstance(one, Replay) and one.selection == "self" else one.method for one in methods
    ]
    return sorted({name for name in names if names.count(name) > 1})


def parse_method(value: object) -> object:
    """`NAME:KEY=VALUE,…` as the mapping that `MethodSettings` validates; anything but text is left as it is."""
    if not isinstance(value, str):
        return value
    name, _, rest = value.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair.strip()]
    known = METHODS.get(name.strip())
    if known is None:
        raise ValueError(f"unknown method {name!r}, known are {', '.join(sorted(METHODS))}")
    settings = {key.strip(): text.strip() for key, _, text in pairs}
    unknown = sorted(settings.keys() - known.model_fields.keys() | {"method"} & settings.keys())
    if unknown:
        keys = ", ".join(sorted(known.model_fields.keys() - {"method"}))
        raise ValueError(f"{name}: unknown key {', '.join(unknown)}, known are {keys}")
    return {"method": name.strip(), **settings}
