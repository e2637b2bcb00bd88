"""Collision lint: what a newcomer takes from the routes there are, from the numbers up to the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from adapters.main import cli
from adapters.rows import LabelledText
from router.classify.collisions import collisions
from router.classify.features import fit_features
from tests.classifier_rows import base_rows, routes_rows

Command = Callable[..., Result]


def relabelled(rows: list[LabelledText], label: str) -> list[LabelledText]:
    return [LabelledText(row.text, label) for row in rows]


def of(label: str, per_route: int = 30, seed: int = 0) -> list[LabelledText]:
    return [row for row in routes_rows(per_route, seed) if row.label == label]


def test_a_newcomer_of_a_kind_of_its_own_takes_nothing() -> None:
    known = of("sql") + of("booking")
    found = collisions(known, of("regex")[:5])
    assert found.losses == ()
    assert [(one.route, one.recall) for one in found.newcomers] == [("regex", 1.0)]


def test_a_newcomer_drawn_from_a_route_takes_from_that_route_and_says_which_sentences() -> None:
    known = of("sql") + of("booking")
    found = collisions(known, relabelled(of("sql", seed=1)[:6], "tables"))
    (loss,) = found.over()
    assert loss.route == "sql"
    assert loss.loss == pytest.approx(loss.recall_before - loss.recall_after)
    assert loss.loss > 0.2
    assert {(one.owner, one.winner) for one in loss.stolen} == {("sql", "tables")}
    assert {one.text for one in loss.stolen} <= {row.text for row in known}


def test_similarities_are_those_of_means_that_lack_the_judged_row() -> None:
    """Brute force: the mean is built anew without each row, its length extrapolated to n rows from all pairs."""
    known, newcomer = of("sql", 8) + of("booking", 8), relabelled(of("sql", 40, seed=3)[:4], "tables")
    rows = [*known, *newcomer]
    features = fit_features([row.text for row in rows], [True] * len(rows))
    dense = np.zeros((len(rows), features.size))
    for at, row in enumerate(rows):
        sparse = features.transform(row.text)
        dense[at, sparse.indices] = sparse.values
    labels = np.array([row.label for row in rows])

    def cosine(at: int, label: str) -> float:
        others = dense[(labels == label) & (np.arange(len(rows)) != at)]
        length = np.linalg.norm(others.mean(axis=0))
        if label == "tables" and labels[at] != label:
            products = others @ others.T
            different = products[~np.eye(len(others), dtype=bool)].mean()
            length = np.sqrt(different + (np.diag(products).mean() - different) / 7)  # a known route has 7 other rows
        return float(dense[at] @ others.mean(axis=0) / length)

    wanted = {
        row.text
        for at, row in enumerate(known)
        for own, other in [("sql", "booking") if row.label == "sql" else ("booking", "sql")]
        if cosine(at, other) <= cosine(at, own) < cosine(at, "tables")
    }
    found = collisions(known, newcomer)
    assert {one.text for loss in found.losses for one in loss.stolen} == wanted
    assert wanted
    kept = {row.text for at, row in enumerate(newcomer, len(known)) if cosine(at, "sql") >= cosine(at, "tables")}
    assert {one.text for one in found.newcomers[0].kept} == kept


def test_a_single_example_can_take_but_is_not_judged_itself() -> None:
    known = of("sql") + of("booking")
    (one,) = collisions(known, [LabelledText("how tall is the tower", "towers")]).newcomers
    assert (one.rows, one.recall, one.kept) == (1, None, ())
    (loss,) = collisions(known, [LabelledText(known[0].text, "copy")]).losses
    assert known[0].text in {one.text for one in loss.stolen}


def test_the_order_of_the_rows_changes_nothing() -> None:
    known, newcomer = of("sql") + of("booking"), relabelled(of("sql", seed=1)[:6], "tables")
    forward, backward = collisions(known, newcomer), collisions(known[::-1], newcomer)
    assert forward.losses == backward.losses


def test_what_the_base_loses_is_told_but_no_reason_to_refuse() -> None:
    known = of("sql") + base_rows()
    found = collisions(known, relabelled(base_rows(), "chat"))
    assert [loss.route for loss in found.losses] == ["base"]
    assert found.over(0.0) == ()


def test_further_examples_of_a_route_count_with_those_it_has() -> None:
    known = of("sql") + of("booking", 2)
    more = relabelled(of("sql", seed=1)[:12], "booking")
    found = collisions(known, [*more, known[-1]])
    assert [loss.route for loss in found.losses] == ["sql"]
    assert [one.rows for one in found.newcomers] == [12]  # the one it has already does not count


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `branchline` in a home under `tmp_path`, in this process."""

    def run(*words: object) -> Result:
        environment = {"BRANCHLINE_HOME": str(tmp_path / "home"), "BRANCHLINE_REGISTRY": None}
        return CliRunner().invoke(cli, [str(word) for word in words], env=environment)

    return run


