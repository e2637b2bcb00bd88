"""Metrics of several workers as one: counters and histograms add; a gauge is the parent's, or adds where it has none.

What a worker counted stays counted when it dies: totals never go down, as whoever reads counters expects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

COUNTED = frozenset({"counter", "histogram", "summary"})
Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]
Family = tuple[str, str, str, list[Sample]]  # name, kind, documentation, samples


def families(registry: Collector | CollectorRegistry) -> list[Family]:
    """Everything in `registry`."""
    return [_family(metric) for metric in registry.collect()]


def counters(found: Iterable[Family]) -> list[Family]:
    """What stays of a process when it is gone."""
    return [family for family in found if family[1] in COUNTED]


def add_up(parts: Iterable[Iterable[Family]]) -> list[Family]:
    """The sums, sample by sample; when a counter was created is the earliest of the times told."""
    heads: dict[str, tuple[str, str]] = {}
    sums: dict[str, dict[tuple[str, Labels], float]] = {}
    for part in parts:
        for name, kind, documentation, samples in part:
            heads.setdefault(name, (kind, documentation))
            into = sums.setdefault(name, {})
            for sample, labels, value in samples:
                key = (sample, tuple((label, word) for label, word in labels))
                if sample.endswith("_created"):
                    into[key] = min(value, into.get(key, value))
                else:
                    into[key] = into.get(key, 0.0) + value
    return [
        (name, *heads[name], [(sample, labels, value) for (sample, labels), value in samples.items()])
        for name, samples in sums.items()
    ]


def render(own: CollectorRegistry, of_workers: Iterable[Iterable[Family]]) -> bytes:
    """The page."""
    mine = families(own)
    known = {name for name, kind, _, _ in mine if kind not in COUNTED}
    others = [[family for family in part if family[0] not in known] for part in of_workers]
    page = CollectorRegistry()
    page.register(_Page([_metric(family) for family in add_up([mine, *others])]))
    return generate_latest(page)


class _Page(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _family(metric: Metric) -> Family:
    samples = [(one.name, tuple(one.labels.items()), float(one.value)) for one in metric.samples]
    return metric.name, metric.type, metric.documentation, samples


def _metric(family: Family) -> Metric:
    name, kind, documentation, samples = family
    metric = Metric(name, documentation, kind)
    for sample, labels, value in samples:
        metric.add_sample(sample, dict(labels), value)
    return metric
