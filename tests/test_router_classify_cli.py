"""The `classifier` group and `explain`, through click, on files and on a real registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adapters.command import open_home
from adapters.errors import BadInput, BranchlineError, NotFound, Refused
from adapters.examples import add_examples
from adapters.home import Home
from adapters.rows import Message, prompt_digest, text_digest
from router.classifier_cli.explain import explain
from router.classifier_cli.group import classifier
from router.classify.classifier import Classifier
from router.classify.loader import load_classifier
from router.errors import ClassifierInvalid
from tests.classifier_rows import TALK, base_rows, routes_rows

IN_SCOPE = "select the price of albums where year is over 7"
Run = Callable[..., Result]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a `classifier` command (or `explain`) in a fresh home; errors come through as they were raised."""

    def invoke(*words: object) -> Result:
        command = explain if words[0] == "explain" else classifier
        arguments = [str(word) for word in (words[1:] if command is explain else words)]
        home = {"BRANCHLINE_HOME": str(tmp_path / "home"), "BRANCHLINE_REGISTRY": ""}
        result = CliRunner().invoke(
            command, arguments, env={**home, "BRANCHLINE_REGISTRY": None}, catch_exceptions=True
        )
        if isinstance(result.exception, BranchlineError):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    rows = [{"text": row.text, "label": row.label} for row in routes_rows(12) + base_rows()]
    return write_rows(tmp_path / "labelled.jsonl", rows)


@pytest.fixture
def folder(run: Run, labelled: Path, tmp_path: Path) -> Path:
    assert run("fit", "--examples", labelled, "--out", tmp_path / "fitted").exit_code == 0
    return tmp_path / "fitted"


