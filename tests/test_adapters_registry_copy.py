"""A registry moves to another database whole, checked, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, event, select

from adapters import schema
from adapters.cli_registry import registry as group
from adapters.errors import BadInput, Refused, RegistryUnavailable
from adapters.feedback import Choice, queue_feedback, reject_feedback, waiting_feedback
from adapters.keyring import create_key, revoke_key
from adapters.registry import Registry
from adapters.registry_copy import COPIED, Copied, copy_registry
from adapters.repeats import Request, claim, file_answer
from tests.first_registry import write_first_registry
from tests.postgres_server import PostgresServer

Run = Callable[..., Result]
NewUrl = Callable[[str], str]


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> NewUrl:
    """Makes the URL of an empty database of a kind."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / f'{len(list(tmp_path.iterdir()))}.db'}"
        server: PostgresServer = request.getfixturevalue("postgresql")
        return server.new_database()

    return make


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Registry]:
    """A registry with rows in every table, keys among them."""
    url = f"sqlite:///{tmp_path / 'source.db'}"
    write_first_registry(url)
    opened = Registry.open(url, actor="ann")
    create_key(opened, "web", "inference", routes=["sql"])
    revoke_key(opened, create_key(opened, "old", "operator").key.id)
    file_answer(opened, claim(opened, Request("web", "again", "d" * 64), again=False), "done")
    yield opened
    opened.close()


@pytest.fixture
def run() -> Run:
    def invoke(*words: str) -> Result:
        return CliRunner().invoke(group, [str(word) for word in words], catch_exceptions=True)

    return invoke


def copied_to(source: Registry, url: str) -> tuple[Copied, Registry]:
    target = Registry.open(url, actor="bob")
    return copy_registry(source, target), target


