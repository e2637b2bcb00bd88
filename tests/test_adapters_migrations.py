"""A registry of an older revision is upgraded in place and loses nothing; one of a newer is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect

from adapters import schema
from adapters.corrections import corrections_in_force
from adapters.database import connect
from adapters.errors import RegistryUnavailable
from adapters.examples import examples_of
from adapters.feedback import waiting_feedback
from adapters.fold import fold_classifier, fold_routes
from adapters.migrations import FOLDER, render_sql, upgrade
from adapters.registry import Registry
from tests.first_registry import write_first_registry
from tests.postgres_server import PostgresServer

OPEN = "import sys; from adapters.registry import Registry; print(Registry.open(sys.argv[1], actor='x').serial())"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    server: PostgresServer = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def first(empty: str) -> str:
    """As `empty`, with a registry as the code before the first revision wrote it."""
    write_first_registry(empty)
    return empty


@pytest.fixture
def engine(empty: str) -> Iterator[Engine]:
    made = create_engine(empty)
    yield made
    made.dispose()


def rows(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Everything in the tables that the first registry had."""
    names = set(inspect(engine).get_table_names()) - {"keys", "repeats", schema.REVISION_TABLE, "sqlite_sequence"}
    with engine.connect() as connection:
        tables = {name: connection.exec_driver_sql(f"SELECT * FROM {name}").all() for name in sorted(names)}  # noqa: S608
    return {name: sorted((tuple(row) for row in found), key=repr) for name, found in tables.items()}


def differences(engine: Engine) -> list[object]:
    """How the database's tables differ from those of `schema`, as Alembic sees it."""
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "version_table": schema.REVISION_TABLE}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata))


def test_the_newest_revision_is_the_one_that_the_schema_names() -> None:
    configured = Config()
    configured.set_main_option("script_location", str(FOLDER))
    assert ScriptDirectory.from_config(configured).get_current_head() == schema.REVISION


def test_all_revisions_one_after_another_make_the_tables_of_a_new_registry(empty: str, engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    assert differences(engine) == []
    assert rows(engine)["registry"] == [(1, 1, 0)]
    registry = Registry.open(empty, actor="x")
    registry.create_route("sql")
    registry.close()


def test_a_new_registry_needs_no_upgrade(empty: str, engine: Engine) -> None:
    connect(empty).dispose()
    assert differences(engine) == []
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT version_num FROM {schema.REVISION_TABLE}").all()  # noqa: S608
    assert [tuple(row) for row in found] == [(schema.REVISION,)]


def test_a_registry_of_the_first_schema_is_upgraded_and_loses_nothing(first: str, engine: Engine) -> None:
    before = rows(engine)
    assert len(before["events"]) == 29
    registry = Registry.open(first, actor="x")
    assert rows(engine) == before
    assert differences(engine) == []
    events = registry.events()
    assert {state.name: state for state in registry.routes()} == fold_routes(events)
    assert registry.classifier_state() == fold_classifier(events)
    assert len(registry.versions()) == 4
    assert [one.text for one in corrections_in_force(registry)] == ["what is the time", "list all orders"]
    assert [one.text for one in waiting_feedback(registry)] == ["a", "b"]
    assert examples_of(registry, "sql")[2] == "größter Umsatz"
    registry.enable("regex")
    assert registry.serial() == 30
    registry.close()


def test_one_without_the_tables_that_came_later_gets_them(first: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE corrections")
        connection.exec_driver_sql("DROP TABLE feedback")
    before = rows(engine)
    registry = Registry.open(first, actor="x")
    assert corrections_in_force(registry) == [] == waiting_feedback(registry)
    assert rows(engine) == {**before, "corrections": [], "feedback": []}
    assert differences(engine) == []
    registry.close()


def test_several_processes_may_open_an_old_registry_at_once(first: str, engine: Engine) -> None:
    before = rows(engine)
    command = [sys.executable, "-c", OPEN, first]
    opened = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate() for process in opened] == [("29\n", "")] * 3
    assert rows(engine) == before
    assert differences(engine) == []


def test_an_upgrade_that_fails_changes_nothing(
    first: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables = set(inspect(engine).get_table_names())

    def break_off(connection: object) -> None:
        upgrade(connection)  # type: ignore[arg-type]
        raise OSError("the power goes")

    monkeypatch.setattr("adapters.migrations.upgrade", break_off)
    with pytest.raises(RegistryUnavailable, match="the power goes"):
        connect(first)
    assert set(inspect(engine).get_table_names()) == tables


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "UPDATE registry_revision SET version_num = '0999'",
            "has revision 0999, this version knows none after",
        ),
        ("UPDATE registry SET schema = 2", "has schema 2, this version reads 1"),
    ],
)
def test_a_registry_of_a_newer_version_is_refused(empty: str, engine: Engine, change: str, reason: str) -> None:
    connect(empty).dispose()
    with engine.begin() as connection:
        connection.exec_driver_sql(change)
    with pytest.raises(RegistryUnavailable, match=f"{reason}.*use the Branchline version that wrote it"):
        connect(empty)


def test_a_registry_of_a_revision_that_never_was_is_refused(empty: str, engine: Engine) -> None:
    connect(empty).dispose()
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE registry_revision SET version_num = '0002x'")
    with pytest.raises(RegistryUnavailable, match=r"0002x.*backup"):
        connect(empty)


def test_the_steps_can_be_written_as_sql_for_an_administrator_to_run(first: str, engine: Engine) -> None:
    script = render_sql(first, None)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            for statement in script.split(";\n"):
                connection.exec_driver_sql(statement)
        else:
            connection.exec_driver_sql(script.replace("BEGIN;", "").replace("COMMIT;", ""))
    assert differences(engine) == []
    assert "CREATE TABLE IF NOT EXISTS events" not in render_sql(first, "0001")


def test_alembic_is_imported_only_to_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    program = f"{OPEN}; sys.exit('alembic' in sys.modules)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, url], check=True, capture_output=True)