@pytest.fixture
def home_with_examples(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir(mode=0o700)
    home = Home.at(tmp_path / "home")
    registry, _ = open_home(home)
    for route in ("sql", "booking", "regex"):
        registry.create_route(route)
        add_examples(registry, route, [row.text for row in routes_rows(12) if row.label == route], source="test")
    registry.close()
    return home


def test_fit_out_writes_a_folder_and_leaves_the_registry_alone(run: Run, labelled: Path, tmp_path: Path) -> None:
    result = run("fit", "--examples", labelled, "--out", tmp_path / "fitted", "--json")
    found = json.loads(result.stdout)
    assert found["digest"] == load_classifier(tmp_path / "fitted").digest
    assert found["rows"] == {"base": len(TALK), "booking": 12, "regex": 12, "sql": 12}
    assert (found["number"], found["coverage"]) == (None, 0.99)
    assert not (tmp_path / "home").exists()


def test_base_examples_become_the_base_class(run: Run, folder: Path, tmp_path: Path) -> None:
    routes = [{"text": row.text, "label": row.label} for row in routes_rows(12)]
    examples = write_rows(tmp_path / "routes.jsonl", routes)
    base = write_rows(tmp_path / "base.jsonl", [{"text": text} for text in TALK])
    run("fit", "--examples", examples, "--base-examples", base, "--out", tmp_path / "apart")
    assert load_classifier(tmp_path / "apart").digest == load_classifier(folder).digest


def test_fit_promote_and_out_exclude_each_other(run: Run, labelled: Path, tmp_path: Path) -> None:
    assert run("fit", "--examples", labelled, "--out", tmp_path / "x", "--promote").exit_code == 2


def test_rows_that_cannot_be_fitted_are_one_error(run: Run, tmp_path: Path) -> None:
    only_base = write_rows(tmp_path / "base.jsonl", [{"text": "hi", "label": "base"}])
    with pytest.raises(BadInput, match="no route"):
        run("fit", "--examples", only_base, "--out", tmp_path / "x")


def test_without_examples_anywhere_fit_says_what_to_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with pytest.raises(BadInput, match="no route has examples"):
        run("fit")


def test_fit_publishes_what_the_routes_of_the_registry_show(run: Run, home_with_examples: Home, labelled: Path) -> None:
    first = json.loads(run("fit", "--json").stdout)
    assert first["number"] == 1
    assert first["rows"] == {"booking": 12, "regex": 12, "sql": 12}
    with pytest.raises(NotFound, match="no classifier is live"):
        run("decide", labelled, "--out", labelled.parent / "out.jsonl")
    assert run("promote", 1).exit_code == 0
    assert json.loads(run("explain", IN_SCOPE, "--json").stdout)["route"] == "sql"


def test_fit_promote_list_and_rollback_move_the_live_classifier(
    run: Run, home_with_examples: Home, labelled: Path
) -> None:
    run("fit", "--promote")
    run("fit", "--examples", labelled, "--promote", "--force", "for the test")
    run("fit", "--examples", labelled, "--promote")  # the same again: still number 2, still live

    def live() -> list[int]:
        return [row["number"] for row in json.loads(run("list", "--json").stdout) if row["live"]]

    assert live() == [2]
    assert "classifier 1 is live" in run("rollback").stdout
    assert live() == [1]
    with pytest.raises(Refused):
        run("rollback")
    with pytest.raises(NotFound):
        run("promote", 7)
    assert "live" in run("list").stdout


def test_eval_prints_the_figures_of_the_contract(run: Run, folder: Path, labelled: Path) -> None:
    found = json.loads(run("eval", labelled, "--classifier", folder, "--json").stdout)
    assert list(found) == [
        *("accuracy", "macro_recall", "adapter_recall", "base_recall"),
        *("oos_auroc", "oos_aupr", "fpr95", "ece", "coverage", "n"),
    ]
    assert found["n"] == 36 + len(TALK)
    assert found["accuracy"] > 0.9
    assert "accuracy" in run("eval", labelled, "--classifier", folder).stdout


def test_eval_notes_labels_that_no_route_has(run: Run, folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": IN_SCOPE, "label": "poetry"}])
    result = run("eval", rows, "--classifier", folder, "--json")
    assert "no route poetry" in result.stderr
    assert json.loads(result.stdout)["adapter_recall"] == 0


def test_decide_writes_a_decision_for_each_row_of_any_kind(run: Run, folder: Path, tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": IN_SCOPE},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "thanks, that was helpful"},
    ]
    rows: list[dict[str, Any]] = [
        {"text": IN_SCOPE, "label": "sql"},
        {"input": TALK[0], "output": "fine"},
        {"messages": [*chat, {"role": "assistant", "content": "you are welcome"}]},
        {"text": IN_SCOPE},
    ]
    out = tmp_path / "decisions.jsonl"
    assert run("decide", write_rows(tmp_path / "rows.jsonl", rows), "--out", out, "--classifier", folder).exit_code == 0
    decisions = {row["row"]: row for row in map(json.loads, out.read_text().splitlines())}
    fitted: Classifier = load_classifier(folder)
    wanted = {
        text_digest(IN_SCOPE): "sql",
        text_digest(TALK[0]): None,
        prompt_digest([Message(turn["role"], turn["content"]) for turn in chat]): "sql",  # by its earlier turn
    }
    assert {row: decision["route"] for row, decision in decisions.items()} == wanted
    assert {decision["classifier"] for decision in decisions.values()} == {fitted.digest}
    assert decisions[text_digest(IN_SCOPE)]["score"] == fitted.scores(IN_SCOPE).score


def test_decide_into_a_folder_that_is_not_there_is_one_error(run: Run, folder: Path, labelled: Path) -> None:
    with pytest.raises(BadInput, match="cannot write"):
        run("decide", labelled, "--out", labelled.parent / "nowhere" / "out.jsonl", "--classifier", folder)


def test_explain_says_where_and_why(run: Run, folder: Path) -> None:
    found = json.loads(run("explain", IN_SCOPE, "--classifier", folder, "--json").stdout)
    assert (found["route"], found["scores"]["route"]) == ("sql", "sql")
    assert "select" in [term for term, _ in found["terms"]]
    assert json.loads(run("explain", TALK[0], "--classifier", folder, "--json").stdout)["route"] is None
    assert "the base answers" in run("explain", TALK[0], "--classifier", folder).stdout


def test_a_broken_classifier_folder_is_one_error(run: Run, folder: Path, labelled: Path) -> None:
    (folder / "idf.npy").write_bytes(b"")
    with pytest.raises(ClassifierInvalid):
        run("eval", labelled, "--classifier", folder)
