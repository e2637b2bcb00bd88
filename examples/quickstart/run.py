"""`make run`: the whole loop on the pocket base. Train three adapters, register them, route, serve.

Every step is a `branchline` command that can be typed by hand; what is done already is skipped, so a second run, or one
after Ctrl-C at any moment, goes on from there. State lives in `.branchline/` of the checkout.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.classifiers import live_classifier
from adapters.errors import BranchlineError
from adapters.home import Home
from adapters.registry import Registry
from adapters.rows import sha256_file, sha256_json

from .demo import show_branches, wait_until_ready
from .summary import show_summary
from .tasks import TASK_NAMES, TaskName, write_all

CHECKOUT = Path(__file__).resolve().parents[2]
BASE = Path(__file__).parent / "base"
BRANCHLINE = str(Path(sys.executable).parent / "branchline")
DESCRIPTIONS: dict[TaskName, str] = {
    "sql": "a question about columns, answered with SQL",
    "booking": "a table booking, answered with JSON",
    "regex": "a description of lines, answered with a regular expression",
}
STOP_SECONDS = 20
RECIPES: dict[TaskName, tuple[str, ...]] = {  # chosen on the select files
    "sql": ("--lr", "2e-3", "--batch-tokens", "768", "--epochs", "1"),
    "booking": ("--lr", "2e-3", "--batch-tokens", "1152", "--epochs", "1"),
    "regex": ("--lr", "3e-3", "--batch-tokens", "640", "--epochs", "2"),
}


@dataclass(frozen=True)
class Places:
    """Where the quickstart keeps things."""

    root: Path

    @property
    def home(self) -> Home:
        return Home.at(self.root / "home")

    @property
    def data(self) -> Path:
        return self.root / "data"

    def out(self, task: TaskName) -> Path:
        return self.root / "runs" / task


def main() -> None:
    """Parse the flags and run; Ctrl-C ends in one line and leaves a state to go on from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=CHECKOUT / ".branchline", help="where state is kept")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--no-serve", action="store_true", help="stop after the adapters are promoted")
    arguments = parser.parse_args()
    places = Places(arguments.root)
    os.environ["BRANCHLINE_HOME"] = str(places.home.folder)
    try:
        prepare(places)
        show_summary([places.out(task) for task in TASK_NAMES])
        if not arguments.no_serve:
            serve(arguments.port)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; `make run` goes on from here")
    except BranchlineError as error:
        sys.exit(f"quickstart: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"quickstart: `branchline {' '.join(error.cmd[1:3])}` failed, see above; `make run` goes on from here")


def prepare(places: Places) -> None:
    """Everything up to three live routes and a classifier in use."""
    write_data(places)
    registry = Registry.open(places.home.registry_url)
    for task in TASK_NAMES:
        make_route(registry, task, places)
    if live_classifier(registry) is None:
        say("fitting the classifier on the routes' examples and on general texts")
        branchline(
            *("classifier", "fit", "--base-examples", places.data / "router_base.jsonl"),
            *("--calibrate-on", places.data / "router_calibrate.jsonl", "--coverage", "0.97", "--promote"),
        )
    for task in TASK_NAMES:
        if registry.route(task).live is None:
            train_and_promote(task, places, registry)
    registry.close()


def write_data(places: Places) -> None:
    """Generate the tasks' rows where they are not there yet; the marker is written last."""
    marker = places.data / "COMPLETE"
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    version = sha256_json([sha256_file(source) for source in sources])
    if not marker.exists():
        say("generating the data of the three tasks")
        write_all(places.data)
        for task in TASK_NAMES:
            names = [f"{task}_select.jsonl", f"{task}_eval.jsonl", "guardrail.jsonl"]
            text = "".join((places.data / name).read_text(encoding="utf-8") for name in names)
            (places.data / f"{task}_judged.jsonl").write_text(text, encoding="utf-8")
        marker.write_text(version, encoding="utf-8")
    elif marker.read_text(encoding="utf-8") != version:
        say("note: .branchline/ was made by another version of the quickstart; delete it to start afresh")


def make_route(registry: Registry, task: TaskName, places: Places) -> None:
    """Create the route, with guardrails judged as the classifier routes them."""
    if task not in {route.name for route in registry.routes()}:
        examples = places.data / f"{task}_examples.jsonl"
        branchline("route", "create", task, "--examples", examples, "--description", DESCRIPTIONS[task])
    if not registry.route(task).policy:
        branchline("route", "set", task, "guardrails=routed")


def train_and_promote(task: TaskName, places: Places, registry: Registry) -> None:
    """Decide where each evaluated row would go, train, publish with evidence, promote through the gate."""
    say(f"{task}: {DESCRIPTIONS[task]}")
    decisions = places.root / f"{task}_decisions.jsonl"
    branchline("classifier", "decide", places.data / f"{task}_judged.jsonl", "--out", decisions)
    common = ("--checkpoints", "2", "--warmup", "0.05")
    branchline(
        *("train", task, "--base", BASE, "--data", places.data / f"{task}_train.jsonl"),
        *("--select", places.data / f"{task}_select.jsonl", "--eval", places.data / f"{task}_eval.jsonl"),
        *("--guardrail", places.data / "guardrail.jsonl", "--decisions", decisions),
        *("--out", places.out(task), "--publish"),
        *common,
        *RECIPES[task],
    )
    branchline("route", "promote", f"{task}@{registry.route(task).latest}")


def serve(port: int) -> None:
    """Start the gateway, show four requests, and stay until Ctrl-C."""
    gateway = subprocess.Popen([BRANCHLINE, "serve", "--backend", "embedded", "--base", str(BASE), "--port", str(port)])
    try:
        if wait_until_ready(gateway, port):
            show_branches(port)
        code = gateway.wait()
    except KeyboardInterrupt:
        code = stop(gateway)
    if code:
        sys.exit(code)


def stop(gateway: "subprocess.Popen[bytes]") -> int:
    """Ctrl-C at a terminal reaches the gateway too, and a second one would cut its answers short: wait for it first."""
    try:
        return gateway.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        gateway.terminate()
        return gateway.wait(timeout=STOP_SECONDS)


def branchline(*arguments: str | Path) -> None:
    """Run a `branchline` command, shown as it would be typed."""
    words: Sequence[str] = [str(argument) for argument in arguments]
    print(f"  $ branchline {' '.join(_shown(word) for word in words)}", flush=True)
    subprocess.run([BRANCHLINE, *words], check=True)


def _shown(word: str) -> str:
    short = word.replace(f"{CHECKOUT}{os.sep}", "")
    return f'"{short}"' if " " in short else short


def say(text: str) -> None:
    print(f"\n{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    main()
