"""The short table of what the trainings came to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADER = ("route", "held-out items", "base", "adapter", "routed", "guardrail NLL rise, forced", "routed", "training")


def show_summary(outs: Sequence[Path]) -> None:
    """Print one line per finished run in `outs`; bounds are one-sided at 95 %, in nats per token."""
    rows = [HEADER, *(_row(json.loads((out / "run.json").read_text(encoding="utf-8"))) for out in outs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("(exact match; each run's evidence as a page: .branchline/runs/*/evidence.html)\n", flush=True)


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    target, guardrail = record["result"]["target"], record["result"]["guardrails"][0]
    rise = guardrail["nll_rise_upper_bound"]
    return (
        str(record["name"]),
        str(target["items"]),
        f"{target['base']:.1%}",
        f"{target['adapter']:.1%}",
        f"{target['routed']:.1%}",
        f"≤ {rise['forced']:.3f}",
        f"≤ {rise['routed']:.3f}",
        f"{record['training_seconds']:.0f} s",
    )
