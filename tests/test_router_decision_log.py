"""The decision log: facts for each answer, texts only where switched on, for so many days and its owner alone."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.decisions import blank_texts, day_files, find_text, read_decisions, read_logged
from adapters.errors import BadInput, NotFound, RegistryUnavailable
from adapters.forget import forget_texts
from adapters.registry import Registry
from adapters.rows import last_user_text, read_asked
from router import decision_log as module
from router.decision_log import MAX_TEXT_CHARACTERS, DecisionLog, keep_swept
from router.errors import ConfigInvalid
from router.types import Decision

LIVE = Decision("sql@1.0123456789abcdef", "live", "classified", "sql", 1, 0.9, "c" * 64, "e" * 64, "f" * 64)
BASE = Decision("pocket", "base", "abstained")
MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC).timestamp()


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.seconds = MIDNIGHT

    def __call__(self) -> float:
        return self.seconds

    def forward(self, *, days: int) -> None:
        self.seconds += timedelta(days=days).total_seconds()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(path: Path, clock: Clock) -> Iterator[DecisionLog]:
    """One that keeps texts for three days."""
    kept = DecisionLog(path, text=True, days=3, clock=clock)
    yield kept
    kept.close()


def write(log: DecisionLog, text: str | None, request_id: str = "r-1", decision: Decision = LIVE) -> None:
    log.write(decision, request_id, "ok", 0.25, text)


def days(path: Path) -> list[str]:
    return [day.isoformat() for day in day_files(path)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [dict(decision) for decision in read_decisions(path)]


# -- what is written ---------------------------------------------------------------------------------------------------


def test_without_texts_it_is_one_file_of_facts_that_is_kept(path: Path, clock: Clock) -> None:
    log = DecisionLog(path, clock=clock)
    for days_later in (0, 400):
        clock.forward(days=days_later)
        write(log, "a secret prompt")
    log.close()
    assert [(line["request_id"], line["outcome"], line["seconds"]) for line in lines(path)] == [("r-1", "ok", 0.25)] * 2
    assert b"secret" not in path.read_bytes()
    assert "text" not in lines(path)[0]
    assert days(path) == []


def test_a_line_names_the_classifiers_and_the_exemplar_sets_digest(log: DecisionLog, path: Path) -> None:
    write(log, "hello")
    assert lines(path) == [
        {
            "time": MIDNIGHT,
            "engine_name": LIVE.engine_name,
            "stage": "live",
            "reason": "classified",
            "route": "sql",
            "version": 1,
            "confidence": 0.9,
            "classifier_digest": "c" * 64,
            "exemplars_digest": "e" * 64,
            "exemplar": "f" * 64,
            "request_id": "r-1",
            "key_id": None,
            "outcome": "ok",
            "seconds": 0.25,
            "text": "hello",
        }
    ]


def test_a_line_names_the_key_that_asked(log: DecisionLog, path: Path) -> None:
    write(log, "ours")
    log.write(LIVE, "r-2", "ok", 0.25, "theirs", key_id="k3y")
    assert [line["key_id"] for line in lines(path)] == [None, "k3y"]


def test_files_with_texts_are_their_owners_alone_also_where_they_were_not(path: Path, clock: Clock) -> None:
    (path.parent / "decisions.2026-03-01.jsonl").touch(mode=0o644)
    log = DecisionLog(path, text=True, clock=clock)
    write(log, "hello")
    clock.forward(days=1)
    write(log, "hello")
    log.close()
    assert [file.stat().st_mode & 0o777 for file in day_files(path).values()] == [0o600, 0o600]


def test_a_text_too_long_to_keep_leaves_its_facts(log: DecisionLog, path: Path) -> None:
    write(log, "x" * MAX_TEXT_CHARACTERS)
    write(log, "x" * (MAX_TEXT_CHARACTERS + 1), "r-2")
    assert [line["text"] is None for line in lines(path)] == [False, True]
    with pytest.raises(NotFound, match="no text of request 'r-2'"):
        find_text(path, "r-2")


async def swept(log: DecisionLog, registry: Registry, done: Callable[[], bool]) -> None:
    """Sweep until `done`."""
    sweeping = asyncio.create_task(keep_swept(log, registry))
    async with asyncio.timeout(60):
        while not done():  # noqa: ASYNC110 - files set no event
            await asyncio.sleep(0.001)
    sweeping.cancel()


@contextmanager
def registry_in(folder: Path) -> Iterator[Registry]:
    """One with the routes `sql` and `regex`."""
    registry = Registry.open(f"sqlite:///{folder / 'registry.db'}")
    for name in ("sql", "regex"):
        registry.create_route(name)
    yield registry
    registry.close()


# -- retention ---------------------------------------------------------------------------------------------------------


def test_a_file_for_each_day_and_those_that_are_over_are_deleted(log: DecisionLog, path: Path, clock: Clock) -> None:
    for _ in range(5):
        write(log, "hello")
        clock.forward(days=1)
    assert days(path) == ["2026-03-03", "2026-03-04", "2026-03-05"]


def test_a_gateway_without_traffic_deletes_old_files_too(
    log: DecisionLog, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, "hello")
    clock.forward(days=3)
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.001)

    with registry_in(path.parent) as registry:
        asyncio.run(swept(log, registry, lambda: not days(path)))


def test_texts_that_are_left_go_though_texts_are_no_longer_kept(log: DecisionLog, path: Path, clock: Clock) -> None:
    write(log, "hello")
    log.close()
    clock.forward(days=7)
    DecisionLog(path, clock=clock).close()
    assert days(path) == []


def test_other_files_in_the_folder_are_left_alone(path: Path, clock: Clock) -> None:
    names = ["decisions.2020-13-01.jsonl", "decisions.2020-01-01.jsonl.gz", "other.2020-01-01.jsonl", "decisions.jsonl"]
    for name in names:
        (path.parent / name).touch()
    DecisionLog(path, clock=clock).close()
    assert {file.name for file in path.parent.iterdir()} == set(names)


# -- a disk that does not do -------------------------------------------------------------------------------------------


def test_a_full_disk_costs_log_lines_and_no_answer_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(Path("/dev/full"))
    for _ in range(3):
        write(log, None)
    log.close()
    assert [(record.levelno, record.name) for record in caplog.records] == [(logging.ERROR, "branchline.decisions")]
    assert "the decision log cannot be written: No space left" in caplog.text


def test_a_folder_that_goes_away_costs_lines_until_it_is_back(
    log: DecisionLog, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    away = path.parent.with_name("away")
    path.parent.rename(away)
    for _ in range(3):
        clock.forward(days=1)
        write(log, "lost")
    away.rename(path.parent)
    write(log, "kept")
    assert [line["text"] for line in lines(path)] == ["kept"]
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1


def test_a_line_cut_short_by_a_full_disk_does_not_spoil_the_next(
    log: DecisionLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, "first")
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: whole(descriptor, line[:20]))
    write(log, "cut")
    monkeypatch.setattr(os, "write", whole)
    write(log, "last")
    assert [line["text"] for line in lines(path)] == ["first", "last"]


@pytest.mark.parametrize("text", [False, True])
def test_a_decision_log_that_cannot_be_opened_is_refused_at_the_start(tmp_path: Path, text: bool) -> None:
    with pytest.raises(ConfigInvalid, match="cannot write the decision log"):
        DecisionLog(tmp_path / "missing" / "decisions.jsonl", text=text)


def test_a_link_in_the_place_of_a_file_with_texts_is_not_followed(path: Path, clock: Clock) -> None:
    (path.parent / "decisions.2026-03-01.jsonl").symlink_to(path.parent / "elsewhere")
    with pytest.raises(ConfigInvalid, match=os.strerror(errno.ELOOP)):
        DecisionLog(path, text=True, clock=clock)


# -- texts by request id -----------------------------------------------------------------------------------------------


def test_a_text_is_found_by_its_request_over_all_days_the_newest_first(
    log: DecisionLog, path: Path, clock: Clock
) -> None:
    write(log, "old", "r-1")
    write(log, "other", "r-2")
    clock.forward(days=1)
    write(log, "new", "r-1")
    assert (find_text(path, "r-1"), find_text(path, "r-2")) == ("new", "other")


@given(texts=st.lists(st.text(max_size=30) | st.just('"request_id": "r-1"'), min_size=1, max_size=6))
def test_no_text_can_pass_itself_off_as_another_request(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        log = DecisionLog(path, text=True)
        write(log, "mine", "r-1")
        for number, text in enumerate(texts):
            write(log, text, f"x-{number}")
        log.close()
        assert find_text(path, "r-1") == "mine"


def test_a_request_is_found_wherever_the_pieces_that_are_read_begin(
    log: DecisionLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write(log, f"text {number} " + "x" * number * 37, f"r-{number}")
    for size in range(60, 140):
        monkeypatch.setattr("adapters.decisions._PIECE_BYTES", size)
        for number in range(5):
            assert find_text(path, f"r-{number}").startswith(f"text {number} ")


def test_only_the_newest_part_of_a_log_is_looked_at_where_so_said(log: DecisionLog, path: Path, clock: Clock) -> None:
    write(log, "old", "r-old")
    clock.forward(days=1)
    write(log, "x" * 1000, "r-new")
    assert find_text(path, "r-new", max_bytes=1500) == "x" * 1000
    with pytest.raises(NotFound):
        find_text(path, "r-old", max_bytes=900)


@pytest.mark.parametrize("request_id", ["r-9", "", "r 1", '", "text": "', "x" * 129, "r-"])
def test_a_request_that_is_not_there_is_refused(log: DecisionLog, path: Path, request_id: str) -> None:
    write(log, "hello")
    with pytest.raises(NotFound, match="no request"):
        find_text(path, request_id)


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no decision log"):
        find_text(tmp_path / "none.jsonl", "r-1")


# -- blanking ----------------------------------------------------------------------------------------------------------


def test_blanked_texts_leave_no_byte_and_the_gateway_goes_on_appending(
    log: DecisionLog, path: Path, clock: Clock
) -> None:
    for text, decision in (("SECRET one", LIVE), ("kept", BASE), ("SECRET zwölf \u2028", LIVE), ("S", LIVE)):
        write(log, text, decision=decision)
    write(log, None)
    clock.forward(days=1)
    write(log, "SECRET three")
    assert blank_texts(path, lambda decision: decision["route"] == "sql") == 4
    write(log, "after")
    assert [line["text"] for line in lines(path)] == ["", "kept", "", "", None, "", "after"]
    assert not [file for file in day_files(path).values() if b"SECRET" in file.read_bytes()]
    assert blank_texts(path, lambda decision: decision["route"] == "sql") == 1  # what is blank is not counted again
    with pytest.raises(NotFound, match="forgotten"):
        find_text(path, "r-1")


def test_a_gateway_blanks_what_was_routed_to_a_route_before_it_was_forgotten(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.001)
    clock.seconds = time.time()
    log = DecisionLog(path, text=True, clock=clock)
    with registry_in(path.parent) as registry:
        for text, decision in (("one", LIVE), ("two", BASE), ("three", replace(LIVE, route="regex"))):
            write(log, text, decision=decision)
        forget_texts(registry, "sql")
        clock.seconds = time.time() + 1
        write(log, "later")  # it is a route still
        asyncio.run(swept(log, registry, lambda: not lines(path)[0]["text"]))
    log.close()
    assert [line["text"] for line in lines(path)] == ["", "two", "three", "later"]


def test_a_registry_that_does_not_answer_is_asked_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.001)
    log = DecisionLog(path, text=True)
    write(log, "one")
    with registry_in(path.parent) as registry:
        forget_texts(registry, "sql")
        answers, asked = registry.serial, iter(range(1_000_000))

        def serial() -> int:
            if next(asked) < 3:
                raise RegistryUnavailable("the registry cannot be used: away")
            return answers()

        monkeypatch.setattr(registry, "serial", serial)
        asyncio.run(swept(log, registry, lambda: not lines(path)[0]["text"]))
    log.close()
    assert caplog.text.count("forgotten texts cannot be blanked in the decision log") == 3


def test_lines_are_json_that_other_readers_take(log: DecisionLog, path: Path) -> None:
    write(log, 'quotes " and \\ and \n and ü')
    blank_texts(path, lambda _: True)
    (file,) = day_files(path).values()
    assert [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()] == [""]


# -- read as rows ------------------------------------------------------------------------------------------------------


def test_all_days_of_a_log_are_rows_and_what_holds_no_text_is_left_out(
    log: DecisionLog, path: Path, clock: Clock
) -> None:
    for text in ("one", None, "two"):
        write(log, text)
        clock.forward(days=1)
    write(log, "gone", decision=BASE)
    blank_texts(path, lambda decision: decision["route"] is None)
    rows, left_out = read_logged(path)
    assert ([last_user_text(row.prompt) for row in rows], left_out) == (["two"], 2)  # the first day is over
    for file in day_files(path).values():
        read_asked(file)  # a day alone is a file of rows too, blanked lines and all
