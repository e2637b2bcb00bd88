"""The validated configuration of one run: every problem is reported at once, unknown keys with the known ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from adapters.check import WEIGHTS_FILE
from adapters.errors import InvalidName, shown
from adapters.rows import sha256_json
from adapters.types import parse_route_name

from .errors import ConfigInvalid
from .methods.settings import MethodSettings, parse_method, repeated_methods

ScoredMetric = Literal["exact_match", "json_equal", "contains", "choice", "token_f1", "perplexity"]
Schedule = Literal["constant", "linear", "cosine"]
Checked = TypeVar("Checked", bound=BaseModel)
Part = Literal["all", "evidence"]
Precision = Literal["no", "bf16", "fp16"]
ALL_LINEAR = "all-linear"
MAX_YAML_BYTES = 1024 * 1024
MAX_YAML_VALUES = 100_000
_YAML_FAULTS = (ValueError, TypeError, KeyError, AttributeError)  # its dates, numbers and tags raise these
# What names things or only changes how fast or where the same result is made.
_FILES = frozenset({"data", "eval", "select", "guardrails", "decisions", "past", "anchors", "adapters", "start"})
_NOT_IDENTITY = _FILES | {"base", "out", "threads", "gradient_checkpointing", "tracker", "dora"}


_MethodText = Annotated[MethodSettings, BeforeValidator(parse_method)]


def several(value: object) -> object:
    """One text or path as a list of one."""
    return [value] if isinstance(value, (str, Path)) else value


class _Config(BaseModel):
    """What both commands need to judge an adapter. Fields are the keys of a YAML file; options are made from them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field(description="Base model: a folder or a hub id in the local cache.")
    eval: Path = Field(description="Rows of the target, for the evidence.")
    guardrails: Annotated[tuple[Path, ...], BeforeValidator(several)] = Field(
        (), description="Rows that must not get worse; may be given several times."
    )
    decisions: Path | None = Field(None, description="Output of `classifier decide` for every evaluated row.")
    out: Path = Field(description="Folder to write to.")
    metric: ScoredMetric = Field(
        "exact_match", description="How an answer is scored, from 0 to 1; perplexity as 1 / perplexity."
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="Longest row in tokens; longer training rows are left out [1024 or the context].",
    )
    max_new_tokens: int | None = Field(None, ge=1, description="Tokens to decode [twice the longest answer].")
    guardrail_bound: float = Field(0.02, gt=0, description="Largest rise of NLL on a guardrail, nats per token.")
    threads: int | None = Field(None, ge=1, description="CPU threads.")

    @model_validator(mode="after")
    def _distinct_guardrails(self) -> Self:
        return _distinct(self, "guardrails", self.guardrails)


def _distinct(config: Checked, key: str, files: Sequence[Path]) -> Checked:
    names = [file.stem for file in files]
    if len(set(names)) != len(names):
        raise ValueError(f"{key}: two files of one name: {', '.join(sorted(names))}")
    return config


class AssessConfig(_Config):
    """Settings of `branchline evaluate`."""

    route: str | None = Field(None, description="Route the decisions call this adapter by [ROUTE, or its folder].")
    part: Part = Field("all", description="all, or evidence: the halves that `train` keeps for its evidence.")
    suites: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (), description="lm-evaluation-harness task as a guardrail: a name or its YAML; may be given several times."
    )
    suite_limit: int | None = Field(None, ge=1, description="Documents of each suite [all].")


