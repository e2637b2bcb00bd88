"""What the operator sees: Prometheus metrics with capped label values. Never a prompt."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, Literal, cast

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .decision_log import DecisionLog
from .engine_metrics import EngineMetrics
from .following.residency import LoadOutcome
from .following.standing import Standing
from .types import Decision

TAIL_BYTES = 4096
MAX_ROUTE_LABELS = 1000
MAX_TOKENS = 2**40  # of one answer: an engine that says more may not spoil the sums
# A line of the stream itself: inside an event's data, line ends are escaped.
_RESPONSE_END = re.compile(rb"event: response\.(?:completed|incomplete|failed)\r?\n")
_RESPONSE_END_BYTES = 40  # no less than the longest of them
_RESPONSE_EVENT = b"event: response."
_RESPONSE_TOKEN = b"event: response.output_text.delta"
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
Outcome = Literal["ok", "cancelled", "failed"]


class Tail:
    """The last 4 KB of an answer and how many events passed: enough for usage, whatever the answer's length.

    A stream ends with `data: [DONE]`; one of /v1/responses with an event that says how the response ended.
    """

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._kept = b""
        self._earlier_usage = b""
        self._events = 0
        self._response_tokens = 0
        self._response_ended = False
        self._counted: tuple[int | None, int, bool] | None = None
        self.first_byte_seconds: float | None = None

    def push(self, piece: bytes, seconds: float) -> None:
        if self.first_byte_seconds is None:
            self.first_byte_seconds = seconds
        self._counted = None
        if self._stream:
            self._events += piece.count(b"data: ")
            seen = self._kept[-_RESPONSE_END_BYTES:] + piece
            if _RESPONSE_EVENT in seen:
                self._response_tokens += piece.count(_RESPONSE_TOKEN)
                self._response_ended = self._response_ended or _RESPONSE_END.search(seen) is not None
        joined = self._kept + piece
        if not self._stream and len(joined) > TAIL_BYTES:
            self._find_usage(joined)
        self._kept = joined[-TAIL_BYTES:]

    @property
    def done(self) -> bool:
        """Whether a stream ended as it should."""
        return b"data: [DONE]" in self._kept or (self._response_ended and self._kept.endswith((b"\n\n", b"\r\n\r\n")))

    def tokens(self) -> tuple[int | None, int, bool]:
        """(prompt tokens, completion tokens, estimated): from the usage, else one token for each event."""
        if self._counted is None:
            self._counted = self._count()
        return self._counted

    def _find_usage(self, joined: bytes) -> None:
        """Of a whole document usage may stand before fields as long as a prompt (`prompt_token_ids`)."""
        place = joined.rfind(b'"usage"')
        if place >= 0:
            self._earlier_usage = joined[place : place + TAIL_BYTES]

    def _count(self) -> tuple[int | None, int, bool]:
        try:
            usage = self._usage()
            if "input_tokens" in usage:  # as /v1/responses counts
                return _number(usage["input_tokens"]), _number(usage.get("output_tokens", 0)), False
            return _number(usage["prompt_tokens"]), _number(usage.get("completion_tokens", 0)), False
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            # The role, the end and [DONE] are events without a token; of a response, most kinds of events are.
            return None, self._response_tokens or max(0, self._events - 3), True

    def _usage(self) -> dict[str, Any]:
        """The last usage object; `{}` where there is none."""
        last = _USAGE.match(self._kept, max(0, self._kept.rfind(b'"usage"')))
        if last is not None:
            return cast(dict[str, Any], orjson.loads(last[1]))
        found = _USAGE.findall(self._kept) or _USAGE.findall(self._earlier_usage)  # of the last event it may be null
        return cast(dict[str, Any], orjson.loads(found[-1])) if found else {}


def _number(tokens: str | float) -> int:
    """A number of tokens, whatever an engine says; raises `ValueError` or `OverflowError` for what is none."""
    return min(max(0, int(tokens)), MAX_TOKENS)


class Telemetry:
    """One Prometheus registry per gateway; label values come from the catalog, never from the client."""

    def __init__(self, decision_log: DecisionLog | None = None) -> None:
        self.registry = CollectorRegistry()
        labels = ["route", "stage", "reason"]
        self._requests = Counter(
            "branchline_requests", "Finished requests.", [*labels, "outcome"], registry=self.registry
        )
        self._errors = Counter("branchline_errors", "Requests refused or failed.", ["code"], registry=self.registry)
        self._seconds = Histogram(
            "branchline_request_seconds", "Whole request.", ["route"], registry=self.registry, buckets=_SECONDS
        )
        self._first_byte = Histogram(
            "branchline_first_byte_seconds",
            "Until the first byte.",
            ["route"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._tokens = Counter("branchline_tokens", "Tokens.", ["route", "kind", "estimated"], registry=self.registry)
        self._serial = Gauge("branchline_registry_serial", "The serial in force.", registry=self.registry)
        self._stale = Gauge("branchline_registry_stale_seconds", "Since the registry answered.", registry=self.registry)
        self._in_force = Gauge(
            "branchline_route_as_wanted", "1 where a route is as wanted, else 0.", ["route"], registry=self.registry
        )
        self._loads = Counter(
            "branchline_adapter_loads", "Loads of versions.", ["route", "outcome"], registry=self.registry
        )
        self._load_seconds = Histogram(
            "branchline_adapter_load_seconds",
            "Loads of versions, with their proof.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._engines = EngineMetrics()
        self.registry.register(self._engines)
        self._log = decision_log
        self._routes: dict[str, _RouteSeries] = {}

    def finished(
        self,
        decision: Decision,
        request_id: str,
        outcome: Outcome,
        tail: Tail,
        seconds: float,
        text: str | None = None,
        *,
        key_id: str | None = None,
    ) -> None:
        """Count a request whose answer has ended, one way or another. `text` is what was classified, `key_id` the
        registry's name of the key that asked.
        """
        route = self._route(decision.route or "base")
        route.requests(decision, outcome).inc()
        route.seconds.observe(seconds)
        if tail.first_byte_seconds is not None:
            route.first_byte.observe(tail.first_byte_seconds)
        prompt, completion, estimated = tail.tokens()
        if prompt is not None:
            route.prompt_tokens.inc(prompt)
        (route.estimated_tokens if estimated else route.completion_tokens).inc(completion)
        if self._log is not None:
            self._log.write(decision, request_id, outcome, seconds, text, key_id)

    def loaded(self, route: str, outcome: LoadOutcome, seconds: float) -> None:
        """Count a load of a version of `route`."""
        self._loads.labels(route, outcome).inc()
        self._load_seconds.observe(seconds)

    def refused(self, code: str) -> None:
        self._errors.labels(code).inc()

    def render(self, catalog: Standing) -> bytes:
        """The metrics page; gauges are read from the catalog now."""
        self.look_at(catalog)
        return generate_latest(self.registry)

    def look_at(self, catalog: Standing) -> None:
        """Set the gauges to what the catalog tells now."""
        self._serial.set(catalog.snapshot.serial)
        self._stale.set(catalog.stale_seconds)
        for name, route in list(catalog.snapshot.routes.items())[:MAX_ROUTE_LABELS]:
            self._in_force.labels(name).set(route.in_force == route.wanted)
        self._engines.engines = catalog.engines

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def _route(self, name: str) -> _RouteSeries:
        series = self._routes.get(name)
        if series is None:
            series = self._routes[name] = _RouteSeries(
                name,
                self._requests,
                seconds=self._seconds.labels(name),
                first_byte=self._first_byte.labels(name),
                tokens=self._tokens,
            )
        return series


class _RouteSeries:
    """The series of one route, found once: prometheus_client takes longer to find one than to count."""

    def __init__(
        self, name: str, requests: Counter, *, seconds: Histogram, first_byte: Histogram, tokens: Counter
    ) -> None:
        self.seconds = seconds
        self.first_byte = first_byte
        self._name = name
        self._all_requests = requests
        self._requests: dict[tuple[str, str, str], Counter] = {}
        self._tokens = tokens

    def requests(self, decision: Decision, outcome: Outcome) -> Counter:
        labels = decision.stage, decision.reason, outcome
        counter = self._requests.get(labels)
        if counter is None:
            counter = self._requests[labels] = self._all_requests.labels(self._name, *labels)
        return counter

    @cached_property
    def prompt_tokens(self) -> Counter:
        return self._tokens.labels(self._name, "prompt", "false")

    @cached_property
    def completion_tokens(self) -> Counter:
        return self._tokens.labels(self._name, "completion", "false")

    @cached_property
    def estimated_tokens(self) -> Counter:
        return self._tokens.labels(self._name, "completion", "true")
