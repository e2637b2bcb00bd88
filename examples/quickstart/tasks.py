"""Write the data of the quickstart: three tasks, the guardrail, and the texts for the classifier.

    python -m examples.quickstart.tasks --out DIR [--seed 0]

Files: `{sql,booking,regex}_{train,select,eval}.jsonl` with rows `{"input","output"}`; `*_examples.jsonl` with rows
`{"text"}` for `route create --examples`; `guardrail.jsonl` (`{"input","output"}`); `router_base.jsonl` (general
texts labelled `base`), `router_train.jsonl` (those and the route examples), `router_calibrate.jsonl` and
`router_test.jsonl` (`{"text","label"}`). The same seed gives the same bytes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sklearn.feature_extraction.text import TfidfVectorizer

from .booking_task import draw_booking
from .entities import SPLITS, Split
from .general import draw_general_texts, draw_guardrail
from .lexicon import load_lexicon
from .regex_task import draw_regex
from .rows import Draw, Row, draw_rows, write_jsonl
from .sql_task import draw_sql

TaskName = Literal["sql", "booking", "regex"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
_DRAWS: dict[TaskName, Draw] = {"sql": draw_sql, "booking": draw_booking, "regex": draw_regex}


@dataclass(frozen=True)
class Sizes:
    """Rows of each file."""

    train: int = 3000
    select: int = 60
    eval: int = 200
    examples: int = 1500
    guardrail: int = 200
    general_train: int = 1000
    general_calibrate: int = 200
    general_test: int = 200
    routed_calibrate: int = 150
    routed_test: int = 100


def make_task(name: TaskName, sizes: Sizes, seed: int) -> dict[Split, list[Row]]:
    """The rows of a task by split."""
    return {split: draw_rows(_DRAWS[name], split, getattr(sizes, split), seed) for split in SPLITS}


def nearest_neighbour_floor(train: list[Row], held_out: list[Row]) -> float:
    """Exact match of copying the output of the most similar training input (TF-IDF on words, cosine)."""
    vectorizer = TfidfVectorizer()
    known = vectorizer.fit_transform([row.input for row in train])
    nearest = (vectorizer.transform([row.input for row in held_out]) @ known.T).toarray().argmax(axis=1)
    return sum(train[int(place)].output == row.output for place, row in zip(nearest, held_out, strict=True)) / len(
        held_out
    )


def write_task(name: TaskName, rows: dict[Split, list[Row]], sizes: Sizes, folder: Path) -> None:
    """The split files and the route examples of a task."""
    for split in SPLITS:
        write_jsonl(
            folder / f"{name}_{split}.jsonl", ({"input": row.input, "output": row.output} for row in rows[split])
        )
    write_jsonl(folder / f"{name}_examples.jsonl", ({"text": row.input} for row in rows["train"][: sizes.examples]))


def write_router_files(tasks: dict[TaskName, dict[Split, list[Row]]], sizes: Sizes, seed: int, folder: Path) -> None:
    """The classifier's training, calibration and test texts; no text of the guardrail is among them.

    Calibration texts come from the `select` wordings: what the routes' examples do not know, as in live traffic.
    """
    lexicon = load_lexicon()
    texts = draw_general_texts(lexicon, "train", sizes.general_train + sizes.general_calibrate, seed)
    general = [{"text": text, "label": "base"} for text in texts]
    base, calibrate = general[: sizes.general_train], general[sizes.general_train :]
    for name in tasks:
        fresh = draw_rows(_DRAWS[name], "select", sizes.routed_calibrate, seed + 1)
        calibrate += [{"text": row.input, "label": name} for row in fresh]
    routed = [
        {"text": row.input, "label": name} for name, rows in tasks.items() for row in rows["train"][: sizes.examples]
    ]
    test = [
        {"text": row.input, "label": name} for name, rows in tasks.items() for row in rows["eval"][: sizes.routed_test]
    ]
    test += [{"text": text, "label": "base"} for text in draw_general_texts(lexicon, "eval", sizes.general_test, seed)]
    write_jsonl(folder / "router_base.jsonl", base)
    write_jsonl(folder / "router_train.jsonl", routed + base)
    write_jsonl(folder / "router_calibrate.jsonl", calibrate)
    write_jsonl(folder / "router_test.jsonl", test)


def write_all(folder: Path, seed: int = 0, sizes: Sizes | None = None) -> dict[TaskName, dict[Split, list[Row]]]:
    """Write every file into `folder` and return the rows of the tasks."""
    sizes = sizes or Sizes()
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {name: make_task(name, sizes, seed) for name in TASK_NAMES}
    for name, rows in tasks.items():
        write_task(name, rows, sizes, folder)
    guardrail = draw_guardrail(sizes.guardrail, seed)
    write_jsonl(folder / "guardrail.jsonl", ({"input": item.prompt, "output": item.answer} for item in guardrail))
    write_router_files(tasks, sizes, seed, folder)
    return tasks


def main() -> None:
    """Write the files and print the floor of each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, rows in write_all(arguments.out, arguments.seed).items():
        floor = nearest_neighbour_floor(rows["train"], rows["eval"])
        print(
            f"{name}: {len(rows['train'])} train, {len(rows['select'])} select, {len(rows['eval'])} held out, "
            f"nearest-neighbour floor {floor:.3f}"
        )


if __name__ == "__main__":
    main()
