"""From what was measured to the rows of the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import linear_regression

from .gateway_parts import ASKED, Found, Held, Latency
from .results import Row
from .spread import percentile, row_of_rounds

OURS = ("pinned", "auto")
SMALL_BODIES = ("", "streamed")
TARGETS = {"cpu_us_pinned": "target: at most 350", "cpu_us_auto": "target: at most 600"}
LATENCY_TARGETS = {0.5: "target: under 1", 0.99: "target: under 5"}


@dataclass(frozen=True, slots=True)
class Missed:
    """A peer that could not be measured, and why."""

    name: str
    why: str


def rows_of(found: Found, missed: Sequence[Missed], *, cores: int) -> list[Row]:
    """All rows: CPU times and their ratios, rates, latency added, memory."""
    return [
        *_cpu_rows(found, cores),
        *(Row(f"cpu_us_{one.name}", None, "µs", one.why) for one in missed),
        *_ratio_rows(found),
        *_rate_rows(found),
        *(row for (cell, arm), latency in found.latencies.items() for row in _latency_rows(cell, arm, latency)),
        *_memory_rows(found.memory),
        *(Row(_named("memory_mb", name, ""), mb, "MB", "when all was done") for name, mb in found.memory_of.items()),
        *_classified_rows(found),
    ]


def _named(what: str, arm: str, cell: str) -> str:
    return "_".join(word for word in (what, arm, cell) if word)


def _cpu_rows(found: Found, cores: int) -> Iterator[Row]:
    for (cell, arm), loads in found.loads.items():
        name = _named("cpu_us", arm, cell)
        where = "the load's core" if arm == "straight" else "a core of its own"
        counted = f"{sum(load.reached for load in loads):,} requests, {where if cores > 1 else 'one core for all'}"
        times = [load.cpu_us for load in loads if load.cpu_us is not None]
        failed = sum(load.failed for load in loads)
        notes = [TARGETS.get(name, ""), counted, f"{failed} failed: those rounds are left out" if failed else ""]
        yield row_of_rounds(name, times, "µs", "; ".join(filter(None, notes)))


def _ratio_rows(found: Found) -> Iterator[Row]:
    """Medians of the rounds' own ratios: a round's servers ran right after one another."""
    arms = dict.fromkeys(arm for _, arm in found.loads)
    for cell in [cell for cell in SMALL_BODIES if any(measured == cell for measured, _ in found.loads)]:
        for other in [arm for arm in arms if arm not in (*OURS, "straight")]:
            for own in [arm for arm in OURS if arm in arms]:
                yield _ratio(found, cell, own, other)


def _ratio(found: Found, cell: str, own: str, other: str) -> Row:
    """The peer's CPU time over ours, or ours over that of the router in Rust, which is the cheaper one."""
    reverse = other == "vllm_router"
    over, under = (own, other) if reverse else (other, own)
    pairs = zip(found.loads.get((cell, over), []), found.loads.get((cell, under), []), strict=False)
    ratios = [one.cpu_us / two.cpu_us for one, two in pairs if one.cpu_us and two.cpu_us]
    target = {"litellm": "target: at least 25", "vllm_router": "target: at most 4"}.get(other, "")
    return row_of_rounds(_named("cpu", f"{over}_over_{under}", cell), ratios, "×", target if not cell else "")


def _rate_rows(found: Found) -> Iterator[Row]:
    for (cell, arm), loads in found.loads.items():
        rates = [load.rate for load in loads if load.answered]
        if cell in SMALL_BODIES:
            yield row_of_rounds(_named("rate", arm, cell), rates, "requests/s", "closed loop of 32 clients")


def _latency_rows(cell: str, arm: str, latency: Latency) -> Iterator[Row]:
    counted = f"{latency.rate:.0f} requests/s, half of what it carries; {len(latency.came.whole):,} requests"
    late = f"the generator was at most {latency.came.late * 1000:.1f} ms late"
    failed = f"{latency.came.failed} failed"
    kinds = {"whole": (latency.came.whole, latency.straight.whole)}
    if cell:
        kinds = {"first": (latency.came.first, latency.straight.first), **kinds}
    for kind, (through, straight) in kinds.items():
        for share, name in ((0.5, "p50"), (0.99, "p99")):
            added = _difference(percentile(through, share), percentile(straight, share))
            target = LATENCY_TARGETS[share] if arm in OURS else ""
            notes = [target, counted, failed, late]
            yield Row(_named(f"added_ms_{name}", arm, f"{cell}_{kind}" if cell else ""), added, "ms", _note(notes))
    yield Row(_named("cpu_us_half_load", arm, cell), latency.cpu_us, "µs", "in the open loop; answers after 50 ms")


def _note(parts: Sequence[str]) -> str:
    return "; ".join(part for part in parts if part)


def _difference(through: float | None, straight: float | None) -> float | None:
    return None if through is None or straight is None else (through - straight) * 1000


def _classified_rows(found: Found) -> Iterator[Row]:
    if found.classified is not None:
        note = f"of {ASKED} texts went to a version; the others are answered by the base"
        yield Row("auto_classified", found.classified * 100, "%", note)


def _memory_rows(memory: Sequence[Held]) -> Iterator[Row]:
    """Growth is the slope (least squares) of the second half: what is filled once is full by then."""
    if not memory:
        return
    first, last, late = memory[0], memory[-1], memory[len(memory) // 2 :]
    yield Row("memory_mb_before", first.mb, "MB", f"after {first.requests:,} requests")
    yield Row("memory_mb_after", last.mb, "MB", f"after {last.requests:,} requests, each with another text")
    grown = linear_regression([held.requests for held in late], [held.mb * 1e6 for held in late]).slope
    spread = f"{min(held.mb for held in late):.1f} to {max(held.mb for held in late):.1f} MB"
    yield Row("memory_bytes_per_request", grown, "bytes", f"from request {late[0].requests:,} to the last; {spread}")
