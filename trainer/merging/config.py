"""The validated settings of a merge, and its inputs as they are written: INPUT or INPUT=WEIGHT. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from adapters.check import Limits
from adapters.rows import sha256_json

from ..config import ScoredMetric, read_config, several
from ..errors import ConfigInvalid

MergeMethod = Literal["scale", "soup", "sum", "ties", "dare"]
MAX_WEIGHT = 1000.0
DEFAULT_RANK = Limits().max_lora_rank
_ALWAYS = frozenset({"base", "method", "out", "rank", "sweep", "threads"})
_READ_BY = {"ties": frozenset({"density"}), "dare": frozenset({"drop", "seed"})}
_ROWS = frozenset({"eval", "select", "guardrails", "decisions"})
_SWEEP = _ROWS | {"guardrail_bound", "route", "metric", "max_length", "max_new_tokens"}
_PLACES = _ROWS | {"base", "out", "threads"}
_HINT = "see `branchline merge --help`"


class MergeSettings(BaseModel):
    """Settings of `branchline merge`. Fields become options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field(description="Base model: a folder or a hub id in the local cache.")
    method: MergeMethod = Field(description="How ΔW is made: scale, soup, sum, ties or dare.")
    out: Path = Field(description="Folder to write to.")
    rank: int | None = Field(None, ge=1, le=512, description=f"Cut to this rank by SVD [ties, dare: {DEFAULT_RANK}].")
    density: float = Field(0.2, gt=0, le=1, description="ties: share of each matrix that is kept.")
    drop: float = Field(0.5, ge=0, lt=1, description="dare: share of each matrix that is dropped.")
    seed: int = Field(0, ge=0, lt=2**32, description="dare: draws what is dropped.")

    sweep: bool = Field(False, description="scale: find the largest scale that keeps every guardrail.")
    eval: Path | None = Field(None, description="sweep: rows of the target; the half for choosing is used.")
    select: Path | None = Field(None, description="sweep: rows of the target that are for choosing.")
    guardrails: Annotated[tuple[Path, ...], BeforeValidator(several)] = Field(
        (), description="sweep: rows that must not get worse, half of them used; may be given several times."
    )
    guardrail_bound: float = Field(0.02, gt=0, description="sweep: largest rise of NLL, nats per token.")
    decisions: Path | None = Field(None, description="sweep: output of `classifier decide` for the rows.")
    route: str | None = Field(None, description="sweep: route the decisions call the adapter by [from INPUT].")
    metric: ScoredMetric = Field("exact_match", description="sweep: how an answer is scored, from 0 to 1.")
    max_length: int | None = Field(None, ge=2, description="sweep: longest row in tokens [1024 or the context].")
    max_new_tokens: int | None = Field(None, ge=1, description="sweep: tokens to decode [twice the longest answer].")
    threads: int | None = Field(None, ge=1, description="CPU threads.")

    def rank_of(self, exact: int) -> int:
        """The rank a layer may have, given its inputs' ranks added up; dense results have no rank of their own."""
        return self.rank or (min(exact, DEFAULT_RANK) if self.method in ("ties", "dare") else exact)

    @property
    def files(self) -> dict[str, Path]:
        """Every row file of the sweep by its name in the record."""
        named = {"eval": self.eval, "select": self.select, "decisions": self.decisions}
        present = {name: file for name, file in named.items() if file is not None}
        return present | {f"guardrail {file.stem}": file for file in self.guardrails}

    @property
    def used(self) -> frozenset[str]:
        """The fields that this merge reads."""
        return _ALWAYS | _READ_BY.get(self.method, frozenset()) | (_SWEEP if self.sweep else frozenset())

    @property
    def shaping(self) -> dict[str, object]:
        """What shapes the result beside base, inputs and rows: no path, no machine."""
        return self.model_dump(mode="json", include=set(self.used - _PLACES))

    def identity(self, base_fingerprint: str, inputs: Sequence[object], files: Mapping[str, str]) -> str:
        """sha256 of everything that determines the result; the order of the inputs counts."""
        facts = {"merge": self.shaping, "base": base_fingerprint, "inputs": list(inputs), "files": dict(files)}
        return sha256_json(facts)


@dataclass(frozen=True, slots=True)
class Input:
    """`name` is a folder or ROUTE@N; `weight` is `None` where none was given."""

    name: str
    weight: float | None = None


def read_merge(values: Mapping[str, object], words: Sequence[str]) -> tuple[MergeSettings, tuple[Input, ...]]:
    """Settings and inputs; raises `ConfigInvalid` with every problem of either."""
    problems: list[str] = []
    inputs = tuple(_input(word, problems) for word in words)
    try:
        settings = read_config(MergeSettings, values)
    except ConfigInvalid as error:
        raise ConfigInvalid([*error.problems, *problems], hint=_HINT) from error
    problems += _count_problems(settings, inputs) + _sweep_problems(settings)
    if problems:
        raise ConfigInvalid(problems, hint=_HINT)
    return settings, inputs


def _input(word: str, problems: list[str]) -> Input:
    name, equals, text = word.rpartition("=")
    if not equals or Path(word).is_dir():
        return Input(word)
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= MAX_WEIGHT:
        problems.append(f"{word}: the weight is {text!r:.40}, expected a number up to {MAX_WEIGHT:g} in size")
    return Input(name, weight)


def _count_problems(settings: MergeSettings, inputs: Sequence[Input]) -> list[str]:
    method, weighted = settings.method, [one.name for one in inputs if one.weight is not None]
    problems = []
    if len({one.name for one in inputs}) != len(inputs):
        problems.append("an input is given twice")
    if method == "scale" and len(inputs) != 1:
        problems.append(f"scale takes 1 input, found {len(inputs)}")
    if method in ("soup", "sum", "ties") and len(inputs) < 2:
        problems.append(f"{method} takes 2 inputs or more, found {len(inputs)}")
    if method == "soup" and weighted:
        problems.append(f"soup is the plain mean and takes no weights, found one on {', '.join(weighted)}; use sum")
    if method == "scale" and bool(weighted) == settings.sweep:
        problems.append("scale takes either a weight, INPUT=WEIGHT, or --sweep to find it")
    return problems


def _sweep_problems(settings: MergeSettings) -> list[str]:
    unused = sorted(settings.model_fields_set - settings.used)
    by = f"{settings.method}{' --sweep' if settings.sweep else ''}"
    problems = [f"{name}: not read by --method {by}" for name in unused]
    if not settings.sweep:
        return problems
    if settings.method != "scale":
        problems.append(f"--sweep finds a scale, the method is {settings.method}")
    if settings.eval is None and settings.select is None:
        problems.append("--sweep needs --select, or --eval of which it takes half")
    if not settings.guardrails:
        problems.append("--sweep needs --guardrail")
    if len({file.stem for file in settings.guardrails}) != len(settings.guardrails):
        problems.append("guardrails: two files of one name")
    return problems
