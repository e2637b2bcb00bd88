"""Result files and the page made from them.

A benchmark writes `bench/results/<name>.json`: rows of `what`, `value`, `unit`, and the commit, date, machine and
command that gave them. `python -m bench.results` renders the tables of `bench/RESULTS.md` from those files, and nothing
else does.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
BEGIN, END = "<!-- tables: made by `python -m bench.results` -->", "<!-- end of tables -->"


@dataclass(frozen=True)
class Row:
    """One figure; `value` is `None` where it was not measured, and `note` says why."""

    what: str
    value: float | None
    unit: str
    note: str = ""


def write_results(name: str, title: str, rows: Sequence[Row], command: str) -> Path:
    """Write `bench/results/<name>.json` and render the page."""
    FOLDER.mkdir(exist_ok=True)
    document = {
        "title": title,
        "command": command,
        **provenance(),
        "rows": [asdict(row) for row in rows],
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    render_page()
    return path


def provenance() -> dict[str, str]:
    """What every result names: commit, date and machine."""
    return {"commit": _commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine()}


def render_page() -> None:
    """Put one table per result file between the markers of RESULTS.md."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    tables = "\n".join(_table(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(FOLDER.glob("*.json")))
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")


def _table(document: dict[str, object]) -> str:
    lines = [
        f"### {document['title']}",
        "",
        f"`{document['command']}` · commit {document['commit']} · {document['date']} · {document['machine']}",
        "",
        "| what | value | unit | note |",
        "|---|---:|---|---|",
    ]
    rows = document["rows"]
    for row in rows if isinstance(rows, list) else []:
        value = "not measured" if row["value"] is None else f"{row['value']:.4g}"
        lines.append(f"| {row['what']} | {value} | {row['unit']} | {row['note']} |")
    return "\n".join([*lines, ""])


def _commit() -> str:
    run = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return (run.stdout.strip() or "unknown") + ("+changes" if dirty.stdout.strip() else "")


def _machine() -> str:
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    gpus = "".join(f", {gpu}" for gpu in _gpus())
    return f"{os.cpu_count()} cores ({model}){gpus}, Python {platform.python_version()}"


def _gpus() -> list[str]:
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    render_page()
