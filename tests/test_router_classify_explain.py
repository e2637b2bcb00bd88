"""`explain` says what a gateway would do, and why: classifier, memory, the routes' own state, turn by turn."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adapters.command import open_home
from adapters.errors import BranchlineError, NotFound
from adapters.examples import add_examples
from adapters.exemplars import Exemplar, exemplars_of
from adapters.home import Home
from adapters.registry import Registry
from adapters.types import Manifest, RouteName
from router.background import Background
from router.classifier_cli.explain import explain
from router.classifier_cli.explanation import explain_turns
from router.classifier_cli.group import classifier
from router.classify.fit import fit_classifier
from router.classify.judge import Judge
from router.classify.loader import load_classifier
from router.classify.memory import Memory
from router.following.judge_building import JudgeBuilder, no_encoder
from router.following.judging import Judging
from tests.classifier_rows import TALK, Meanings, base_rows, routes_rows

Run = Callable[..., Result]
SQL = "select the price of albums where year is over 7"
NEW = "remind me to water the plants at noon"


def invoke(home: Path, *words: object) -> Result:
    command = explain if words[0] == "explain" else classifier
    arguments = [str(word) for word in (words[1:] if command is explain else words)]
    environment = {"BRANCHLINE_HOME": str(home), "BRANCHLINE_REGISTRY": None, "BRANCHLINE_ENCODER": None}
    result = CliRunner().invoke(command, arguments, env=environment)
    if isinstance(result.exception, BranchlineError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three routes and their examples, a live classifier, and one route newer than that."""
    folder = tmp_path_factory.mktemp("prepared") / "home"
    folder.mkdir(mode=0o700)
    registry, _ = open_home(Home.at(folder))
    for route in ("sql", "booking", "regex"):
        registry.create_route(route)
        add_examples(registry, route, [row.text for row in routes_rows(12) if row.label == route], source="test")
    rows = folder.parent / "base.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TALK))
    invoke(folder, "fit", "--base-examples", rows, "--promote", "--force", "for the test")
    registry.create_route("reminder")
    add_examples(registry, "reminder", [NEW], source="operator")
    registry.close()
    return folder


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    opened = Registry.open(Home.at(home).registry_url)
    yield opened
    opened.close()


def explained(home: Path, *words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoke(home, "explain", *words, "--json").stdout)
    return found


def publish_and_promote(registry: Registry, route: str) -> None:
    manifest = Manifest("d" * 64, {}, 1, "base", "b" * 64, 1, 1.0, ())
    registry.publish(RouteName(route), manifest)
    registry.promote(route, 1)


def test_the_classifier_decides_what_it_was_fitted_on(home: Path) -> None:
    found = explained(home, SQL)
    assert (found["route"], found["decided_by"], found["turn"]) == ("sql", "classifier", 0)
    assert found["scores"]["score"] >= found["scores"]["threshold"]
    assert next(iter(found["probabilities"])) == "sql"
    assert "select" in [term for term, _ in found["terms"]]
    nearest = found["nearest"][0]
    assert (nearest["label"], nearest["source"], nearest["speaks"]) == ("sql", "test", False)
    assert nearest["text"] in {row.text for row in routes_rows(12)}


def test_memory_decides_for_a_route_that_the_fit_has_not_seen(home: Path) -> None:
    found = explained(home, "remind me to water the plants at seven")
    assert (found["route"], found["decided_by"]) == ("reminder", "memory")
    assert (found["memory"]["text"], found["memory"]["source"]) == (NEW, "operator")
    assert found["memory"]["probability"] >= found["memory"]["threshold"]
    assert (found["nearest"][0]["text"], found["nearest"][0]["speaks"]) == (NEW, True)
    shown = invoke(home, "explain", "remind me to water the plants at seven").stdout
    assert NEW in shown
    assert "memory of 37 exemplars" in shown