class TrainConfig(_Config):
    """Settings of `branchline train`."""

    name: str = Field(description="Route the adapter is for.")
    data: Path = Field(description="Training rows (JSON Lines, .gz too).")
    select: Path | None = Field(None, description="Rows that choose the checkpoint.")
    start: Path | None = Field(
        None,
        description="Adapter folder or version to start from, and to stay near [a fresh adapter].",
        json_schema_extra={"metavar": "FOLDER|ROUTE@N"},
    )
    adapters: Annotated[tuple[Path, ...], BeforeValidator(several)] = Field(
        (),
        description="Adapter folder of another task, to keep clear of; may be given several times.",
        json_schema_extra={"metavar": "FOLDER"},
    )
    past: Annotated[tuple[Path, ...], BeforeValidator(several)] = Field(
        (), description="Training rows of an earlier task, for methods that remember; may be given several times."
    )
    anchors: Annotated[tuple[Path, ...], BeforeValidator(several)] = Field(
        (), description="Rows on which behaviour should stay as it is; may be given several times."
    )
    methods: Annotated[tuple[_MethodText, ...], BeforeValidator(several)] = Field(
        (),
        description="A method against forgetting and its settings, see docs/methods.md; may be given several times.",
        json_schema_extra={"metavar": "NAME[:KEY=VALUE,…]"},
    )

    rank: int = Field(16, ge=1, le=512, description="Rank of the adapter.")
    alpha: int = Field(32, ge=1, description="Scale: the update is alpha / rank x B A.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead.")
    dora: bool = Field(False, description="Refused: engines serve plain LoRA, and DoRA is not.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (ALL_LINEAR,), min_length=1, description="Layer names, or all-linear; may be given several times."
    )

    lr: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="End after this many optimiser steps.")
    max_tokens: int | None = Field(None, ge=1, description="End after this many tokens, padding not counted.")
    max_seconds: float | None = Field(None, gt=0, description="End after this long training, evaluation not counted.")
    batch_tokens: int = Field(2048, ge=1, description="Padded tokens of one micro-batch, at most.")
    accumulation: int = Field(1, ge=1, description="Micro-batches of one optimiser step.")
    warmup: float = Field(0.03, ge=0, lt=1, description="Share of the run in which the rate rises.")
    schedule: Schedule = Field("linear", description="How the rate falls: constant, linear or cosine.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    grad_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    seed: int = Field(0, ge=0, lt=2**32, description="Draws initial weights, order of rows and dropout.")

    precision: Precision = Field("no", description="Of forward passes in training; fp16 needs a GPU.")
    gradient_checkpointing: bool = Field(False, description="Compute activations twice instead of keeping them.")
    tracker: str | None = Field(
        None, description="Also report to tensorboard, wandb or another tracker that Accelerate knows."
    )
    patience: int | None = Field(None, ge=1, description="End after this many checkpoints without a better one.")
    checkpoints: int = Field(4, ge=1, le=100, description="How many points of the run may become the adapter.")

    @model_validator(mode="after")
    def _distinct_past(self) -> Self:
        return _distinct(_distinct(self, "past", self.past), "anchors", self.anchors)

    @field_validator("methods")
    @classmethod
    def _distinct_methods(cls, methods: tuple[MethodSettings, ...]) -> tuple[MethodSettings, ...]:
        if twice := repeated_methods(methods):
            raise ValueError(f"{', '.join(twice)} stands there twice, one term would take the other's place")
        return methods

    @field_validator("dora")
    @classmethod
    def _plain_lora(cls, dora: bool) -> bool:
        if dora:
            raise ValueError("DoRA rescales the base's weights per output, which engines do not load; rslora they do")
        return dora

    @field_validator("name")
    @classmethod
    def _route_name(cls, name: str) -> str:
        try:
            return parse_route_name(name)
        except InvalidName as error:
            raise ValueError(str(error)) from error

    @property
    def files(self) -> Mapping[str, Path]:
        """Every row file of the run by the name it has in messages and evidence."""
        named = {"data": self.data, "eval": self.eval, "select": self.select, "decisions": self.decisions}
        named |= {"start": self.start and self.start / WEIGHTS_FILE}
        present = {name: file for name, file in named.items() if file is not None}
        present |= {f"adapter {number}": one / WEIGHTS_FILE for number, one in enumerate(self.adapters, start=1)}
        present |= {f"past {file.stem}": file for file in self.past}
        present |= {f"anchors {file.stem}": file for file in self.anchors}
        return present | {f"guardrail {file.stem}": file for file in self.guardrails}

    @property
    def settings(self) -> dict[str, object]:
        """What shapes the weights beside the base and the data: no path, no machine."""
        return self.model_dump(mode="json", exclude=set(_NOT_IDENTITY))

    def identity(self, base_fingerprint: str, digests: Mapping[str, str]) -> str:
        """sha256 of everything that determines the result: two runs of one identity are the same run."""
        return sha256_json({"settings": self.settings, "base": base_fingerprint, "files": dict(digests)})


def read_config(
    kind: type[Checked], values: Mapping[str, object], *, hint: str = "see `branchline train --help`"
) -> Checked:
    """Validate `values`; raises `ConfigInvalid` with every problem, missing files included."""
    problems: list[str] = []
    config = None
    try:
        config = kind.model_validate(dict(values))
    except ValidationError as error:
        known = ", ".join(sorted(kind.model_fields))
        problems = [_problem(one["loc"], one["type"], one["msg"], one["input"], known) for one in error.errors()]
    problems += _missing_files(values)
    if problems or config is None:
        raise ConfigInvalid(problems, hint=hint)
    return config


def read_yaml(file: Path) -> dict[str, object]:
    """The mapping in a YAML file; raises `ConfigInvalid` where there is none."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise ConfigInvalid([f"{file.name} has over {MAX_YAML_BYTES} bytes"], hint="settings are shorter")
        value = yaml.safe_load(content.decode("utf-8"))
    except (OSError, yaml.YAMLError, RecursionError, *_YAML_FAULTS) as error:
        reason = " ".join(str(error)[:500].split())
        raise ConfigInvalid([f"cannot read {file.name}: {reason}"], hint="give a YAML file of settings") from error
    if not isinstance(value, dict):
        raise ConfigInvalid([f"{file.name} holds {type(value).__name__}, expected settings as KEY: VALUE"])
    if _is_bomb(value):
        raise ConfigInvalid([f"{file.name} holds over {MAX_YAML_VALUES} values, its aliases written out"])
    return {str(key): setting for key, setting in value.items()}


def _is_bomb(value: object) -> bool:
    """Whether aliases make of few lines more values than anybody writes, or one that holds itself."""
    waiting, seen = [value], 0
    while waiting and seen <= MAX_YAML_VALUES:
        one = waiting.pop()
        inner = [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, (list, set)) else ()
        seen += 1 + len(inner)
        waiting += inner
    return seen > MAX_YAML_VALUES


def _problem(where: tuple[int | str, ...], kind: str, message: str, found: object, known: str) -> str:
    key = str(where[0]) if where else ""
    if kind == "extra_forbidden":
        return f"unknown key {shown(key)}, known are {known}"
    if kind == "missing":
        return f"{key} is missing"
    text = message.removeprefix("Value error, ")
    key = ".".join([key, *(one for one in where[1:] if isinstance(one, str))])
    return f"{key}: {text}, found {shown(found, 60)}" if key else text


def _missing_files(values: Mapping[str, object]) -> list[str]:
    named = [(key, values.get(key)) for key in ("data", "eval", "select", "decisions")]
    start = values.get("start")
    named += [("start", Path(start) / WEIGHTS_FILE)] if isinstance(start, (str, Path)) else []
    others = several(values.get("adapters") or [])
    if isinstance(others, (list, tuple)):
        named += [("adapters", Path(one) / WEIGHTS_FILE) for one in others if isinstance(one, (str, Path))]
    for key in ("guardrails", "past", "anchors"):
        files = several(values.get(key) or [])
        named += [(key, file) for file in files] if isinstance(files, (list, tuple)) else []
    return [
        f"{key}: no file {shown(str(file), 200)}"
        for key, file in named
        if isinstance(file, (str, Path)) and not is_file(file)
    ]


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; a path that no file can have is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False
