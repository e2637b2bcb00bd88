"""The validated plan of a sequence: tasks in order, arms, seeds. Every problem at once; no torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import shown

from ..config import TrainConfig, is_file, read_config
from ..errors import ConfigInvalid
from ..methods.settings import MethodSettings, parse_method

Mode = Literal["base", "isolated", "warm", "shared", "joint"]
_NAME = r"^[a-z][a-z0-9_-]{0,62}$"
_OURS = frozenset(
    {"base", "name", "data", "eval", "select", "guardrails", "decisions", "out", "start", "adapters", "past", "anchors"}
    | {"methods", "seed", "checkpoints", "metric", "max_new_tokens", "guardrail_bound"}
    | {"patience", "tracker", "dora"}
)
_ON_LORA = frozenset({"ewc", "online_ewc", "ewc_factors", "l2", "si", "mas", "orthogonal"})
ENDLESS = 1_000_000.0  # epochs, where a number of tokens or steps ends a stage


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskPlan(_Part):
    """One task. `dev` are rows for what must not see the judged ones: anchors, and scores while settings are chosen."""

    name: str = Field(pattern=_NAME)
    data: Path
    eval: Path
    dev: Path
    route: str | None = Field(None, description="What routing decisions call the task [its name].")

    @property
    def called(self) -> str:
        return self.route or self.name


class ArmPlan(_Part):
    """One way to train the sequence.

    base      trains nothing
    isolated  a fresh adapter per task
    warm      an adapter per task, each started from the one before it
    shared    one adapter, trained on task after task
    joint     one adapter, trained on all tasks at once with the tokens of all
    """

    name: str = Field(pattern=_NAME)
    mode: Mode
    family: str | None = Field(None, description="Arms of one family are one line of the frontier [the arm's name].")
    settings: Mapping[str, object] = Field(default_factory=dict)
    methods: tuple[Annotated[MethodSettings, BeforeValidator(parse_method)], ...] = ()
    prompt_tokens: int | None = Field(None, ge=1, description="Tune this many virtual tokens in place of LoRA.")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] | None = Field(None, description="[the sequence's]")
    exploratory: bool = Field(False, description="Say so in the report: few seeds, or tried beside the plan.")

    @model_validator(mode="after")
    def _prompt_has_no_update(self) -> ArmPlan:
        named = [one.method for one in self.methods if one.method in _ON_LORA]
        if self.prompt_tokens and named:
            raise ValueError(f"prompt_tokens: a tuned prompt has no ΔW for {', '.join(named)}")
        return self


class SequenceConfig(_Part):
    """A whole study. `settings` holds for every arm, an arm's own settings overrule it."""

    base: str
    tasks: tuple[TaskPlan, ...] = Field(min_length=1)
    arms: tuple[ArmPlan, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0,), min_length=1)
    settings: Mapping[str, object] = Field(default_factory=dict)
    split: Literal["test", "dev"] = Field(
        "test", description="Rows that are scored: each task's eval, or half its dev."
    )
    decisions: tuple[Path, ...] = Field((), description="One file for all stages, or one per stage.")
    guardrails: tuple[Path, ...] = Field((), description="Rows whose NLL is watched after every stage.")
    items: int | None = Field(None, ge=1, description="Rows of a file that are scored, at most.")
    anchors: int = Field(128, ge=1, description="Rows of each earlier task's dev on which the KL is measured, at most.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Of scoring.")
    reference: str | None = Field(None, description="Arm that the others are compared with [sequential, or the first].")
    threads: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> SequenceConfig:
        problems = [
            f"{key}: {name} stands there twice"
            for key, names in (
                ("tasks", [task.name for task in self.tasks]),
                ("arms", [arm.name for arm in self.arms]),
                ("seeds", [str(seed) for seed in self.seeds]),
            )
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if len(self.decisions) not in (0, 1, len(self.tasks)):
            problems.append(f"decisions: {len(self.decisions)} files, expected 1 or one per task ({len(self.tasks)})")
        if self.reference and self.reference not in [arm.name for arm in self.arms]:
            problems.append(f"reference: no arm is called {self.reference!r}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def seeds_of(self, arm: ArmPlan) -> tuple[int, ...]:
        return self.seeds if arm.seeds is None else arm.seeds

    @property
    def compared_with(self) -> str:
        """The arm that the others are compared with."""
        names = [arm.name for arm in self.arms]
        return self.reference or ("sequential" if "sequential" in names else names[0])

    def decisions_at(self, stage: int) -> Path | None:
        """The decisions that hold after stage `stage` (from 1)."""
        return self.decisions[(stage - 1) if len(self.decisions) > 1 else 0] if self.decisions else None

    def training(self, arm: ArmPlan, tasks: Sequence[TaskPlan], seed: int, out: Path, **more: object) -> TrainConfig:
        """The settings of one stage that learns `tasks`; raises `ConfigInvalid`.

        Joint training gets every task's tokens, steps and seconds. Where tokens, steps or seconds end a stage, epochs
        do not, unless they are set too.
        """
        settings = {**self.settings, **arm.settings}
        budgets = [
            key for key in ("max_tokens", "max_steps", "max_seconds") if isinstance(settings.get(key), (int, float))
        ]
        for key in budgets:
            settings[key] = len(tasks) * settings[key]  # type: ignore[operator]  # numbers, checked just above
        if budgets:
            settings.setdefault("epochs", ENDLESS)
        first = tasks[0]
        managed = {"base": self.base, "name": first.name.replace("_", "-"), "data": first.data, "eval": first.eval}
        managed |= {"out": out, "seed": seed, "checkpoints": 1, "threads": self.threads}
        dumped = [one.model_dump() for one in arm.methods]
        return read_config(TrainConfig, {**settings, **managed, "methods": dumped, **more})


def read_sequence(values: Mapping[str, object]) -> SequenceConfig:
    """Validate `values`; raises `ConfigInvalid` with every problem: keys, names, files, settings of each arm."""
    problems: list[str] = []
    try:
        config = SequenceConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigInvalid(
            [_problem(one["loc"], one["type"], one["msg"]) for one in error.errors()] + _bad_settings(values),
            hint="see `branchline sequence --help`",
        ) from error
    problems += _bad_settings(values)
    named = [
        (f"tasks.{task.name}.{key}", getattr(task, key)) for task in config.tasks for key in ("data", "eval", "dev")
    ]
    named += [("decisions", file) for file in config.decisions] + [("guardrails", file) for file in config.guardrails]
    missing = [f"{key}: no file {shown(str(file), 200)}" for key, file in named if not is_file(file)]
    if not problems and not missing:
        for arm in config.arms:
            try:
                config.training(arm, config.tasks[:1], config.seeds[0], Path("out"))
            except ConfigInvalid as error:
                problems += [f"arm {arm.name}: {problem}" for problem in error.problems]
    if problems or missing:
        raise ConfigInvalid(problems + missing, hint="see `branchline sequence --help`")
    return config


def _bad_settings(values: Mapping[str, object]) -> list[str]:
    """Keys of settings that the sequence sets itself, or that nothing knows."""
    arms = values.get("arms")
    named = [("settings", values.get("settings"))]
    named += [
        (f"arms.{arm.get('name')}.settings", arm.get("settings"))
        for arm in (arms if isinstance(arms, list) else [])
        if isinstance(arm, dict)
    ]
    free = sorted(TrainConfig.model_fields.keys() - _OURS)
    return [
        f"{where}: {'the sequence sets' if key in _OURS else 'unknown key'} {key!r}, free are {', '.join(free)}"
        for where, settings in named
        if isinstance(settings, dict)
        for key in settings
        if key not in free
    ]


def _problem(where: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(one) for one in where)
    if kind == "extra_forbidden":
        return f"unknown key {key!r}"
    if kind == "missing":
        return f"{key} is missing"
    text = message.removeprefix("Value error, ")
    return f"{key}: {text}" if key else text
