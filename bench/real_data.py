"""The main job once on real data: two tasks of the suite trained, published, promoted, routed and served.

    python -m bench.real_data [--seconds 300]

Needs the data folder (`../shared/data` or $BRANCHLINE_DATA). Everything is done through the commands a user types.
The first 300 rows of `router_test` go through a running gateway on the embedded engine three times: to the base, to the
route their label names (oracle), and to `auto`. Exact match is of the two tasks' rows among them.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from adapters.home import Home

from .gateway import BRANCHLINE, gateway
from .results import Row, write_results

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "quickstart" / "base"
TASKS = ("nl2regex", "snips_parse")
ROUTES = {
    "scan": "scan",
    "nl2regex": "nl2regex",
    "snips_parse": "snips-parse",
    "legal_clause": "legal-clause",
    "medical_question": "medical-question",
    "django_code": "django-code",
    "math_equation": "math-equation",
    "text2sql": "text2sql",
}
ROWS = 300


@dataclass(frozen=True)
class Asked:
    """A row of `router_test` and what came back: the answer, and the route it took (`None` for the base)."""

    label: str
    wanted: str | None
    answer: str
    route: str | None


def main() -> None:
    """Train, publish, promote, serve, ask, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300, help="training time of each task")
    parser.add_argument("--work", type=Path, help="keep state here [default: a temporary folder]")
    arguments = parser.parse_args()
    data = Path(os.environ.get("BRANCHLINE_DATA", ROOT.parent / "shared" / "data")) / "suite"
    if not data.is_dir():
        sys.exit(f"no data at {data}: set BRANCHLINE_DATA")
    work = arguments.work or Path(tempfile.mkdtemp(prefix="branchline-real-"))
    records = build(work, data, arguments.seconds)
    asked = asyncio.run(serve_and_ask(work, data))
    write(records, asked, f"python -m bench.real_data --seconds {arguments.seconds}")


def build(work: Path, data: Path, seconds: int) -> dict[str, dict[str, object]]:
    """Routes, classifier and the two trained versions; returns the trainer's records."""
    work.mkdir(parents=True, exist_ok=True)
    existing = {route["name"] for route in json.loads(branchline(work, "route", "list", "--json"))}
    for name in ROUTES.values():
        if name not in existing:
            branchline(work, "route", "create", name)
    rows = [json.loads(line) for line in (data / "router_train.jsonl").read_text(encoding="utf-8").splitlines()]
    labelled = work / "router_train.jsonl"
    named = [{"text": row["text"], "label": ROUTES.get(row["label"], row["label"])} for row in rows]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
    branchline(work, "classifier", "fit", "--examples", labelled, "--coverage", "0.985", "--promote")
    with ThreadPoolExecutor(len(TASKS)) as side_by_side:  # one thread each: two torch processes of two threads crawl
        return dict(
            zip(
                TASKS,
                side_by_side.map(lambda task: train(work, data / task, ROUTES[task], seconds), TASKS),
                strict=True,
            )
        )


def train(work: Path, task: Path, route: str, seconds: int) -> dict[str, object]:
    """Train and publish one task; promote it, forced with the reason where the gate refuses."""
    printed = branchline(
        work,
        *("train", route, "--base", BASE, "--data", task / "train.jsonl", "--select", task / "dev.jsonl"),
        *("--eval", task / "test.jsonl", "--out", work / "runs" / route, "--publish", "--json"),
        *(
            "--lr",
            "3e-3",
            "--rank",
            "16",
            "--max-seconds",
            str(seconds),
            "--epochs",
            "20",
            "--checkpoints",
            "2",
            "--threads",
            "1",
        ),
    )
    record: dict[str, object] = json.loads(printed)
    version = str(record["version"])
    if subprocess.run(_command(work, "route", "promote", version), check=False).returncode:
        why = "benchmark on real data: the suite has no guardrail file"
        branchline(work, "route", "promote", version, "--force", why)
        record["forced"] = why
    return record


async def serve_and_ask(work: Path, data: Path) -> dict[str, list[Asked]]:
    """The rows' answers from the base, oracle-routed and routed."""
    lines = (data / "router_test.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    rows: list[dict[str, str]] = [json.loads(line) for line in lines]
    models = {"base": ["base"] * ROWS, "oracle": [_oracle(row) for row in rows], "routed": ["auto"] * ROWS}
    wanted = _outputs(data)
    slots = asyncio.Semaphore(16)
    async with (
        gateway(Home.at(work / "home"), "embedded", str(BASE)) as served,
        httpx.AsyncClient(base_url=served.url, timeout=600) as client,
    ):
        return {
            arm: list(
                await asyncio.gather(
                    *(ask(client, slots, model, row, wanted) for model, row in zip(named, rows, strict=True))
                )
            )
            for arm, named in models.items()
        }


def _oracle(row: dict[str, str]) -> str:
    return ROUTES[row["label"]] if row["label"] in TASKS else "base"


async def ask(
    client: httpx.AsyncClient, slots: asyncio.Semaphore, model: str, row: dict[str, str], wanted: dict[str, str]
) -> Asked:
    """Ask for one row; `base` stands for the base's own id. Of rows of other tasks only the route counts: one token."""
    tokens = 200 if row["label"] in TASKS else 1
    body = {
        "model": model if model != "base" else BASE.name,
        "messages": [{"role": "user", "content": row["text"]}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    async with slots:
        response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    answer = response.json()["choices"][0]["message"]["content"]
    taken = response.headers.get("x-branchline-route")
    return Asked(row["label"], wanted.get(row["text"]), answer, taken)


def _outputs(data: Path) -> dict[str, str]:
    lines = [line for task in TASKS for line in (data / task / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["input"]: row["output"] for row in map(json.loads, lines)}


def write(records: dict[str, dict[str, object]], asked: dict[str, list[Asked]], command: str) -> None:
    """Exact match by arm and task, routing accuracy and base recall."""
    rows: list[Row] = []
    for task in TASKS:
        record = records[task]
        note = f"{record['training_rows']} rows, {record['tokens']} tokens in {record['training_seconds']} s"
        for arm, answers in asked.items():
            mine = [one for one in answers if one.label == task]
            rows.append(
                Row(f"{task}, exact match, {arm}", share([one.answer == one.wanted for one in mine]), "%", note)
            )
    routed = asked["routed"]
    right = [one.route == ROUTES.get(one.label) for one in routed]
    negatives = [one.route is None for one in routed if one.label not in ROUTES]
    adapters = [one.route == ROUTES[one.label] for one in routed if one.label in ROUTES]
    rows += [
        Row("routing accuracy, all 8 tasks and base", share(right), "%", f"{len(routed)} rows, coverage 98.5 %"),
        Row("adapter recall", share(adapters), "%", f"{len(adapters)} rows of the 8 tasks"),
        Row("base recall", share(negatives), "%", f"{len(negatives)} rows labelled base"),
    ]
    write_results("real_data", "The main job on real data (suite)", rows, command)


def share(found: Sequence[bool]) -> float | None:
    """Per cent true; `None` of nothing."""
    return 100 * sum(found) / len(found) if found else None


def branchline(work: Path, *arguments: str | Path) -> str:
    """Run a command on the benchmark's own home and return what it printed."""
    return subprocess.run(_command(work, *arguments), check=True, stdout=subprocess.PIPE, text=True).stdout


def _command(work: Path, *arguments: str | Path) -> list[str]:
    return [BRANCHLINE, *map(str, arguments), "--home", str(work / "home")]


if __name__ == "__main__":
    main()