def content(registry: Registry) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables but heartbeats, as Python values."""
    tables = (schema.registry, schema.routes, schema.classifier, *COPIED)
    with registry.reading() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr) for table in tables
        }


def test_no_table_is_forgotten() -> None:
    written_anew = {"registry", "routes", "classifier", "registry_revision"}
    assert {table.name for table in COPIED} | written_anew | {"gateways"} == set(schema.metadata.tables)


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_everything_but_heartbeats_crosses_and_comes_back(source: Registry, new_url: NewUrl, kind: str) -> None:
    before = content(source)
    assert all(before.values()), "every table has rows"
    told, there = copied_to(source, new_url(kind))
    with closing(there):
        assert content(there) == before
        assert there.gateways() == []
        assert (told.serial, told.rows["events"], told.rows["keys"]) == (32, 32, 2)
        assert told.store_bytes == 40
        _, back = copied_to(there, new_url("sqlite"))
        with closing(back):
            assert content(back) == before
            assert back.view() == source.view()


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_the_copy_goes_on_where_the_registry_was(source: Registry, new_url: NewUrl, kind: str) -> None:
    queue_feedback(source, "sql", "c", source="key:1")
    reject_feedback(source, Choice(ids=(4,)))
    _, there = copied_to(source, new_url(kind))
    with closing(there):
        assert there.enable("regex").event.serial == source.serial() + 1
        queue_feedback(there, "sql", "d", source="key:1")
        assert [one.id for one in waiting_feedback(there)] == [1, 2, 5], "an id of a rejected text is not given again"


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_a_target_that_holds_anything_is_refused_and_left_as_it_is(
    source: Registry, new_url: NewUrl, kind: str
) -> None:
    url = new_url(kind)
    with closing(Registry.open(url, actor="bob")) as there:
        there.create_route("mine")
        before = content(there)
        with pytest.raises(Refused, match="is not empty: it has routes, events"):
            copy_registry(source, there)
        assert content(there) == before


def test_a_registry_that_contradicts_its_events_is_refused_with_every_place(source: Registry, new_url: NewUrl) -> None:
    with source.engine.begin() as connection:
        for damage in (
            "UPDATE routes SET state = json_set(state, '$.enabled', json('true')) WHERE name = 'regex'",
            "UPDATE routes SET revision = 99 WHERE name = 'sql'",
            'UPDATE classifier SET state = \'{"latest": 2, "stack": [2]}\'',
            "UPDATE keys SET revoked_at = NULL",
            "DELETE FROM versions WHERE route = 'sql' AND number = 3",
            "UPDATE evidence SET digest = 'f'",
            "UPDATE classifiers SET digest = 'f' WHERE number = 1",
            "UPDATE corrections SET text = 'altered'",
            "DELETE FROM examples WHERE route = 'booking'",
        ):
            connection.exec_driver_sql(damage)
    with closing(Registry.open(new_url("sqlite"), actor="bob")) as there:
        with pytest.raises(Refused) as refused:
            copy_registry(source, there)
        assert content(there)["events"] == []
    message = refused.value.message
    for place in (
        "route regex is not as its events say",
        "route sql is not as its events say",
        "the classifier in force is not",
        "key ",
        "1 versions have no event, or are missing",
        "2 evidence have no event",
        "2 classifiers have no event",
        "2 texts of corrections do not have the digest",
        "the examples of route booking",
    ):
        assert place in message


def test_events_that_are_missing_are_found(source: Registry, new_url: NewUrl) -> None:
    with source.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM events WHERE kind = 'route_changed'")
    refused = pytest.raises(Refused, match="the serial is 32, and there are 31 events up to 32")
    with closing(Registry.open(new_url("sqlite"), actor="bob")) as there, refused:
        copy_registry(source, there)


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_a_copy_that_breaks_off_leaves_nothing_and_can_be_made_again(
    source: Registry, new_url: NewUrl, kind: str
) -> None:
    with closing(Registry.open(new_url(kind), actor="bob")) as there:
        empty = content(there)

        def break_off(*call: object) -> None:
            if "INSERT INTO keys" in str(call[2]):
                raise OSError("the power goes")

        event.listen(there.engine, "before_cursor_execute", break_off)
        with pytest.raises(OSError, match="the power goes"):
            copy_registry(source, there)
        assert content(there) == empty
        event.remove(there.engine, "before_cursor_execute", break_off)
        copy_registry(source, there)
        assert content(there) == content(source)


def test_what_comes_while_it_is_copied_is_not_in_the_copy_which_is_of_one_moment(
    source: Registry, new_url: NewUrl
) -> None:
    before = content(source)
    with closing(Registry.open(new_url("sqlite"), actor="bob")) as there:

        def change(*call: object) -> None:
            if "INSERT INTO events" in str(call[2]) and source.serial() == 32:
                source.enable("regex")

        event.listen(there.engine, "before_cursor_execute", change)
        assert copy_registry(source, there).serial == 32
        assert content(there) == before
    assert source.serial() == 33


# -- the commands -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_copied_and_how_the_artifacts_are_moved(
    source: Registry, run: Run, tmp_path: Path, new_url: NewUrl
) -> None:
    done = run("copy", str(tmp_path / "source.db"), new_url("postgresql"))
    assert done.exit_code == 0, done.output
    assert "copied up to serial 32: 3 routes, 32 events, 4 versions, 1 evidence, 4 examples" in done.stdout
    assert "artifacts are not copied" in done.stderr
    assert "branchline adapter verify" in done.stderr
    again = run("copy", f"sqlite:///{tmp_path / 'source.db'}", str(tmp_path / "c.db"), "--json")
    document = json.loads(again.stdout)
    assert (document["serial"], document["missed"], document["rows"]["keys"]) == (32, 0, 2)


def test_a_registry_to_copy_that_is_not_there_is_not_made(run: Run, tmp_path: Path) -> None:
    failed = run("copy", str(tmp_path / "none.db"), str(tmp_path / "target.db"))
    assert isinstance(failed.exception, RegistryUnavailable)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(run("copy", "://", str(tmp_path / "target.db")).exception, BadInput)


def test_the_registry_is_shown_without_its_password(
    source: Registry, run: Run, tmp_path: Path, postgresql: PostgresServer
) -> None:
    url = postgresql.new_database().replace("branchline@", "branchline:hunter2@")
    run("copy", str(tmp_path / "source.db"), url)
    shown = run("show", "--registry", url, "--home", str(tmp_path))
    assert "hunter2" not in shown.output
    document = json.loads(run("show", "--registry", url, "--home", str(tmp_path), "--json").stdout)
    assert document["url"].startswith("postgresql+psycopg://branchline:***@/registry_")
    assert (document["serial"], document["routes"], document["revision"]) == (32, 3, schema.REVISION)
    in_query = run("show", "--registry", f"{url}&password=hunter2", "--home", str(tmp_path))
    assert in_query.exit_code == 0
    assert "hunter2" not in in_query.output


def test_the_sql_of_an_upgrade_is_printed_and_not_run(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'first.db'}"
    write_first_registry(url)
    words = ("sql", "--registry", url, "--home", str(tmp_path))
    script = run(*words).stdout
    assert "CREATE TABLE IF NOT EXISTS keys" in script
    engine = create_engine(url)
    assert not engine.dialect.has_table(engine.connect(), "keys")
    engine.dispose()
    Registry.open(url, actor="x").close()
    assert run(*words).stdout == ""
