"""A route's policy: what the promotion gate asks for, and how the route behaves. Unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from .errors import InvalidName

GuardrailMode = Literal["forced", "routed"]
OnDisabled = Literal["base", "error"]
LoraLoad = Literal["gated", "forced"]
MAX_COLD_WAIT_MS = 60_000
_MOST = {"cold_wait_ms": MAX_COLD_WAIT_MS}
_CHOICES = {
    "guardrails": get_args(GuardrailMode),
    "on_disabled": get_args(OnDisabled),
    "lora_load": get_args(LoraLoad),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Defaults are the promotion gate's default policy.

    `min_items`: target items the evidence needs. `min_gain`: the one-sided 95 % bound of the paired target
    difference to the base must be over it (score points, 0 to 1). `max_loss_to_live`: the same bound against the
    live version must be at least minus this. `min_guardrails`: guardrails the evidence needs. `max_nll_rise`: the
    one-sided 95 % bound of a guardrail's paired rise may not exceed it (nats per token). `guardrails`: judged with
    the adapter forced on, or as the live classifier would route them. `on_disabled`: what a request for the
    disabled route by name gets. `cold_wait_ms`: how long a request waits for the route's version where the engine
    does not hold it, before the base answers (milliseconds, at most `MAX_COLD_WAIT_MS`). `lora_load`: whether what
    `POST /v1/load_lora_adapter` brings must pass the promotion gate, or is promoted over it.
    """

    min_items: int = 50
    min_gain: float = 0.0
    max_loss_to_live: float = 0.02
    min_guardrails: int = 1
    max_nll_rise: float = 0.02
    guardrails: GuardrailMode = "forced"
    on_disabled: OnDisabled = "base"
    cold_wait_ms: int = 0
    lora_load: LoraLoad = "gated"

    @classmethod
    def of(cls, stored: Mapping[str, object]) -> Policy:
        """The policy with what is stored in the registry; every problem is named."""
        problems: list[str] = []
        values = {name: _value(name, value, problems) for name, value in stored.items()}
        if problems:
            raise InvalidName("; ".join(problems), hint=f"known keys: {', '.join(policy_keys())}")
        return cls(**values)  # type: ignore[arg-type]  # _value checked each against its field

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def policy_keys() -> list[str]:
    return [field.name for field in fields(Policy)]


def merge_policy(stored: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """`stored` with `changes` over it, validated; a change to `None` goes back to the default."""
    merged = {**stored, **changes}
    kept = {name: value for name, value in merged.items() if value is not None or name not in policy_keys()}
    policy = Policy.of(kept).to_json()
    return {name: policy[name] for name in kept}


def parse_assignments(assignments: Sequence[str]) -> dict[str, object]:
    """KEY=VALUE words of the command line, values still as text; `KEY=` means back to the default."""
    changes: dict[str, object] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise InvalidName(f"{assignment!r} is no KEY=VALUE", hint=f"known keys: {', '.join(policy_keys())}")
        changes[key] = value or None
    return changes


def _value(name: str, value: object, problems: list[str]) -> object:
    default = {field.name: field.default for field in fields(Policy)}.get(name)
    if default is None:
        problems.append(f"unknown policy key {name!r}")
    elif isinstance(default, str):
        choices = _CHOICES[name]
        if value not in choices:
            problems.append(f"{name} is {value!r:.40}, expected one of {', '.join(choices)}")
    else:
        return _number(name, value, type(default), problems)
    return value


def _number(name: str, value: object, kind: type, problems: list[str]) -> object:
    try:
        number = kind(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    allowed = (int,) if kind is int else (int, float)
    most = _MOST.get(name)
    if isinstance(number, bool) or not isinstance(number, allowed) or not 0 <= number <= (most or 1_000_000):
        span = "of 0 or more" if most is None else f"from 0 to {most}"
        problems.append(f"{name} is {value!r:.40}, expected {'a whole' if kind is int else 'a'} number {span}")
        return 0
    return number
