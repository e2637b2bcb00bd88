"""From fit to live through the command line: evidence, the promotion gate, and the history of both."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from adapters.classifiers import promote_classifier, publish_classifier
from adapters.errors import BadInput, BranchlineError, GateRefused, InvalidName, NotFound, Refused
from adapters.home import Home
from adapters.registry import Registry
from adapters.rows import LabelledText, sha256_json, text_digest
from router.classifier_cli.group import classifier
from router.classifier_cli.publishing import held_out_evidence
from router.classify.fit import fit_and_judge
from tests.classifier_rows import base_rows, routes_rows

Run = Callable[..., Result]
FITTED_ON = routes_rows(18)
HELD_OUT = [row for row in routes_rows(30, seed=1) if row not in FITTED_ON]
HELD_OUT_BASE = [
    LabelledText(text, "oos")
    for text in (
        *("what time is it in Lima", "how far away is the moon", "sing me a lullaby", "who wrote Hamlet"),
        *("my dog ate my homework", "good morning to you", "why do cats purr", "is tea better than coffee"),
        *("name three rivers in Asia", "how old is the universe", "what is love", "do you dream"),
    )
]


def write_rows(path: Path, rows: Sequence[LabelledText]) -> Path:
    path.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows))
    return path


def invoke(home: Path, *words: object) -> Result:
    environment = {"BRANCHLINE_HOME": str(home), "BRANCHLINE_REGISTRY": None, "NO_COLOR": "1"}
    result = CliRunner().invoke(classifier, [str(word) for word in words], env=environment)
    if isinstance(result.exception, BranchlineError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where classifier 1 is live and classifier 2, which knows no `regex`, is published."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = write_rows(folder / "rows.jsonl", [*FITTED_ON, *base_rows()])
    assert "it is the first" in invoke(folder / "home", "fit", "--examples", rows, "--promote").stdout
    lacking = [*(row for row in FITTED_ON if row.label != "regex"), *base_rows()]
    invoke(folder / "home", "fit", "--examples", write_rows(folder / "lacking.jsonl", lacking))
    return folder


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Run:
    shutil.copytree(prepared / "home", tmp_path / "home")
    return lambda *words: invoke(tmp_path / "home", *words)


@pytest.fixture
def fitted(prepared: Path) -> Path:
    """What classifier 1 was fitted on."""
    return prepared / "rows.jsonl"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "held_out.jsonl", [*HELD_OUT, *HELD_OUT_BASE])


def live(run: Run) -> list[int]:
    return [row["number"] for row in json.loads(run("list", "--json").stdout) if row["live"]]


def test_a_refit_with_another_route_goes_live_on_the_rows_that_both_fits_held_out(run: Run, tmp_path: Path) -> None:
    more = [LabelledText(f"remind me to {what} at noon", "reminder") for what in ("eat", "run", "sleep", "call", "pay")]
    path = write_rows(tmp_path / "more.jsonl", [*FITTED_ON, *base_rows(), *more])
    shown = run("fit", "--examples", path, "--promote").stdout
    assert live(run) == [3]
    assert "difference, at least" in shown
    event = json.loads(run("history", "--json").stdout)[-1]
    assert event["payload"]["gate"]["numbers"]["common_items"] == len(FITTED_ON) + len(base_rows())


def test_without_base_rows_general_prompts_show_the_gate_what_the_base_keeps(tmp_path: Path) -> None:
    more = [LabelledText(f"remind me to {what} at noon", "reminder") for what in ("eat", "run", "sleep", "call", "pay")]
    first = write_rows(tmp_path / "first.jsonl", FITTED_ON)
    second = write_rows(tmp_path / "second.jsonl", [*FITTED_ON, *more])
    invoke(tmp_path / "home", "fit", "--examples", first, "--promote")
    assert "classifier 2 is live" in invoke(tmp_path / "home", "fit", "--examples", second, "--promote").stdout


def test_a_refit_that_loses_a_route_is_published_and_refused(run: Run, tmp_path: Path) -> None:
    rows = [LabelledText(row.text, "sql") if row.label == "regex" else row for row in FITTED_ON]
    path = write_rows(tmp_path / "merged.jsonl", [*rows, *base_rows()])
    with pytest.raises(GateRefused, match="classifier eval FILE --classifier 3 --evidence"):
        run("fit", "--examples", path, "--promote")
    assert live(run) == [1]
    assert [row["number"] for row in json.loads(run("list", "--json").stdout)] == [1, 2, 3]


def test_evidence_on_a_file_shows_the_lost_route_and_promote_refuses_it(run: Run, held_out: Path) -> None:
    found = json.loads(run("eval", held_out, "--classifier", 2, "--evidence", "--json").stdout)
    assert found["n"] == len(HELD_OUT) + len(HELD_OUT_BASE)
    assert (found["evidence"]["number"], found["evidence"]["live"]) == (2, 1)
    with pytest.raises(GateRefused) as refused:
        run("promote", 2)
    assert list(refused.value.unmet) == found["evidence"]["unmet"]
    assert any(problem.startswith("route regex: recall falls by") for problem in refused.value.unmet)
    assert live(run) == [1]


def test_what_was_forced_stays_in_the_history_with_its_reason(run: Run) -> None:
    with pytest.raises(InvalidName, match="reason"):
        run("promote", 2, "--force", " ")
    result = run("promote", 2, "--force", "regex is withdrawn")
    assert "forced over:" in result.stderr
    event = json.loads(run("history", "--json").stdout)[-1]
    assert (event["why"], event["payload"]["gate"]["forced"]) == ("regex is withdrawn", True)
    assert event["payload"]["gate"]["unmet"]
    assert "regex is withdrawn" in run("history").stdout
    assert "classifier 1 is live" in run("rollback").stdout


def test_thresholds_are_options(run: Run, held_out: Path) -> None:
    run("eval", held_out, "--classifier", 2, "--evidence")
    allowed = ("--max-loss", 1, "--max-route-loss", 1, "--max-base-loss", 1)
    with pytest.raises(GateRefused, match="the gate asks for 5000"):
        run("promote", 2, *allowed, "--min-items", 5000)
    found = json.loads(run("promote", 2, *allowed, "--json").stdout)
    assert (found["number"], found["replaced"], live(run)) == (2, 1, [2])


def test_rows_that_the_classifier_was_fitted_on_are_no_evidence(run: Run, fitted: Path) -> None:
    with pytest.raises(Refused, match="was fitted on 64 of the 64 rows of rows"):
        run("eval", fitted, "--classifier", 1, "--evidence")
    assert run("eval", fitted, "--classifier", 1).exit_code == 0


def test_a_base_row_that_was_fitted_on_is_known_by_either_label(run: Run, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "oos.jsonl", [LabelledText(row.text, "oos") for row in base_rows()])
    with pytest.raises(Refused, match="was fitted on 10 of the 10 rows"):
        run("eval", file, "--classifier", 2, "--evidence")


def test_the_live_classifier_is_judged_on_the_same_rows_even_where_it_was_fitted_on_them(
    run: Run, tmp_path: Path
) -> None:
    """Such rows flatter only the live one: the candidate held them out."""
    kept = [*FITTED_ON[:12], *FITTED_ON[18:30], *FITTED_ON[36:48]]
    left = [row for row in FITTED_ON if row not in kept]
    run("fit", "--examples", write_rows(tmp_path / "kept.jsonl", [*kept, *base_rows()]))
    file = write_rows(tmp_path / "left.jsonl", [*left, *HELD_OUT_BASE])
    found = json.loads(run("eval", file, "--classifier", 3, "--evidence", "--json").stdout)["evidence"]
    assert found["numbers"]["live_seen"] == len(left)


def test_evidence_is_about_published_classifiers(run: Run, fitted: Path, held_out: Path, tmp_path: Path) -> None:
    run("fit", "--examples", fitted, "--out", tmp_path / "folder")
    with pytest.raises(InvalidName, match="published"):
        run("eval", held_out, "--classifier", tmp_path / "folder", "--evidence")
    with pytest.raises(NotFound, match="no classifier 7"):
        run("eval", held_out, "--classifier", 7)


def test_eval_says_what_the_gate_would_say(run: Run, held_out: Path, tmp_path: Path) -> None:
    assert (
        "the promotion gate would refuse it: route regex"
        in run("eval", held_out, "--classifier", 2, "--evidence").stdout
    )
    assert "filed for classifier 1" in run("eval", held_out, "--evidence").stdout
    same = write_rows(tmp_path / "same.jsonl", [*FITTED_ON, *base_rows(), *FITTED_ON[:1]])
    run("fit", "--examples", same, "--coverage", 0.98)
    assert "it passes the promotion gate" in run("eval", held_out, "--classifier", 3, "--evidence").stdout
    assert "base recall" in run("promote", 3).stdout


def test_unfavourable_evidence_is_not_overridden_by_fitting_again(run: Run, fitted: Path, tmp_path: Path) -> None:
    """What both fits held out is alike; of the file classifier 3 gets half wrong, being fitted without any booking."""
    kept = [row for row in FITTED_ON if row.label != "booking"]
    same = write_rows(tmp_path / "same.jsonl", [*kept, *base_rows()])
    file = write_rows(tmp_path / "file.jsonl", [*HELD_OUT, *HELD_OUT_BASE])
    with pytest.raises(GateRefused):
        run("fit", "--examples", same, "--promote")
    run("eval", file, "--classifier", 3, "--evidence")
    events = len(json.loads(run("history", "--json").stdout))
    with pytest.raises(GateRefused, match="accuracy"):
        run("fit", "--examples", same, "--promote")
    assert len(json.loads(run("history", "--json").stdout)) == events


def test_a_live_classifier_of_another_build_says_how_to_get_past_it(run: Run, tmp_path: Path, held_out: Path) -> None:
    registry, store = Registry.open(Home.at(tmp_path / "home").registry_url), Home.at(tmp_path / "home").open_store()
    body = {"schema": 1, "labels": ["sql"]}
    digest = sha256_json(body)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "classifier.json").write_text(json.dumps({**body, "digest": digest}))
    publish_classifier(registry, store, tmp_path / "old", digest=digest, summary={"routes": ["sql"]})
    promote_classifier(registry, 3)
    registry.close()
    for words in (("promote", 2), ("eval", held_out, "--classifier", 2, "--evidence"), ("eval", held_out)):
        with pytest.raises(BranchlineError) as refused:
            run(*words)
        assert "fit again and promote with --force" in refused.value.hint
        if words[0] == "eval":
            expected = "classifier 3 was fitted by another build: schema is 1, this version reads 3"
            assert refused.value.message == expected
    run("promote", 2, "--force", "the old one is of another build")
    assert live(run) == [2]


def test_numbers_that_no_registry_holds_and_thresholds_that_are_none_are_refused(run: Run, held_out: Path) -> None:
    huge = "9" * 5000
    assert run("promote", huge).exit_code == 2
    with pytest.raises(NotFound, match="no classifier 999"):
        run("eval", held_out, "--classifier", huge)
    for option in ("--max-loss", "--max-base-loss", "--max-route-loss"):
        assert run("promote", 2, option, "nan").exit_code == 2


def test_evidence_is_not_taken_from_a_pipe(run: Run, tmp_path: Path) -> None:
    """It is read for its rows, and nothing is left to take a digest of."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="cannot be read twice"):
        run("eval", tmp_path / "pipe", "--classifier", 2, "--evidence")


def test_fit_takes_force_only_with_promote(run: Run, fitted: Path) -> None:
    assert run("fit", "--examples", fitted, "--force", "why").exit_code == 2


def test_held_out_decisions_come_from_weights_that_never_saw_the_row() -> None:
    """A booking filed under `regex`: the final weights know it by heart, the fold that left it out does not."""
    stray = LabelledText("please book a taxi for 3 people tomorrow at 5", "regex")
    fitted = fit_and_judge([*FITTED_ON, *base_rows(), stray])
    held_out = dict(fitted.held_out)
    assert len(fitted.held_out) == len(held_out) == len(FITTED_ON) + len(base_rows()) + 1
    assert held_out[stray].route == "booking"
    assert fitted.classifier.scores(stray.text).route == "regex"
    found = held_out_evidence(fitted)
    assert found.by_key[text_digest(stray.text), "regex"].is_right is False
    assert (found.source, found.seen) == ("held_out", 0)
