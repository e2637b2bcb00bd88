"""Corrections and the queue of proposed ones: one label for a text, nothing acts unasked, forgetting leaves no byte."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text as sql
from sqlalchemy.exc import OperationalError

from adapters import database, examples, schema
from adapters import feedback as queue
from adapters.classifiers import promote_classifier, publish_classifier
from adapters.cli_route import route as route_group
from adapters.corrections import OPERATOR, correct, corrections_in_force, remove_corrections
from adapters.database import connect
from adapters.decisions import read_decisions
from adapters.errors import BadInput, BranchlineError, NotFound, QueueFull, Refused, RegistryUnavailable
from adapters.examples import add_examples, examples_of
from adapters.exemplars import Exemplar, exemplars_changed, exemplars_of
from adapters.feedback import Choice, accept_feedback, queue_feedback, reject_feedback, waiting_feedback
from adapters.forget import forget_texts
from adapters.registry import Registry
from adapters.rows import sha256_json, text_digest
from adapters.store import Store
from tests.postgres_server import postgres

Command = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    """Two routes; `sql` has two examples."""
    yield from _filled(f"sqlite:///{home / 'registry.db'}")


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, home: Path) -> Iterator[Registry]:
    """As `registry`, on each kind of database."""
    if request.param == "sqlite":
        yield from _filled(f"sqlite:///{home / 'registry.db'}")
        return
    url: str = request.getfixturevalue("server")
    _empty(url)
    yield from _filled(url)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


def _empty(url: str) -> None:
    engine = connect(url)
    schema.metadata.drop_all(engine)
    engine.dispose()


def _filled(url: str) -> Iterator[Registry]:
    registry = Registry.open(url, actor="ann@host")
    registry.create_route("sql")
    registry.create_route("regex")
    add_examples(registry, "sql", ["count the users", "list all orders"], source="operator")
    yield registry
    registry.close()


def labels(registry: Registry) -> dict[str, str]:
    return {one.text: one.label for one in exemplars_of(registry).rows}


def kinds(registry: Registry, after: int) -> list[tuple[str, str | None, dict[str, Any]]]:
    return [(one.kind, one.route, dict(one.payload)) for one in registry.events(after=after)]


# -- corrections in force ----------------------------------------------------------------------------------------------


def test_a_correction_is_an_exemplar_at_once_and_keeps_its_source(registry: Registry) -> None:
    done = correct(registry, "regex", ["match a date"], why="seen in the log")
    assert (done.added, done.known, done.lost) == (1, 0, {})
    assert exemplars_of(registry).rows[-1] == Exemplar("regex", "match a date", OPERATOR)
    assert [one.source for one in exemplars_of(registry).rows] == ["operator", "operator", OPERATOR]


def test_a_correction_takes_a_text_from_the_route_that_has_it_as_an_example(anywhere: Registry) -> None:
    done = correct(anywhere, "base", ["count the users"])
    assert done.lost == {"sql": 1}
    assert labels(anywhere) == {"list all orders": "sql", "count the users": "base"}
    assert examples_of(anywhere, "sql") == ["count the users", "list all orders"]  # it only counts no more


def test_the_last_correction_of_a_text_holds(anywhere: Registry) -> None:
    for label in ("regex", "base", "sql"):
        correct(anywhere, label, ["match a date"])
        assert labels(anywhere)["match a date"] == label
    assert len(corrections_in_force(anywhere)) == 1


def test_an_example_that_is_added_after_a_correction_of_its_text_does_not_undo_it(registry: Registry) -> None:
    correct(registry, "regex", ["match a date"])
    add_examples(registry, "sql", ["match a date"], source="file all.jsonl")
    assert labels(registry)["match a date"] == "regex"


def test_a_correction_that_is_removed_gives_the_example_back(anywhere: Registry) -> None:
    correct(anywhere, "base", ["count the users"])
    assert remove_corrections(anywhere, [text_digest("count the users")[:8]]) == 1
    assert labels(anywhere)["count the users"] == "sql"
    with pytest.raises(NotFound, match="'00000000' names 0 corrections"):
        remove_corrections(anywhere, ["00000000"])


@pytest.mark.parametrize("digest", ["", "%", "abc", "g" * 8, "0" * 65])
def test_what_is_no_text_digest_removes_nothing(registry: Registry, digest: str) -> None:
    """One correction alone would be found by "", too."""
    correct(registry, "base", ["hello"])
    with pytest.raises(NotFound, match="is no text digest"):
        remove_corrections(registry, [digest])
    assert len(corrections_in_force(registry)) == 1


def test_an_example_that_is_routed_elsewhere_can_be_corrected_to_its_own_route(anywhere: Registry) -> None:
    serial = anywhere.serial()
    done = correct(anywhere, "sql", ["count the users"])
    assert (done.added, done.known, done.lost) == (1, 0, {})
    assert [(one.label, one.text) for one in corrections_in_force(anywhere)] == [("sql", "count the users")]
    assert exemplars_changed(anywhere.view(after=serial))  # so that gateways learn of it
    assert Exemplar("sql", "count the users", OPERATOR) in exemplars_of(anywhere).rows  # and memory lets it speak
    queue_feedback(anywhere, "sql", "list all orders", source="feedback:ann")
    assert accept_feedback(anywhere, Choice()).added == 1
    assert len(corrections_in_force(anywhere)) == 2


def test_what_is_corrected_so_already_changes_nothing(registry: Registry) -> None:
    correct(registry, "sql", ["count the users"])
    serial = registry.serial()
    done = correct(registry, "sql", ["count the users"])
    assert (done.event, done.added, done.known, registry.serial()) == (None, 0, 1, serial)


def test_events_name_what_each_label_won_and_lost_by_digest_and_hold_no_text(registry: Registry) -> None:
    before = registry.serial()
    correct(registry, "base", ["count the users"], why="small talk")
    digest = text_digest("count the users")
    assert kinds(registry, before) == [
        ("corrected", None, {"gained": [digest], "lost": []}),
        ("corrected", "sql", {"gained": [], "lost": [digest]}),
    ]
    assert {one.why for one in registry.events(after=before)} == {"small talk"}


def test_of_two_routes_with_the_same_example_a_correction_keeps_it_for_one(registry: Registry) -> None:
    add_examples(registry, "regex", ["count the users"], source="operator")
    before = registry.serial()
    assert correct(registry, "sql", ["count the users"]).lost == {"regex": 1}
    digest = text_digest("count the users")
    assert kinds(registry, before) == [
        ("corrected", "regex", {"gained": [], "lost": [digest]}),
        ("corrected", "sql", {"gained": [digest], "lost": []}),
    ]
    assert [one.label for one in exemplars_of(registry).rows if one.text == "count the users"] == ["sql"]


def test_a_correction_to_a_route_that_is_not_there_is_refused(registry: Registry) -> None:
    with pytest.raises(NotFound, match="no route 'nosql'"):
        correct(registry, "nosql", ["x"])


@pytest.mark.parametrize("text", ["", " \n", "half \ud800 pair", "nul \0", "x" * 100_001])
def test_a_text_that_no_database_can_keep_is_refused(registry: Registry, text: str) -> None:
    with pytest.raises(BadInput, match="text 1"):
        correct(registry, "sql", [text])


# -- the set and its digest --------------------------------------------------------------------------------------------


def test_the_digest_is_over_labels_and_text_digests_whatever_the_order_and_the_source(anywhere: Registry) -> None:
    add_examples(anywhere, "sql", [f"text {number}" for number in range(6)], source="operator")
    texts = ["count the users", "list all orders", *(f"text {number}" for number in range(6))]
    expected = sorted(["sql", text_digest(one)] for one in texts)
    assert exemplars_of(anywhere).digest == sha256_json(expected)
    before = exemplars_of(anywhere).digest
    correct(anywhere, "base", ["list all orders"])
    assert exemplars_of(anywhere).digest != before
    correct(anywhere, "sql", ["list all orders"])  # now by a correction instead of by an example
    assert exemplars_of(anywhere).digest == before


def test_a_registry_without_exemplars_has_no_digest(registry: Registry) -> None:
    forget_texts(registry, "sql")
    assert (exemplars_of(registry).digest, exemplars_of(registry).rows) == (None, ())


def test_a_view_tells_a_gateway_whether_the_exemplars_may_have_changed(registry: Registry) -> None:
    def changed(act: Callable[[], object]) -> bool:
        serial = registry.serial()
        act()
        return exemplars_changed(registry.view(after=serial))

    assert changed(lambda: correct(registry, "base", ["hello"]))
    assert changed(lambda: add_examples(registry, "sql", ["one more"], source="operator"))
    assert changed(lambda: remove_corrections(registry, [text_digest("hello")]))
    assert changed(lambda: forget_texts(registry, "base"))
    assert not changed(lambda: registry.disable("sql"))
    assert not changed(lambda: queue_feedback(registry, "sql", "hello", source="feedback:ann"))


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_what_is_proposed_changes_nothing_until_it_is_accepted(registry: Registry) -> None:
    serial, digest = registry.serial(), exemplars_of(registry).digest
    queue_feedback(registry, "regex", "match a date", source="feedback:ann")
    assert (registry.serial(), exemplars_of(registry).digest) == (serial, digest)
    (waiting,) = waiting_feedback(registry)
    assert (waiting.label, waiting.text, waiting.source, waiting.times) == ("regex", "match a date", "feedback:ann", 1)
    accept_feedback(registry, Choice((waiting.id,)), why="right")
    assert exemplars_of(registry).rows[-1] == Exemplar("regex", "match a date", "feedback:ann")
    assert waiting_feedback(registry) == []


def test_the_same_proposal_collapses_into_one_that_is_counted(anywhere: Registry) -> None:
    for source in ("feedback:ann", "feedback:bob", "feedback:ann"):
        queue_feedback(anywhere, "regex", "match a date", source=source)
    queue_feedback(anywhere, "base", "match a date", source="feedback:bob")
    found = [(one.label, one.source, one.times) for one in waiting_feedback(anywhere)]
    assert found == [("regex", "feedback:ann", 3), ("base", "feedback:bob", 1)]


def test_a_proposal_of_what_is_known_does_not_wait(registry: Registry) -> None:
    queue_feedback(registry, "base", "hello", source="feedback:ann")
    correct(registry, "base", ["hello"])
    assert waiting_feedback(registry) == []
    queue_feedback(registry, "base", "hello", source="feedback:ann")
    assert waiting_feedback(registry) == []


def test_a_full_queue_refuses_and_drops_nothing(anywhere: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING", 5)
    monkeypatch.setattr(queue, "MAX_WAITING_OF_ONE_SOURCE", 3)
    for number in range(3):
        queue_feedback(anywhere, "sql", f"a {number}", source="feedback:ann")
    with pytest.raises(QueueFull, match="3 corrections of this source"):
        queue_feedback(anywhere, "sql", "a 3", source="feedback:ann")
    for number in range(2):
        queue_feedback(anywhere, "sql", f"b {number}", source=f"feedback:{number}")
    with pytest.raises(QueueFull, match="5 corrections of 15 characters wait"):
        queue_feedback(anywhere, "sql", "c", source="feedback:carl")
    queue_feedback(anywhere, "sql", "a 0", source="feedback:ann")  # it waits already: only counted
    assert [one.text for one in waiting_feedback(anywhere)] == ["a 0", "a 1", "a 2", "b 0", "b 1"]


def test_a_few_long_texts_fill_the_queue_too(anywhere: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING_CHARACTERS", 1000)
    for letter in "ab":
        queue_feedback(anywhere, "sql", letter * 500, source="feedback:ann")
    with pytest.raises(QueueFull, match="2 corrections of 1000 characters"):
        queue_feedback(anywhere, "sql", "c", source="feedback:bob")


def test_a_queue_of_others_fills_while_two_write_at_once_without_going_over(
    anywhere: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING", 6)
    refused: list[QueueFull] = []

    def fill(who: str) -> None:
        for number in range(5):
            try:
                queue_feedback(anywhere, "sql", f"{who} {number}", source=f"feedback:{who}")
            except QueueFull as error:
                refused.append(error)

    threads = [threading.Thread(target=fill, args=(who,)) for who in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(waiting_feedback(anywhere)), len(refused)) == (6, 4)


def test_a_key_may_have_so_many_waiting_whatever_users_it_names(
    anywhere: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING_OF_ONE_SOURCE", 3)
    for user in ("", "/ann", "/bob"):
        queue_feedback(anywhere, "regex", f"of {user}", source=f"key:app{user}")
    with pytest.raises(QueueFull, match="3 corrections of this source") as refused:
        queue_feedback(anywhere, "regex", "one more", source="key:app/cyn")
    assert refused.value.hint.endswith("--source key:app`")
    queue_feedback(anywhere, "regex", "another's", source="key:apple/ann")
    assert len(waiting_feedback(anywhere, Choice(source="key:app"))) == 3
    assert len(waiting_feedback(anywhere, Choice(source="key:app/ann"))) == 1
    assert reject_feedback(anywhere, Choice(source="key:app")) == 3


def test_all_of_a_source_are_accepted_or_rejected_together(anywhere: Registry) -> None:
    for source, text in (("feedback:ann", "one"), ("feedback:bob", "two"), ("feedback:ann", "three")):
        queue_feedback(anywhere, "regex", text, source=source)
    before = anywhere.serial()
    assert reject_feedback(anywhere, Choice(source="feedback:ann"), why="nonsense") == 2
    digests = [text_digest("one"), text_digest("three")]
    assert kinds(anywhere, before) == [("feedback_rejected", "regex", {"rejected": digests})]
    assert accept_feedback(anywhere, Choice(source="feedback:bob")).added == 1
    assert labels(anywhere)["two"] == "regex"


def test_an_id_that_does_not_wait_is_refused_and_nothing_is_accepted(registry: Registry) -> None:
    queue_feedback(registry, "regex", "one", source="feedback:ann")
    (waiting,) = waiting_feedback(registry)
    for act in (accept_feedback, reject_feedback):
        with pytest.raises(NotFound, match="no feedback 998, 999 waits"):
            act(registry, Choice((waiting.id, 998, 999)))
    assert waiting_feedback(registry) == [waiting]


def test_proposals_that_contradict_each_other_are_not_accepted_together(anywhere: Registry) -> None:
    for label, text in (("regex", "one"), ("sql", "one"), ("regex", "two")):
        queue_feedback(anywhere, label, text, source="feedback:ann")
    first, second, third = waiting_feedback(anywhere)
    with pytest.raises(Refused, match=f"1 texts are proposed for several routes: {first.id} says regex, {second.id}"):
        accept_feedback(anywhere, Choice())
    assert len(waiting_feedback(anywhere)) == 3
    assert accept_feedback(anywhere, Choice((second.id, third.id))).added == 2
    assert labels(anywhere) | {"one": "sql", "two": "regex"} == labels(anywhere)


def test_an_id_never_comes_to_mean_another_text(anywhere: Registry) -> None:
    queue_feedback(anywhere, "regex", "one", source="feedback:ann")
    (first,) = waiting_feedback(anywhere)
    reject_feedback(anywhere, Choice((first.id,)))
    queue_feedback(anywhere, "regex", "two", source="feedback:ann")
    assert waiting_feedback(anywhere)[0].id != first.id


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_forgetting_a_route_deletes_what_was_said_of_it_and_of_its_examples(anywhere: Registry) -> None:
    correct(anywhere, "sql", ["join two tables"])
    correct(anywhere, "base", ["count the users", "hello"])
    add_examples(anywhere, "regex", ["list all orders"], source="operator")
    for label, text in (("sql", "drop a table"), ("regex", "list all orders!"), ("base", "list all orders")):
        queue_feedback(anywhere, label, text, source="feedback:ann")
    done = forget_texts(anywhere, "sql", why="asked for")
    assert (done.examples, done.corrections, done.feedback) == (2, 2, 2)
    assert labels(anywhere) == {"list all orders": "regex", "hello": "base"}
    assert [one.text for one in waiting_feedback(anywhere)] == ["list all orders!"]
    assert done.event.payload == {"removed": 2, "corrections": 2, "feedback": 2, "examples_digest": None}


def test_what_was_corrected_to_the_base_is_forgotten_by_that_name(registry: Registry) -> None:
    correct(registry, "base", ["hello", "count the users"])
    assert forget_texts(registry, "base").corrections == 2
    assert set(labels(registry).values()) == {"sql"}


@pytest.mark.parametrize("size", [20, 60_000])
def test_no_byte_of_a_correction_is_left_in_the_database_or_its_log(home: Path, size: int) -> None:
    registry = next(_filled(f"sqlite:///{home / 'registry.db'}"))
    reader = Registry.open(f"sqlite:///{home / 'registry.db'}")  # another process, as a gateway
    reader.serial()
    secrets = [f"SECRET-{number}-" for number in range(12)]

    def found() -> list[str]:
        raw = b"".join(file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file())
        return [secret for secret in secrets if secret.encode() in raw]

    texts = [secret.ljust(size, "x") for secret in secrets]
    correct(registry, "sql", texts[:4])
    correct(registry, "base", texts[:2])
    correct(registry, "sql", texts[:2])
    for text in texts[4:]:
        queue_feedback(registry, "sql", text, source="feedback:ann")
    waiting = [one.id for one in waiting_feedback(registry)]
    accept_feedback(registry, Choice(tuple(waiting[:2])))
    assert found() == secrets
    reject_feedback(registry, Choice(tuple(waiting[2:4])))
    assert found() == [*secrets[:6], *secrets[8:]]
    remove_corrections(registry, [text_digest(texts[0])])
    assert found() == [*secrets[1:6], *secrets[8:]]
    forget_texts(registry, "sql")
    assert found() == []
    registry.close()
    reader.close()


def test_no_byte_of_it_is_left_in_the_tables_of_a_postgresql(server: str) -> None:
    _empty(server)
    registry = next(_filled(server))
    texts = [f"SECRET-{number}-" + "x" * size for number, size in enumerate((10, 500, 50_000))]
    add_examples(registry, "regex", texts[:1], source="operator")
    correct(registry, "regex", texts[1:2])
    queue_feedback(registry, "regex", texts[2], source="feedback:ann")
    files = Path(str(registry.engine.url.query["host"])) / "data" / "base"

    def found() -> bool:
        with registry.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(sql("ANALYZE"))
            connection.execute(sql("CHECKPOINT"))
        return any(b"SECRET-" in file.read_bytes() for file in files.rglob("*") if file.is_file())

    assert found()
    forget_texts(registry, "regex")
    assert not found()
    registry.close()


@pytest.mark.parametrize("kept_as", ["correction", "example"])
def test_a_proposal_that_was_accepted_leaves_no_byte_where_it_waited(server: str, kept_as: str) -> None:
    _empty(server)
    registry = next(_filled(server))
    text = "SECRET-" + "x" * 500
    queue_feedback(registry, "regex", text, source="feedback:ann")
    accept_feedback(registry, Choice())
    if kept_as == "example":
        add_examples(registry, "regex", [text], source="operator")
    remove_corrections(registry, [text_digest(text)])
    if kept_as == "example":
        examples.remove_examples(registry, "regex", [text])
    files = Path(str(registry.engine.url.query["host"])) / "data" / "base"
    with registry.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sql("CHECKPOINT"))
    assert [file.name for file in files.rglob("*") if file.is_file() and b"SECRET-" in file.read_bytes()] == []
    registry.close()


def logged(folder: Path, *texts: str) -> Path:
    lines = [{"request_id": f"r-{place}", "route": None, "text": one} for place, one in enumerate(texts)]
    file = folder / "decisions.2026-01-31.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "decisions.jsonl"


def test_a_reader_in_the_way_does_not_keep_the_log_from_being_blanked(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    log = logged(home, "count the users", "other")
    url = f"sqlite:///{home / 'registry.db'}"
    impatient = Registry.open_existing(url, actor="ann", busy_timeout_ms=10)
    reader = sqlite3.connect(home / "registry.db", isolation_level=None)
    reader.execute("BEGIN").execute("SELECT * FROM examples").fetchall()
    assert "still holds its bytes" in str(forget_texts(impatient, "regex").unscrubbed)
    result = command("forget", "sql", "--decision-log", str(log))
    assert refusal(result).startswith("2 examples of sql deleted; 1 texts blanked in the decision log; the text is")
    assert [one.get("text") for one in read_decisions(log)] == ["", "other"]
    reader.close()
    impatient.close()
    assert command("forget", "sql").exit_code == 0


def test_forgetting_the_base_does_not_promise_what_gateways_leave_alone(command: Command) -> None:
    assert "no gateway blanks these texts" in command("forget", "base").stderr
    assert "running gateways blank" in command("forget", "sql").stderr


def test_forgetting_names_the_live_classifier_that_keeps_words_of_the_texts(command: Command, home: Path) -> None:
    registry = Registry.open(f"sqlite:///{home / 'registry.db'}")
    (home / "fitted").mkdir()
    (home / "fitted" / "weights").write_text("x")
    summary = {"routes": ["sql"]}
    publish_classifier(registry, Store(home / "store"), home / "fitted", digest="c" * 64, summary=summary)
    assert "classifier" not in command("forget", "sql").stderr
    promote_classifier(registry, 1)
    assert "classifier 1 was fitted with sql and keeps words of its texts: fit again" in command("forget", "sql").stderr
    assert "classifier" not in command("forget", "regex").stderr
    registry.close()


def test_a_mistyped_decision_log_is_refused_before_anything_is_deleted(command: Command, home: Path) -> None:
    assert "no decision log" in refusal(command("forget", "sql", "--decision-log", str(home / "decisoins.jsonl")))
    (home / "blocked.2026-01-31.jsonl").mkdir()
    assert "cannot blank" in refusal(command("forget", "sql", "--decision-log", str(home / "blocked.jsonl")))
    assert len(json.loads(command("examples", "list", "sql", "--json").stdout)) == 2


# -- registries from before, and none ----------------------------------------------------------------------------------


def test_a_registry_from_before_corrections_gets_their_tables_when_it_is_opened(anywhere: Registry) -> None:
    url = anywhere.engine.url.render_as_string(hide_password=False)
    schema.metadata.drop_all(anywhere.engine, tables=[schema.corrections, schema.feedback, schema.revisions])
    opened: list[Registry] = []
    threads = [threading.Thread(target=lambda: opened.append(Registry.open(url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 3
    correct(opened[0], "base", ["count the users"])
    assert labels(opened[1])["count the users"] == "base"
    assert [one.name for one in opened[2].routes()] == ["regex", "sql"]
    for one in opened:
        one.close()


def test_a_registry_that_must_exist_is_not_made(tmp_path: Path) -> None:
    for file in (tmp_path / "none" / "registry.db", tmp_path / "empty.db"):
        with pytest.raises(RegistryUnavailable):
            Registry.open_existing(f"sqlite:///{file}", actor="gateway", busy_timeout_ms=10)
        (tmp_path / "empty.db").touch()
    assert not (tmp_path / "none").exists()
    with sqlite3.connect(tmp_path / "empty.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_a_postgresql_that_is_locked_is_waited_for_no_longer_than_was_said(server: str) -> None:
    """The lock is never given back: without the bound this would wait for good."""
    _empty(server)
    registry = next(_filled(server))
    patient = Registry.open_existing(server, actor="gateway", busy_timeout_ms=50)
    with registry.engine.begin() as connection:
        connection.execute(sql("SELECT serial FROM registry FOR UPDATE"))
        for _ in range(2):  # on a connection that the pool gave out before, too
            with pytest.raises(RegistryUnavailable, match="timeout"):
                queue_feedback(patient, "sql", "x", source="feedback:ann")
    with patient.reading() as connection, pytest.raises(OperationalError, match="statement timeout"):
        connection.execute(sql("SELECT pg_sleep(60)"))
    queue_feedback(patient, "sql", "x", source="feedback:ann")
    patient.close()
    registry.close()


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(home: Path) -> Command:
    next(_filled(f"sqlite:///{home / 'registry.db'}")).close()

    def run(*words: str) -> Result:
        return CliRunner().invoke(route_group, [*words, "--home", str(home)])

    return run


def refusal(result: Result) -> str:
    assert isinstance(result.exception, BranchlineError), result
    return str(result.exception)


def test_an_operator_corrects_lists_and_takes_back(command: Command) -> None:
    done = command("correct", "base", "--text", "count the users", "--text", "hello", "--why", "small talk")
    assert "2 corrected to base (serial 5): no gateway is running" in done.stdout
    assert done.stderr == "1 taken from sql\n"
    listed = json.loads(command("corrections", "list", "--in-force", "--json").stdout)
    assert {one["text"]: (one["route"], one["source"]) for one in listed} == {
        "hello": ("base", OPERATOR),
        "count the users": ("base", OPERATOR),
    }
    table = command("corrections", "list", "--in-force").stdout.splitlines()
    assert table[0].split() == ["text", "digest", "route", "text", "source", "time"]
    assert command("corrections", "remove", table[1].split()[0]).stdout == "1 corrections removed\n"
    assert "2 corrected" not in command("correct", "base", "--text", "hello", "--text", "new", "--no-wait").stdout
    events = json.loads(command("history", "base", "--json").stdout)
    assert [one["kind"] for one in events] == ["corrected", "correction_removed", "corrected"]
    assert events[0]["why"] == "small talk"


def test_an_operator_reviews_what_programs_propose(command: Command, home: Path) -> None:
    registry = Registry.open(f"sqlite:///{home / 'registry.db'}")
    for number in range(4):
        queue_feedback(registry, "regex", f"text {number}", source=f"feedback:{'ann' if number else 'bob'}")
    listed = json.loads(command("corrections", "list", "--json").stdout)
    assert [set(one) for one in listed] == [{"id", "route", "text", "source", "time", "times"}] * 4
    ids = [str(one["id"]) for one in listed]
    assert "2 accepted (serial 4)" in command("corrections", "accept", *ids[:2], "--no-wait").stdout
    assert command("corrections", "reject", "--source", "feedback:ann").stdout == "2 rejected and deleted\n"
    assert {one.text for one in corrections_in_force(registry)} == {"text 0", "text 1"}
    assert command("corrections", "accept").exit_code == 2
    assert command("corrections", "reject", "1", "--all").exit_code == 2
    registry.close()


def test_a_text_in_the_list_cannot_forge_a_line(command: Command, home: Path) -> None:
    registry = Registry.open(f"sqlite:///{home / 'registry.db'}")
    queue_feedback(registry, "regex", "evil\n999  sql  \x1b[2K", source="feedback:ann")
    assert len(command("corrections", "list").stdout.splitlines()) == 2
    registry.close()


def test_examples_are_listed_one_a_line_whatever_they_hold(command: Command) -> None:
    command("examples", "add", "sql", "--text", "evil\nline \x1b[2K größe")
    assert command("examples", "list", "sql").stdout.splitlines() == [
        "count the users",
        "list all orders",
        r"evil\nline \x1b[2K größe",
    ]
    command("forget", "sql")
    assert command("examples", "list", "sql").stdout == ""


def test_numbers_that_no_database_holds_are_refused(command: Command) -> None:
    for act in ("accept", "reject"):
        assert command("corrections", act, "99999999999999999999999").exit_code == 2


def test_correct_without_a_text_or_with_half_a_request_is_refused(command: Command) -> None:
    assert "no text given" in refusal(command("correct", "sql"))
    assert command("correct", "sql", "--request-id", "r-1").exit_code == 2
    assert "no decision log" in refusal(
        command("correct", "sql", "--request-id", "r-1", "--decision-log", "none.jsonl")
    )
    assert "no route 'nosql'" in refusal(command("correct", "nosql", "--text", "x"))
