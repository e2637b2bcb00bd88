"""The keys on the metrics page: what each was let do and refused, by its name, never by more than that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .limits import Limits

MAX_KEY_LABELS = 200
OTHER = "other"


class KeyMetrics(Collector):
    """Shows the keys that have asked this gateway; those after the first `MAX_KEY_LABELS` together, as `other`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def collect(self) -> Iterator[Metric]:
        admitted, tokens, running = Counter[str](), Counter[str](), Counter[str]()
        refused = Counter[tuple[str, str]]()
        named: set[str] = set()
        for use in self._limits.uses:
            name = use.name if use.name in named or len(named) < MAX_KEY_LABELS else OTHER
            named.add(name)
            admitted[name] += use.admitted
            tokens[name] += use.tokens_counted
            running[name] += use.running
            refused.update({(name, limit): count for limit, count in use.refused.items() if count})
        requests = CounterMetricFamily("branchline_key_requests", "Requests let in.", labels=["key"])
        counted = CounterMetricFamily("branchline_key_tokens", "Tokens counted to a key.", labels=["key"])
        now = GaugeMetricFamily("branchline_key_running", "Requests being answered.", labels=["key"])
        for name in sorted(named):
            requests.add_metric([name], admitted[name])
            counted.add_metric([name], tokens[name])
            now.add_metric([name], running[name])
        limited = CounterMetricFamily(
            "branchline_key_limited", "Requests refused because a key was at a limit.", labels=["key", "limit"]
        )
        for (name, limit), count in sorted(refused.items()):
            limited.add_metric([name, limit], count)
        yield from (requests, counted, now, limited)
