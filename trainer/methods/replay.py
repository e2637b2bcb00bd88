"""Replay: a share ρ of the stream's tokens comes from earlier tasks' rows, or from what the base itself writes.

Every task has the quota ⌊M/T⌋ (one more for the first M mod T) of the capacity M and keeps the first rows of its own
order of priority:

random      a seeded permutation, whatever the order of the file
diverse     nearest to the centroids of k-means, on mean-pooled last hidden states of the base over the prompt
difficult   half the highest mean-token loss under the starting model after dropping the top 2 %, half random
self        random prompts, answered by the base, adapter disabled and greedily (arXiv 2403.01244 calls this
            self-synthesised rehearsal); prompts are the anchors where there are any, else the tasks' own.
            This protects the base: on an earlier task's prompt the base's answer is not the one that was learned

The rows that the run which wrote the start had kept come first, in its order (`past.left`): a task only ever gives up
the end of what it kept, even where the priority depends on the model.

ρ is a share of the stream and never also a weight of the loss.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.rows import last_user_text, sha256_json
from adapters.types import Json

from ..batches import BatchSource
from ..data import Encoded
from ..distillation.cache import row_key
from ..errors import DataInvalid, LeakFound
from ..folder import write_json
from ..past import PastTask
from ..rehearsal.memory import first_quota, quotas
from ..rehearsal.mixed_batches import MixedBatches, memory_batches
from ..rehearsal.reader import Reader
from .recipe import Context, Recipe
from .settings import Replay

_MEMORY = "memory.json"


def build(settings: Replay, context: Context) -> Recipe:
    """Selects the rows, once for a run. Raises `DataInvalid` where there is nothing to remember, `LeakFound` for
    rows that an evaluation of the run reads, and `Interrupted`.

    Two of them (rows and `self`) may be joined; the second one's share is of the whole stream, the first one's of
    what the second leaves.
    """
    tasks = _sources(settings, context)
    _refuse_judged(tasks, context.judged)
    file = context.cache / f"replay-{sha256_json([settings.selection, settings.capacity])[:16]}.json"
    if not file.is_file():
        started = time.monotonic()
        chosen = [_choose(settings, context, tasks, index) for index in range(len(tasks))]
        write_json(file, {"chosen": chosen, "seconds": round(time.monotonic() - started, 2)})
    saved = json.loads(file.read_text(encoding="utf-8"))
    kept = {
        task.name: [(task.examples[index], _row(task.examples[index], written, context)) for index, written in chosen]
        for task, chosen in zip(tasks, saved["chosen"], strict=True)
    }
    stream = Stream(settings, context, kept, saved["seconds"])
    return Recipe(wrap=(stream.wrap,), finish={_name(settings): stream.report})


class Stream:
    """The remembered rows by task, each with the row it was made of, and the stream they were mixed into."""

    def __init__(
        self,
        settings: Replay,
        context: Context,
        kept: Mapping[str, Sequence[tuple[Encoded, Encoded]]],
        seconds: float,
    ) -> None:
        self.kept = {name: [row for _, row in rows] for name, rows in kept.items()}
        self._keys = {name: [_key(source) for source, _ in rows] for name, rows in kept.items()}
        self._settings = settings
        self._context = context
        self._seconds = seconds
        self._mixed: MixedBatches | None = None

    def wrap(self, new: BatchSource) -> BatchSource:
        context = self._context
        memory = memory_batches(
            [row for rows in self.kept.values() for row in rows],
            batch_tokens=context.batch_tokens,
            seed=context.seed,
            pad_token=context.loaded.pad_token,
        )
        self._mixed = MixedBatches(new, memory, self._settings.share)
        return self._mixed

    def report(self, model: Any, folder: Path) -> Json:
        """Rows kept of each task, share of the tokens that was replayed, seconds that selecting took. Leaves which
        rows were kept, by priority.
        """
        write_json(folder / _MEMORY, {"selection": self._settings.selection, "kept": self._keys})
        return {
            "rows": {name: len(rows) for name, rows in self.kept.items()},
            "share": round(self._mixed.replayed_share, 4) if self._mixed else 0.0,
            "seconds": self._seconds,
        }


def _sources(settings: Replay, context: Context) -> tuple[PastTask, ...]:
    past = context.past
    tasks = (PastTask("anchors", past.anchors),) if settings.selection == "self" and past.anchors else past.tasks
    if not tasks:
        wanted = "rows of earlier tasks or anchors" if settings.selection == "self" else "rows of earlier tasks"
        raise DataInvalid(
            f"replay has nothing to remember: {settings.selection} needs {wanted}",
            hint="name files with --past" + (" or --anchor" if settings.selection == "self" else ""),
        )
    return tasks


def _refuse_judged(tasks: Sequence[PastTask], judged: frozenset[str]) -> None:
    shared = [(task.name, row) for task in tasks for row in task.examples if row.row in judged]
    if shared:
        name, row = shared[0]
        raise LeakFound(
            f"{len(shared)} rows to replay are also read by an evaluation, first of {name}: "
            f"{last_user_text(row.messages)!r:.60}",
            hint="take them out of one of the two files",
        )


def _choose(
    settings: Replay, context: Context, tasks: Sequence[PastTask], index: int
) -> list[tuple[int, tuple[int, ...] | None]]:
    """The index of each kept row of a task and, with `self`, what the base writes there."""
    examples = tasks[index].examples
    reader = Reader(context.loaded, context.model, context.seed, context.batch_tokens, context.observer)
    quota = quotas(settings.capacity, len(tasks))[index]
    order = _kept_before(settings, context, tasks[index])
    if len(order) < quota:
        ranked = reader.rank(examples, settings.selection, first_quota(settings.capacity, index))
        order = list(dict.fromkeys([*order, *ranked]))
    kept = order[:quota]
    if settings.selection != "self" or not kept:
        return [(one, None) for one in kept]
    written = reader.answer_by_base([examples[one] for one in kept])
    return list(zip(kept, written, strict=True))


def _row(example: Encoded, written: Sequence[int] | None, context: Context) -> Encoded:
    if written is None:
        return example
    text = context.loaded.tokenizer.decode(list(written), skip_special_tokens=True)
    return replace(example, completion=tuple(written), answer=text, dropped=frozenset())


def _kept_before(settings: Replay, context: Context, task: PastTask) -> list[int]:
    """Indices of the rows of `task` that the run before had kept, by its priority."""
    folder = context.past.left_by(_name(settings))
    if folder is None or not (folder / _MEMORY).is_file():
        return []
    left = json.loads((folder / _MEMORY).read_text(encoding="utf-8"))
    if left["selection"] != settings.selection:
        return []
    at = {_key(example): index for index, example in enumerate(task.examples)}
    return [at[key] for key in left["kept"].get(task.name, ()) if key in at]


def _key(example: Encoded) -> str:
    return row_key((*example.prompt, *example.completion))


def _name(settings: Replay) -> str:
    """Rows and the base's own answers may be replayed side by side and report apart."""
    return "replay_self" if settings.selection == "self" else "replay"
