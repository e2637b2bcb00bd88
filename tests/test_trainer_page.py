"""The pages: what stands in them, that nothing overlaps, and that they need nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.folder import write_json
from trainer.plots import STYLE
from trainer.sequences.config import SequenceConfig
from trainer.sequences.folder import SequenceFolder
from trainer.sequences.page import mean_matrix, render_sequence
from trainer.sequences.plots import Mark, Spread, frontier, heat_map, spread_out
from trainer.sequences.report import report_table, summarise_sequence

TASKS = ("scan", "regex")
BASE = {"exact": [0.0, 0.02], "nll": [4.0, 5.0]}


def row(exact: Sequence[float], task: str | None) -> dict[str, object]:
    """A row of R as `SequenceRun` leaves it; the stage's penalty read Ω = 0.01 where the KL was 0.05."""
    methods = {"ewc": {"omega": 0.01, "measured_kl": 0.05}}
    training = {"steps": 2, "tokens": 9, "training_seconds": 1.0, "method_seconds": {}, "methods": methods}
    return {
        "task": task,
        "oracle": {"exact": list(exact), "nll": [4 - 3 * one for one in exact]},
        "routed": {"exact": [one / 2 for one in exact], "nll": [4 - 2 * one for one in exact]},
        "anchor_kl": {"scan": 0.4},
        "guardrail_rise": {},
        "training": {**training, "losses": [3.0, 2.0], "weights_digest": "0"},
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = SequenceFolder(tmp_path_factory.mktemp("sequence"))
    arms = [
        {"name": "base", "mode": "base"},
        {"name": "sequential", "mode": "shared"},
        {"name": "ewc", "mode": "shared", "methods": ["ewc:weight=10"], "seeds": [0], "exploratory": True},
        {"name": "joint", "mode": "joint"},
        {"name": "broken", "mode": "shared"},
    ]
    tasks = [{"name": task, "data": "d", "eval": "e", "dev": "v"} for task in TASKS]
    config = SequenceConfig.model_validate({"base": "b", "tasks": tasks, "arms": arms, "seeds": [0, 1]})
    write_json(folder.base, {"oracle": BASE, "routed": BASE})
    for seed in (0, 1):
        write_json(folder.row("sequential", seed, 1), row([0.9, 0.1], "scan"))
        write_json(folder.row("sequential", seed, 2), row([0.3 + 0.2 * seed, 0.8], "regex"))
        write_json(folder.row("joint", seed, 2), row([0.85, 0.75], None))
    write_json(folder.row("ewc", 0, 1), row([0.9, 0.1], "scan"))
    write_json(folder.row("ewc", 0, 2), row([0.7, 0.6], "regex"))
    write_json(folder.row("broken", 0, 1), row([0.9, 0.1], "scan"))
    write_json(folder.failure("broken", 0), {"error": "step 3: <loss> nan"})
    return summarise_sequence(config, folder)


@pytest.fixture(scope="module")
def page(found: dict[str, object]) -> str:
    return render_sequence("study", found)


def test_the_page_of_a_sequence_needs_nothing_from_outside(page: str) -> None:
    loaded = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    for outside in ("<script", "src=", "@import", "url(http", "<link", "<iframe"):
        assert outside not in loaded
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', loaded))


@pytest.mark.parametrize("template", ["page.html", "sequences/sequence.html"])
def test_every_colour_that_a_plot_leaves_to_the_page_is_defined_light_and_dark(template: str, page: str) -> None:
    styles = files("trainer").joinpath(template).read_text(encoding="utf-8")
    light, dark = (set(re.findall(r"--(\w+):", part)) for part in styles.split("prefers-color-scheme: dark", 1))
    used = set(re.findall(r"var\(--(\w+)\)", page + styles))
    assert used <= light
    assert {"ink", "soft", "paper", "line"} <= dark
    assert STYLE["text.color"] not in page[page.index("<svg") :]


def test_the_page_shows_measures_intervals_failures_and_every_arm(page: str) -> None:
    assert "60.0 ± 63.5" in page  # ACC of 0.55 and 0.65: t(0.975, 1) = 12.706 times 0.05
    assert "step 3: &lt;loss&gt; nan" in page
    assert "exploratory" in page
    assert "ewc 10" in page
    assert page.count('<div class="card">') == 4
    # two frontiers, progress, Ω beside KL; per card two heat maps and the loss, of which joint and broken have one too
    assert page.count("<svg") == 4 + 4 * 3


def test_every_measure_says_what_it_means_and_which_way_is_better(page: str) -> None:
    headers = re.findall(r'<th title="([^"]+)"[^>]*>([^<]+) ([↑↓])</th>', page)
    names = ["ACC", "learned", "BWT", "forgetting", "FWT", "retention", "routed ACC", "regret"]
    assert [name for _, name, _ in headers] == 2 * names
    assert [way for *_, way in headers] == [*"↑↑↑↓↑↑↑↓", *"↓↓↑↓↑↑↓↓"], "exact match, then NLL, of which less is better"
    assert all(f"<dt>{name}</dt>" in page for name in names)


def test_measures_of_one_seed_have_no_interval_and_unfinished_arms_none(found: dict[str, object]) -> None:
    _, rows = report_table(found)
    shown = {str(one[0]): one for one in rows}
    assert shown["ewc"][1:3] == (1, "65.0")
    assert shown["sequential"][2] == "60.0 ±63.5"
    assert shown["broken"][1:3] == (0, None)
    assert shown["joint"][3] is None


def test_the_mean_matrix_is_the_mean_over_finished_seeds(found: dict[str, dict[str, dict[str, object]]]) -> None:
    matrix = mean_matrix(found["arms"]["sequential"], "exact")
    assert matrix[2] == pytest.approx([0.4, 0.8])
    assert mean_matrix(found["arms"]["joint"], "exact")[1] is None


def test_a_heat_map_writes_every_value_in_its_cell() -> None:
    picture = heat_map([[0.0, 0.02], [0.91, 0.13], None], TASKS, nll=False)
    for text in (">0<", ">2<", ">91<", ">13<", ">after 2<", ">regex<"):
        assert text in picture


def test_every_arm_of_a_frontier_is_named_once() -> None:
    marks = [Mark(f"arm-{number}", "ewc", Spread(0.5), Spread(0.5)) for number in range(12)]
    picture = frontier(marks, "learned", "kept", {"joint": 0.9})
    for name in [*(mark.label for mark in marks), "joint"]:
        assert picture.count(f">{name}<") == 1


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=18).map(sorted))
def test_labels_keep_their_order_and_never_overlap(heights: list[float]) -> None:
    placed = spread_out(heights, 0.05)
    assert len(placed) == len(heights)
    assert all(above - below >= 0.05 - 1e-9 for below, above in pairwise(placed))
    assert placed[0] >= -1e-9
    assert placed[-1] <= 1 + 1e-9


def test_labels_with_room_stay_where_their_points_are() -> None:
    assert spread_out([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]


def test_an_unfinished_sequence_has_a_page_too(tmp_path: Path) -> None:
    tasks = [{"name": task, "data": "d", "eval": "e", "dev": "v"} for task in TASKS]
    arms = [{"name": "sequential", "mode": "shared"}]
    config = SequenceConfig.model_validate({"base": "b", "tasks": tasks, "arms": arms})
    assert "sequential" in render_sequence("study", summarise_sequence(config, SequenceFolder(tmp_path)))
