"""The forgetting study's pictures, `bench/results/forgetting-*.svg`: drawn as on the sequence's page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.sequences.page import finished_arms, frontiers, mean_matrix, omega, progress_of_arms
from trainer.sequences.plots import heat_map

from .results import FOLDER

MATRICES = ("isolated", "sequential", "replay", "ewc", "ewc-replay", "joint")
# What the page's style decides there; a picture of its own is on paper.
_PAPER = (
    "background: #fff; --ink: #1f2937; --soft: #4b5563; --axis: #9ca3af; --line: #e5e7eb; "
    "--adapter: #0f766e; --routed: #7c3aed; --bad: #b91c1c"
)


def draw_pictures(found: Mapping[str, Any], folder: Path = FOLDER) -> list[Path]:
    """Write the pictures of a sequence's report `found`, and return where they are."""
    folder.mkdir(exist_ok=True)
    files = []
    for name, picture in _pictures(found):
        files.append(folder / f"forgetting-{name}.svg")
        files[-1].write_text(picture.replace("<svg ", f'<svg style="{_PAPER}" ', 1), encoding="utf-8")
    return files


def _pictures(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    done = finished_arms(found)
    whole = {name: only for name, arm in done.items() if (only := with_matrices(arm))["seeds"]}
    yield from zip(("retention", "average"), frontiers(done), strict=False)
    drawn = {"progress": progress_of_arms(whole, len(found["tasks"])), "omega": omega(whole)}
    yield from ((name, picture) for name, picture in drawn.items() if picture is not None)
    for name in MATRICES:
        if name in whole:
            yield f"matrix-{name}", heat_map(mean_matrix(whole[name], "exact"), found["tasks"], nll=False)


def with_matrices(arm: Mapping[str, Any]) -> dict[str, Any]:
    """The arm with only the seeds whose R is kept."""
    return {**arm, "seeds": {seed: one for seed, one in arm["seeds"].items() if one["R"] is not None}}
