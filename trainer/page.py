"""Evidence as one self-contained HTML page: no script, no network, pictures inline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from adapters.evidence import Evidence
from adapters.rows import last_user_text

from .comparison import Compared
from .plots import guardrail_rises, learning_curve, score_name, target_scores
from .report import Findings, Interval, summarise
from .select import score_gains

WORST_SHOWN = 20
WORSE_NLL = 0.1


@dataclass(frozen=True, slots=True)
class WorseItem:
    """An item on which the adapter lost a point, or rises by more than `WORSE_NLL` nats per token."""

    dataset: str
    prompt: str
    answer: str
    base_output: str
    adapter_output: str
    drop: float
    rise: float
    routed_to: str | None


def render_page(name: str, base_id: str, findings: Findings, evidence: Evidence) -> str:
    """The page of one version's evidence as HTML text."""
    target = findings.target.evaluation
    guardrails = [one.evaluation for one in findings.guardrails]
    template = load_template(__package__, "page.html", score_name=score_name)
    worse = sorted(worse_items(findings), key=lambda one: (-one.drop, -one.rise))
    curve = findings.choice and learning_curve(findings.losses, findings.candidates, findings.choice.step)
    return template.render(
        name=name,
        base_id=base_id,
        evidence=evidence,
        summary=summarise(findings),
        gain=Interval.of(score_gains(target.items, "forced")),
        bound=findings.bound,
        curve=curve,
        target_plot=target_scores(target),
        guardrail_plot=guardrail_rises(guardrails, findings.bound) if guardrails else None,
        worse=worse[:WORST_SHOWN],
        worse_total=len(worse),
        worse_nll=WORSE_NLL,
    )


def load_template(package: str, name: str, **filters: Callable[..., str]) -> Template:
    """The page template `name` that lies in `package`; everything put into it is escaped, nothing may be missing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def worse_items(findings: Findings) -> Iterator[WorseItem]:
    for compared in (findings.target, *findings.guardrails):
        yield from _worse(compared)


def _worse(compared: Compared) -> Iterator[WorseItem]:
    items = zip(compared.evaluation.items, compared.dataset.examples, compared.base, compared.adapter, strict=True)
    for item, example, base, adapter in items:
        drop, rise = item.base.score - item.adapter.score, item.adapter.nll - item.base.nll
        if drop > 0 or rise > WORSE_NLL:
            yield WorseItem(
                compared.dataset.name,
                last_user_text(example.messages),
                example.answer,
                base.output,
                adapter.output,
                drop,
                rise,
                item.routed_to,
            )