def test_memory_alone_decides_before_there_is_a_classifier(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    registry, _ = open_home(Home.at(tmp_path / "home"))
    with pytest.raises(NotFound, match="no classifier is live"):
        invoke(tmp_path / "home", "explain", NEW)
    registry.create_route("reminder")
    add_examples(registry, "reminder", [NEW], source="operator")
    registry.close()
    found = explained(tmp_path / "home", NEW)
    assert (found["route"], found["decided_by"], found["classifier"]) == ("reminder", "memory", None)
    assert "no classifier" in invoke(tmp_path / "home", "explain", NEW).stdout


def test_the_answer_depends_on_the_routes_own_state(home: Path, registry: Registry) -> None:
    assert explained(home, SQL)["because"] == "no_live_version"
    publish_and_promote(registry, "sql")
    found = explained(home, SQL)
    assert (found["because"], found["version"]) == ("classified", 1)
    assert invoke(home, "explain", SQL).stdout.startswith("sql@1 answers")
    registry.disable("sql")
    found = explained(home, SQL)
    assert (found["because"], found["version"], found["route"]) == ("route_disabled", None, "sql")
    assert "route sql is disabled" in invoke(home, "explain", SQL).stdout


def test_what_nobody_claims_stays_on_the_base(home: Path) -> None:
    found = explained(home, TALK[0])
    assert (found["route"], found["because"], found["version"]) == (None, "abstained", None)
    assert invoke(home, "explain", TALK[0]).stdout.startswith("the base answers\n")


def test_an_earlier_turn_decides_where_the_newest_says_nothing(home: Path) -> None:
    found = explained(home, TALK[6], "--earlier", TALK[0], "--earlier", SQL)
    assert (found["route"], found["turn"]) == ("sql", 2)
    assert "2 turns back" in invoke(home, "explain", TALK[6], "--earlier", TALK[0], "--earlier", SQL).stdout


def test_where_every_turn_abstains_the_newest_is_explained(home: Path) -> None:
    assert explained(home, TALK[6], "--earlier", TALK[0])["turn"] == 0


def test_explain_decides_as_the_gateway_does(home: Path, registry: Registry) -> None:
    """Against the judge that a gateway puts in force from the same registry."""
    texts = [SQL, NEW, "water my plants", TALK[1], "", "lines with digits", "zzz", "book me a table and select a year"]

    async def decided() -> list[tuple[str | None, float, str | None, str | None]]:
        background = Background()
        loading = lambda folder, digest: load_classifier(folder, digest=digest)  # noqa: E731
        store = Home.at(home).open_store()
        judging = Judging(
            JudgeBuilder(partial(exemplars_of, registry), store, loading, no_encoder), background, lambda: None
        )
        judging.follow(registry.view())
        await background.settled()
        judge, found = judging.judge, []
        for text in texts:
            scores = await judge.decide([text])
            assert scores is not None
            route = None if scores.abstains else scores.route
            found.append((route, scores.score, judge.classifier_digest, judge.exemplars_digest))
        await background.stop()
        return found

    said = [explained(home, text) for text in texts]
    assert [(one["route"], one["scores"]["score"], one["classifier"], one["exemplars"]) for one in said] == asyncio.run(
        decided()
    )


def test_a_folder_is_asked_alone(home: Path, prepared: Path) -> None:
    (digest,) = {path.parent for path in (prepared / "store" / "classifier").glob("*/weights.npy")}
    found = explained(home, "remind me to water the plants at seven", "--classifier", digest)
    assert (found["decided_by"], found["nearest"], found["memory"], found["exemplars"]) == (
        "classifier",
        [],
        None,
        None,
    )
    assert explained(home, SQL, "--classifier", 1)["memory"] is not None


def test_diff_counts_only_what_changes_for_a_gateway(home: Path) -> None:
    """Memory sends the sentence of a new route there already; the classifiers alone differ about it."""
    row = home.parent / "row.jsonl"
    row.write_text(json.dumps({"text": NEW}) + "\n")
    invoke(home, "fit")
    folders = [
        home / "store" / "classifier" / one["digest"] for one in json.loads(invoke(home, "list", "--json").stdout)
    ]
    alone = json.loads(invoke(home, "diff", *folders, row, "--json").stdout)
    together = json.loads(invoke(home, "diff", "live", 2, row, "--json").stdout)
    assert (alone["moved"], alone["exemplars"]) == (1, None)
    assert (together["moved"], together["exemplars"]) == (0, explained(home, NEW)["exemplars"])


def test_the_encoders_share_is_shown_beside_the_words() -> None:
    encoder = Meanings()
    fitted = fit_classifier([*routes_rows(12), *base_rows()], encoder=encoder)
    exemplars = [Exemplar("reminder", NEW, "operator")]
    memory = Memory.build(exemplars, is_seen=fitted.has_row, encoder=encoder)
    found = explain_turns(["could you query the albums"], Judge(fitted, memory), exemplars, encoder, None)
    assert found.classifier is not None
    assert found.classifier.encoder is not None
    assert found.classifier.encoder > 0
    assert found.scores.route == "sql"


def test_foreign_text_cannot_forge_a_line(home: Path, registry: Registry) -> None:
    add_examples(registry, "reminder", ["remind me to\nsql@9 answers"], source="operator")
    assert "\nsql@9" not in invoke(home, "explain", "remind me to sql@9 answers").stdout
