"""What the measured gateway serves: a route for each intent of CLINC150, a version of each, a sparse classifier.

The classifier is fitted on `FITTED` training rows of each intent. The texts that are asked are the other training rows
and the validation rows: it has seen none of them, and none is a test row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapters.base import find_base
from adapters.home import Home
from adapters.publish import publish_folder
from adapters.registry import Registry

from .adapter_folder import BASE, write_adapter
from .classifier_data import Rows, Task, clinc150, first_labels, rows_by_label
from .classifier_homes import fit_home
from .gateway_requests import write_texts

FITTED = 20
COVERAGE = 0.95
FILLER_TEXTS = 400


@dataclass(frozen=True, slots=True)
class Served:
    """A prepared home; `texts` is the file of texts to ask, `filler` real text to fill bodies with."""

    home: Home
    texts: Path
    count: int
    filler: str
    pinned: str


def prepare(folder: Path, data: Path, labels: int | None = None) -> Served:
    """Make the home in `folder`, or take up the one that is there. `labels` keeps so many intents, for a trial."""
    described = folder / "served.json"
    if not described.exists():
        task = clinc150(data, "dev")
        _make(folder, task if labels is None else first_labels(task, labels), described)
    facts = json.loads(described.read_text())
    return Served(Home.at(folder), folder / "texts", facts["count"], facts["filler"], facts["pinned"])


def _make(folder: Path, task: Task, described: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fitted = [row for rows in rows_by_label(task.train).values() for row in rows[:FITTED]]
    others = [row for rows in rows_by_label(task.train).values() for row in rows[FITTED:]]
    validation = task.judged
    names = sorted({row.label for row in fitted})
    _publish(Home.at(folder), names)
    bare = argparse.Namespace(encoder=None)
    fit_home(folder, [*fitted, *task.oos_train], validation, COVERAGE, bare)
    asked = _without(fitted, [*validation, *others])
    write_texts(folder / "texts", asked)
    plain = [text for text in asked if json.dumps(text) == f'"{text}"']
    facts = {"count": len(asked), "filler": ". ".join(plain[:FILLER_TEXTS]) + ". ", "pinned": names[0]}
    described.write_text(json.dumps(facts))


def _without(fitted: Rows, rows: Rows) -> list[str]:
    """Every text once, none that was fitted on, in an order that mixes the intents."""
    seen = {row.text for row in fitted}
    texts = [text for text in dict.fromkeys(row.text for row in rows) if text not in seen]
    stride = 101  # rows lie intent by intent
    return [text for start in range(stride) for text in texts[start::stride]]


def _publish(home: Home, names: list[str]) -> None:
    registry, store, base = Registry.open(home.registry_url), home.open_store(), find_base(str(BASE))
    try:
        for seed, name in enumerate(names):
            registry.create_route(name)
            with tempfile.TemporaryDirectory() as folder:
                write_adapter(Path(folder), base, seed)
                publish_folder(registry, store, name, Path(folder), base)
            registry.promote(name, 1, forced="benchmark")
    finally:
        registry.close()
