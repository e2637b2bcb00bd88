"""`classifier diff`: what another classifier would change, for which route, and whether it is for the better."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import BadInput, BranchlineError
from adapters.rows import LabelledText, read_asked
from router.classifier_cli.group import classifier
from router.classify.artifact import save_classifier
from router.classify.differences import Judged, find_differences
from router.classify.fit import fit_classifier
from tests.classifier_rows import TALK, base_rows, routes_rows

Run = Callable[..., Result]
SQL = "select the price of albums where year is over 7"
REGEX = "lines with digits before commas at least 4 times"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A classifier without the route `regex`, and one with it."""
    folder = tmp_path_factory.mktemp("classifiers")
    rows = [*routes_rows(12), *base_rows()]
    without = [row for row in rows if row.label != "regex"]
    save_classifier(fit_classifier(without), folder / "without")
    save_classifier(fit_classifier(rows), folder / "with")
    return folder / "without", folder / "with"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def invoke(*words: object) -> Result:
        environment = {"BRANCHLINE_HOME": str(tmp_path / "home"), "BRANCHLINE_REGISTRY": None}
        result = CliRunner().invoke(classifier, ["diff", *map(str, words)], env=environment)
        if isinstance(result.exception, BranchlineError):
            raise result.exception
        return result

    return invoke


# -- counting ---------------------------------------------------------------------------------------------------------


def test_moves_are_counted_by_their_two_ends() -> None:
    rows = [
        *[Judged("base", "sql", "sql")] * 3,
        Judged("base", "sql", "oos"),
        Judged("sql", "base", "sql"),
        Judged("sql", "regex", "booking"),
        *[Judged("sql", "sql", "sql")] * 2,
        Judged("base", "base"),
    ]
    found = find_differences(rows)
    assert (found.rows, found.moved) == (9, 6)
    assert [(one.before, one.after, one.places, one.fixed, one.broken) for one in found.moves] == [
        ("base", "sql", (0, 1, 2, 3), 3, 1),
        ("sql", "base", (4,), 0, 1),
        ("sql", "regex", (5,), 0, 0),
    ]
    shares = {one.route: (one.before, one.after, one.gained, one.lost) for one in found.routes}
    assert shares == {"base": (5, 2, 1, 4), "sql": (4, 6, 4, 2), "regex": (0, 1, 1, 0)}


def test_with_labels_mcnemar_weighs_what_is_fixed_against_what_is_broken() -> None:
    """Expected: 8 labelled rows of which 3 were right; 3 fixed, 2 broken: 2 · (1 + 5 + 10) / 2⁵ = 1."""
    rows = [
        *[Judged("base", "sql", "sql")] * 3,
        *[Judged("sql", "base", "sql")] * 2,
        Judged("base", "base", "oos"),
        *[Judged("sql", "regex", "booking")] * 2,
        Judged("base", "sql"),
    ]
    found = find_differences(rows).labelled
    assert found is not None
    assert (found.rows, found.fixed, found.broken, found.p) == (8, 3, 2, 1.0)
    assert (found.before, found.after) == (3 / 8, 4 / 8)
    assert find_differences([Judged("a", "b")]).labelled is None


@given(st.lists(st.builds(Judged, *[st.sampled_from(["base", "a", "b"])] * 2, st.sampled_from(["base", "a", "oos"]))))
def test_nothing_is_lost_in_counting(rows: list[Judged]) -> None:
    found = find_differences(rows)
    assert sum(len(one.places) for one in found.moves) == found.moved == sum(one.before != one.after for one in rows)
    assert sum(one.before for one in found.routes) == sum(one.after for one in found.routes) == len(rows)
    assert all(one.before + one.gained - one.lost == one.after for one in found.routes)
    backwards = find_differences([Judged(row.after, row.before, row.label) for row in rows])
    if found.labelled is not None and backwards.labelled is not None:
        assert (found.labelled.fixed, found.labelled.broken) == (backwards.labelled.broken, backwards.labelled.fixed)
        assert found.labelled.after == pytest.approx(backwards.labelled.before)  # rounding of two sums


# -- the command ------------------------------------------------------------------------------------------------------


def test_diff_shows_what_a_new_route_takes_and_from_where(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"text": text} for text in (SQL, REGEX, TALK[0])]
    found = json.loads(run(*folders, write_rows(tmp_path / "rows.jsonl", rows), "--json").stdout)
    assert (found["rows"], found["moved"], found["labelled"]) == (3, 1, None)
    assert found["moves"][0]["after"] == "regex"
    assert found["moves"][0]["examples"] == [REGEX]
    assert found["before"] != found["after"]


def test_diff_says_with_labels_whether_it_is_better(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    labelled = [row for row in routes_rows(15, seed=5) if row.label == "regex"]
    rows = [{"text": row.text, "label": row.label} for row in [*labelled, LabelledText(SQL, "sql")]]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    shown = run(*folders, file).stdout
    assert "for example" in shown
    assert "McNemar's exact p" in shown
    found = json.loads(run(*folders, file, "--json", "--examples", 2).stdout)
    assert found["labelled"]["fixed"] == found["moved"] >= 13
    assert found["labelled"]["broken"] == 0
    assert found["labelled"]["after"] > found["labelled"]["before"]
    assert all(len(move["examples"]) <= 2 for move in found["moves"])


def test_a_classifier_does_not_differ_from_itself(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": SQL}])
    assert run(folders[0], folders[0], file).stdout.startswith("0 of 1 texts go elsewhere")


def test_a_decision_log_is_read_for_its_texts(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    facts = {"time": 1.0, "route": "sql", "engine_name": "sql@1.0", "request_id": "r", "outcome": "ok"}
    log = write_rows(tmp_path / "log.jsonl", [{**facts, "text": REGEX}, {**facts, "text": None}, facts])
    result = run(*folders, log, "--json")
    assert json.loads(result.stdout)["moved"] == 1
    assert "2 rows of log.jsonl hold no text" in result.stderr
    with pytest.raises(BadInput, match="holds no texts"):
        run(*folders, write_rows(tmp_path / "bare.jsonl", [facts]))


def test_a_log_that_kept_no_texts_at_first_is_read_with_all_its_days(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    log = write_rows(tmp_path / "log.jsonl", [{"route": "sql", "request_id": "r"}])
    write_rows(tmp_path / "log.2026-01-31.jsonl", [{"route": "sql", "request_id": "r", "text": REGEX}])
    result = run(*folders, log, "--json")
    assert json.loads(result.stdout)["moved"] == 1
    assert "1 rows of log.jsonl hold no text" in result.stderr


def test_several_turns_are_decided_as_the_gateway_would(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": REGEX},
        {"role": "assistant", "content": "here"},
        {"role": "user", "content": TALK[6]},
    ]
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}])
    assert json.loads(run(*folders, file, "--json").stdout)["moves"][0]["after"] == "regex"


def test_rows_of_every_kind_are_read_with_their_labels(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "label": "x"},
        {"input": "b", "output": "c"},
        {"label": "y"},
        {"text": "d", "label": None},
    ]
    asked, left_out = read_asked(write_rows(tmp_path / "rows.jsonl", rows))
    assert [(one.prompt[0].content, one.label) for one in asked] == [("a", "x"), ("b", None), ("d", None)]
    assert left_out == 1
    with pytest.raises(BadInput, match="line 1"):
        read_asked(write_rows(tmp_path / "bad.jsonl", [{"text": "a", "label": 3}]))
