"""The main job once on real data: tasks of the suite trained, published, promoted through the gate, routed and served.

    python -m bench.real_data [--tokens 600000] [--task nl2regex …]

Needs the data folder (`../shared/data` or $BRANCHLINE_DATA). Everything is done through the commands a user types. The
rows of each task's `test.jsonl` are the evidence: exact match and NLL of base, adapter and routed. Then every row of
`router_test` goes through a running gateway on the embedded engine three times: to the base, to the route its label
names (oracle), and to `auto`.
"""

import argparse
import asyncio
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from adapters.evidence import Evaluation, Score, parse_evidence
from adapters.home import Home

from .data import find_data
from .gateway import BRANCHLINE, gateway
from .real_answers import Asked, ask_all
from .results import Row, write_results

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "quickstart" / "base"
TASKS = ("scan", "nl2regex", "legal_clause", "medical_question")
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
RECIPE = ("--lr", "2e-3", "--rank", "16", "--batch-tokens", "512", "--epochs", "100", "--precision", "bf16")
GUARDRAIL_ROWS = 20  # of each instruction task
LONGEST_GUARDRAIL = 900  # characters
COVERAGE = "0.985"


@dataclass(frozen=True)
class Bench:
    """Where things lie and what is trained."""

    work: Path
    data: Path
    tasks: tuple[str, ...]
    tokens: int

    @property
    def suite(self) -> Path:
        return self.data / "suite"

    def run(self, *arguments: str | Path) -> str:
        """Run a command on the benchmark's own home and return what it printed."""
        command = [BRANCHLINE, *map(str, arguments), "--home", str(self.work / "home")]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Train, publish, promote, serve, ask, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=600_000, help="training tokens of each task")
    parser.add_argument("--task", action="append", choices=tuple(ROUTES), help="what to train; may be repeated")
    parser.add_argument("--work", type=Path, help="keep state here and go on from it [default: a temporary folder]")
    arguments = parser.parse_args()
    data = find_data()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="branchline-real-"))
    bench = Bench(work, data, tuple(arguments.task or TASKS), arguments.tokens)
    records = build(bench)
    asked = asyncio.run(serve_and_ask(bench))
    named = "".join(f" --task {task}" for task in arguments.task or ())
    write(bench, records, asked, f"python -m bench.real_data --tokens {arguments.tokens}{named}")


def build(bench: Bench) -> dict[str, dict[str, object]]:
    """Routes, classifier and the trained versions, each promoted; returns the trainer's records."""
    bench.work.mkdir(parents=True, exist_ok=True)
    existing = {route["name"] for route in json.loads(bench.run("route", "list", "--json"))}
    for name in ROUTES.values():
        if name not in existing:
            bench.run("route", "create", name)
            # A narrow adapter forced onto general instructions gets worse there; users meet the routed system.
            bench.run("route", "set", name, "guardrails=routed")
    if not existing:
        rows = [{**row, "label": ROUTES.get(row["label"], row["label"])} for row in read(bench.suite, "router_train")]
        labelled = write_rows(bench.work / "router_train.jsonl", rows)
        bench.run("classifier", "fit", "--examples", labelled, "--coverage", COVERAGE, "--promote")
    guardrail = write_rows(bench.work / "instructions.jsonl", list(instructions(bench.data)))
    with ThreadPoolExecutor(2) as side_by_side:  # one thread each: two torch processes of two threads crawl
        records = side_by_side.map(lambda task: train(bench, task, guardrail), bench.tasks)
        return dict(zip(bench.tasks, records, strict=True))


def train(bench: Bench, task: str, guardrail: Path) -> dict[str, object]:
    """Train and publish one task with evidence under the live classifier, and promote it through the gate."""
    files, route = bench.suite / task, ROUTES[task]
    judged = [{"input": row["input"], "output": row["output"]} for part in ("dev", "test") for row in read(files, part)]
    rows = write_rows(bench.work / f"{task}_judged.jsonl", [*judged, *read(bench.work, guardrail.stem)])
    decisions = bench.work / f"{task}_decisions.jsonl"
    if not decisions.exists():
        bench.run("classifier", "decide", rows, "--out", decisions)
    printed = bench.run(
        *("train", route, "--base", BASE, "--data", files / "train.jsonl", "--select", files / "dev.jsonl"),
        *("--eval", files / "test.jsonl", "--guardrail", guardrail, "--decisions", decisions),
        *("--out", bench.work / "runs" / route, "--max-tokens", str(bench.tokens), "--checkpoints", "3"),
        *(*RECIPE, "--threads", "1", "--publish", "--json"),
    )
    record: dict[str, object] = json.loads(printed)
    bench.run("route", "promote", str(record["version"]))
    return record


