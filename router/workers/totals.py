"""Counters of several workers as one: counters and histograms add; gauges are the parent's, who knows everything.

What a worker counted stays counted when it dies: totals never go down, as whoever reads counters expects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

ADD = frozenset({"counter", "histogram", "summary"})
Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]
Family = tuple[str, str, str, list[Sample]]  # name, kind, documentation, samples


def families(registry: Collector | CollectorRegistry) -> list[Family]:
    """Everything in `registry` that adds up."""
    return [_family(metric) for metric in registry.collect() if metric.type in ADD]


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
    """The page: the parent's gauges, and the counters of all."""
    gauges = [metric for metric in own.collect() if metric.type not in ADD]
    page = CollectorRegistry()
    page.register(_Page([*map(_metric, add_up([families(own), *of_workers])), *gauges]))
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