@pytest.fixture
def examples(tmp_path: Path) -> Callable[[str, list[LabelledText]], Path]:
    def write(name: str, rows: list[LabelledText]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": row.text}) + "\n" for row in rows))
        return path

    return write


def test_route_create_refuses_a_newcomer_that_takes_and_names_the_sentences(
    command: Command, examples: Callable[..., Path]
) -> None:
    known = of("sql")
    assert command("route", "create", "sql", "--examples", examples("sql", known)).exit_code == 0
    assert command("route", "create", "booking", "--examples", examples("booking", of("booking"))).exit_code == 0
    theft = examples("tables", of("sql", seed=1)[:6])
    refused = command("route", "create", "tables", "--examples", theft)
    assert refused.exit_code == 1
    assert "sql would lose" in str(refused.exception)
    assert any(row.text in refused.stderr for row in known)
    assert {one["name"] for one in json.loads(command("route", "list", "--json").stdout)} == {"sql", "booking"}
    forced = command("route", "create", "tables", "--examples", theft, "--force", "sql is going away")
    assert forced.exit_code == 0
    assert "forced over: sql would lose" in forced.stderr
    history = json.loads(command("route", "history", "tables", "--json").stdout)
    assert history[-1]["why"] == "sql is going away"


def test_route_examples_add_refuses_likewise_up_to_the_loss_allowed(
    command: Command, examples: Callable[..., Path]
) -> None:
    command("route", "create", "sql", "--examples", examples("sql", of("sql")))
    command("route", "create", "tables")
    theft = examples("more", of("sql", seed=1)[:6])
    assert command("route", "examples", "add", "tables", "--file", theft).exit_code == 1
    assert json.loads(command("route", "examples", "list", "tables", "--json").stdout) == []
    assert command("route", "examples", "add", "tables", "--file", theft, "--max-loss", "1").exit_code == 0


def test_a_route_without_examples_is_created_without_any_learning_library(tmp_path: Path) -> None:
    heavy = "('sklearn', 'scipy', 'torch', 'router.classify.collisions')"
    code = (
        "import sys\nfrom adapters.main import cli\n"
        f"cli(['route', 'create', 'sql', '--home', {str(tmp_path / 'home')!r}], standalone_mode=False)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["route sql created with 0 examples", "[]"]


def test_a_check_whose_package_is_missing_is_left_out_with_a_note(
    command: Command, examples: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = tmp_path / "other-1.0.dist-info"
    brought.mkdir()
    (brought / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (brought / "entry_points.txt").write_text("[branchline.example_checks]\nother = package_not_there:check\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = command("route", "create", "sql", "--examples", examples("sql", of("sql")))
    assert done.exit_code == 0
    assert "the check 'other' is left out, it needs the package 'package_not_there'" in done.stderr


def test_fit_tells_what_labels_new_to_the_live_classifier_take_and_will_not_promote_them(
    command: Command, tmp_path: Path
) -> None:
    def write(name: str, rows: list[LabelledText]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows))
        return path

    known = of("sql") + of("booking")
    first = write("first.jsonl", known)
    done = command("classifier", "fit", "--examples", first, "--promote", "--force", "the first one", "--json")
    assert json.loads(done.stdout)["collisions"] is None
    both = write("both.jsonl", known + relabelled(of("sql", seed=1)[:6], "tables"))
    told = command("classifier", "fit", "--examples", both, "--json")
    (loss,) = json.loads(told.stdout)["collisions"]["losses"]
    assert (loss["route"], loss["stolen"][0]["winner"]) == ("sql", "tables")
    assert loss["stolen"][0]["text"] in told.stderr
    refused = command("classifier", "fit", "--examples", both, "--promote")
    assert (refused.exit_code, "sql would lose" in str(refused.exception)) == (1, True)
    assert command("classifier", "fit", "--examples", both, "--promote", "--force", "wanted").exit_code == 0