async def serve_and_ask(bench: Bench) -> dict[str, list[Asked]]:
    """The answers to `router_test` from the base, oracle-routed and routed."""
    rows = read(bench.suite, "router_test")
    wanted = {row["input"]: row["output"] for task in bench.tasks for row in read(bench.suite / task, "test")}
    arms = {
        "base": [BASE.name] * len(rows),
        "oracle": [ROUTES[row["label"]] if row["label"] in bench.tasks else BASE.name for row in rows],
        "routed": ["auto"] * len(rows),
    }
    async with gateway(Home.at(bench.work / "home"), "embedded", str(BASE)) as served:
        return {arm: await ask_all(served.url, rows, models, wanted) for arm, models in arms.items()}


def write(bench: Bench, records: dict[str, dict[str, object]], asked: dict[str, list[Asked]], command: str) -> None:
    """Exact match and NLL by task and arm from the evidence, exact match and routing through the gateway."""
    rows: list[Row] = []
    for task in bench.tasks:
        record = records[task]
        note = f"{record['tokens']} tokens in {record['training_seconds']} s, one thread"
        evidence = parse_evidence((bench.work / "runs" / ROUTES[task] / "evidence.json").read_bytes())
        rows += evidence_rows(task, evidence.target, note)
        rows += gateway_rows(task, asked)
    routed = asked["routed"]
    right = [one.route == ROUTES.get(one.label) for one in routed]
    negatives = [one.route is None for one in routed if one.label not in ROUTES]
    adapters = [one.route == ROUTES[one.label] for one in routed if one.label in ROUTES]
    where = f"coverage {COVERAGE}"
    rows += [
        Row("routing accuracy, all 8 tasks and base", share(right), "%", f"{len(routed)} rows, {where}"),
        Row("adapter recall", share(adapters), "%", f"{len(adapters)} rows of the 8 tasks, {where}"),
        Row("base recall", share(negatives), "%", f"{len(negatives)} rows labelled base, {where}"),
    ]
    write_results("real_data", "The main job on real data (suite)", rows, command)


def evidence_rows(task: str, target: Evaluation, note: str) -> Iterator[Row]:
    """Of the task's own test file: what the base, the adapter and the routed system score."""
    arms: dict[str, list[Score]] = {
        "base": [item.base for item in target.items],
        "oracle": [item.adapter for item in target.items],
        "routed": [item.routed for item in target.items],
    }
    for arm, scores in arms.items():
        where = f"{len(scores)} test rows; {note}"
        yield Row(f"{task}, exact match, {arm}", 100 * fmean(score.score for score in scores), "%", where)
        yield Row(f"{task}, NLL, {arm}", fmean(score.nll for score in scores), "nats per token", where)


def gateway_rows(task: str, asked: dict[str, list[Asked]]) -> Iterator[Row]:
    """Of the task's rows in `router_test`: what came out of the gateway."""
    for arm, answers in asked.items():
        mine = [one for one in answers if one.label == task]
        found = share([one.answer == one.wanted for one in mine])
        yield Row(f"{task}, exact match through the gateway, {arm}", found, "%", f"{len(mine)} rows of router_test")


def share(found: Sequence[bool]) -> float | None:
    """Per cent true; `None` of nothing."""
    return 100 * sum(found) / len(found) if found else None


def instructions(data: Path) -> Iterator[dict[str, str]]:
    """Rows of general instruction tasks, none of which any adapter is trained on."""
    for file in sorted((data / "instructions" / "superni").glob("*/test.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        made = ({"input": f"{row['definition']}\n{row['input']}", "output": row["output"]} for row in rows)
        yield from [row for row in made if len(row["input"] + row["output"]) <= LONGEST_GUARDRAIL][:GUARDRAIL_ROWS]


def read(folder: Path, name: str) -> list[dict[str, str]]:
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
