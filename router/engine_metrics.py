"""The engines on the metrics page, as their backend tells of them when the page is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .types import EngineStatus


class EngineMetrics(Collector):
    """Shows `engines`; there is one series for each, named as operators know it."""

    def __init__(self) -> None:
        self.engines: Sequence[EngineStatus] = ()

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("branchline_engine_up", "1 where an engine takes calls, else 0.", labels=["engine"])
        outstanding = GaugeMetricFamily("branchline_engine_outstanding", "Calls being answered.", labels=["engine"])
        resident = GaugeMetricFamily(
            "branchline_engine_resident", "Versions proved on this start of the engine.", labels=["engine"]
        )
        restarts = CounterMetricFamily("branchline_engine_restarts", "Starts after the first.", labels=["engine"])
        for one in self.engines:
            up.add_metric([one.name], one.state == "up")
            outstanding.add_metric([one.name], one.outstanding)
            resident.add_metric([one.name], one.resident)
            restarts.add_metric([one.name], one.restarts)
        yield from (up, outstanding, resident, restarts)
