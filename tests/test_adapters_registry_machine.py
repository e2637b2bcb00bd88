"""The registry against a model in plain Python, a crash between any two writes; and writers against each other."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import event, select
from sqlalchemy.dialects import postgresql

from adapters import schema
from adapters.classifiers import live_classifier, promote_classifier, publish_classifier, rollback_classifier
from adapters.database import connect
from adapters.errors import AlreadyExists, BranchlineError, Conflict, NotFound, Refused
from adapters.examples import add_examples, examples_of, remove_examples
from adapters.fold import fold_classifier, fold_routes, route_from_json, route_to_json
from adapters.forget import forget_texts
from adapters.manifests import digest_of_files
from adapters.registry import Registry
from adapters.store import Store
from adapters.types import Manifest, Stage
from tests.adapter_folders import memory_folder

TEXTS = ("one", "two", "three")


def manifest(seed: int) -> Manifest:
    files = {"adapter_config.json": f"{seed:064x}", "adapter_model.safetensors": "0" * 64}
    return Manifest(digest_of_files(files), files, 10, "pocket", "b" * 64, 4, 8.0, ("q_proj",))


@dataclass
class Expected:
    """A route as a person would keep book of it."""

    latest: int = 0
    stack: list[int] = field(default_factory=list)
    were_live: set[int] = field(default_factory=set)
    retired: set[int] = field(default_factory=set)
    enabled: bool = True
    revision: int = 1
    texts: list[str] = field(default_factory=list)

    def live(self) -> int | None:
        return next((number for number in reversed(self.stack) if number not in self.retired), None)

    def previous(self) -> int | None:
        """The first version down the stack that is another than the live one and still there."""
        others = (number for number in reversed(self.stack) if number not in self.retired and number != self.live())
        return next(others, None)

    def stage(self, number: int) -> Stage:
        if number in self.retired:
            return "retired"
        if number == self.live():
            return "live"
        return "previous" if number in self.were_live else "published"

    def go_live(self, number: int) -> None:
        self.stack.append(number)
        self.were_live.add(number)
        self.revision += 1

    def go_back(self, target: int) -> None:
        if target in self.stack:
            while self.stack[-1] != target:
                self.stack.pop()
        else:
            live = self.live()
            while live is not None and self.stack[-1] != live:
                self.stack.pop()
            self.stack = [*self.stack[:-1], target] if live is not None else [target]
        self.revision += 1

    def change(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self.revision += 1


class Crash(BaseException):
    """The process dies here; the files are what they are."""


class RegistryMachine(RuleBasedStateMachine):
    """Rules draw `crash`: `None`, or the number of the statement (0 is BEGIN, 99 the commit) before which all ends."""

    crashes = st.sampled_from([*[None] * 25, *range(15), 99, 99, 99, 100])
    numbers = st.sampled_from([1, 2, 3, 1, 2, 3, 4, 0, 9])
    route = st.sampled_from(["sql", "sql", "sql", "regex"])

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="registry-machine-", dir=memory_folder()))
        self.homes = 0
        self.expected: dict[str, Expected] = {}
        self.digests: dict[str, list[str]] = {}
        self.classifiers: list[str] = []
        self.classifier_stack: list[int] = []
        self.seed = 0
        self.artifact = self.root / "classifier"
        self.artifact.mkdir()
        (self.artifact / "weights.npy").write_bytes(b"w")
        self.store = Store(self.root / "store")
        self.registry = self.open()
        self.create("sql", None)
        for number in (1, 2, 3):
            self.publish("sql", None, False)
            self.promote("sql", number, None, None)

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.root)

    def open(self) -> Registry:
        return Registry.open(f"sqlite:///{self.root / str(self.homes) / 'registry.db'}", actor="machine")

    # -- crashing -----------------------------------------------------------------------------------------------------

    def attempt(
        self,
        crash: int | None,
        act: Callable[[], object],
        refusal: type[BranchlineError] | None,
        apply: Callable[[], object],
    ) -> None:
        """Do `act`; where it neither crashes nor is refused, `apply` it to the model. 100 crashes after the commit."""
        self.arm(crash)
        found: type[BranchlineError] | None = None
        try:
            act()
        except Crash:
            self.reopen()
            return
        except BranchlineError as error:
            found = type(error)
        assert found is refusal
        if refusal is None:
            apply()
        if crash is not None:
            self.snapshot()
            self.reopen()

    def arm(self, crash: int | None) -> None:
        if crash is None or crash == 100:
            return
        engine, seen = self.registry.engine, [0]

        def before_statement(*_: object) -> None:
            if seen[0] == crash:
                self.snapshot()
                raise Crash
            seen[0] += 1

        def before_commit(*_: object) -> None:
            if crash == 99:
                self.snapshot()
                raise Crash

        event.listen(engine, "before_cursor_execute", before_statement)
        event.listen(engine, "commit", before_commit)

    def snapshot(self) -> None:
        """The files as a killed process leaves them: database and log, without the shared memory."""
        old, new = self.root / str(self.homes), self.root / str(self.homes + 1)
        new.mkdir()
        for file in old.iterdir():
            if not file.name.endswith("-shm"):
                shutil.copy(file, new / file.name)

    def reopen(self) -> None:
        """Go on with the files of the last snapshot."""
        self.homes += 1
        self.registry.close()
        self.registry = self.open()

    # -- rules --------------------------------------------------------------------------------------------------------

    def known(self, route: str) -> Expected:
        return self.expected.get(route, Expected())

    def refusal(self, route: str, refused: type[BranchlineError] | None) -> type[BranchlineError] | None:
        return refused if route in self.expected else NotFound

    @rule(route=route, crash=crashes)
    def create(self, route: str, crash: int | None) -> None:
        def apply() -> None:
            self.expected[route] = Expected()
            self.digests[route] = []

        refused = AlreadyExists if route in self.expected else None
        self.attempt(crash, lambda: self.registry.create_route(route), refused, apply)

    @rule(route=route, crash=crashes, again=st.booleans())
    def publish(self, route: str, crash: int | None, again: bool) -> None:
        known = self.known(route)
        self.seed += not again

        def apply() -> None:
            if manifest(self.seed).digest not in self.digests[route]:
                known.latest += 1
                self.digests[route].append(manifest(self.seed).digest)

        act = lambda: self.registry.publish(route, manifest(self.seed))  # noqa: E731  # read beside its expectation
        self.attempt(crash, act, self.refusal(route, None), apply)

    @rule(route=route, number=numbers, crash=crashes, stale=st.sampled_from([None, None, None, 0, -1]))
    def promote(self, route: str, number: int, crash: int | None, stale: int | None) -> None:
        known = self.known(route)
        refused: type[BranchlineError] | None = None
        if stale == -1:
            refused = Conflict
        elif not 1 <= number <= known.latest:
            refused = NotFound
        elif number in known.retired or number == known.live():
            refused = Refused
        expected = None if stale is None else known.revision + stale
        self.attempt(
            crash,
            lambda: self.registry.promote(route, number, forced="why", expected_revision=expected),
            self.refusal(route, refused),
            lambda: known.go_live(number),
        )

    @rule(route=route, crash=crashes)
    def rollback(self, route: str, crash: int | None) -> None:
        known = self.known(route)
        target = known.previous()
        self.attempt(
            crash,
            lambda: self.registry.rollback(route),
            self.refusal(route, Refused if target is None else None),
            lambda: known.go_back(target or 0),
        )

    @rule(route=route, number=numbers, crash=crashes)
    def rollback_to(self, route: str, number: int, crash: int | None) -> None:
        known = self.known(route)
        refused: type[BranchlineError] | None = None
        if not 1 <= number <= known.latest:
            refused = NotFound
        elif known.stage(number) != "previous":
            refused = Refused
        self.attempt(
            crash,
            lambda: self.registry.rollback(route, to=number),
            self.refusal(route, refused),
            lambda: known.go_back(number),
        )

    def disable(self, route: str, crash: int | None) -> None:
        known = self.known(route)
        refused = None if known.enabled else Refused
        act = lambda: self.registry.disable(route)  # noqa: E731
        self.attempt(crash, act, self.refusal(route, refused), lambda: known.change(enabled=False))

    def enable(self, route: str, crash: int | None) -> None:
        known = self.known(route)
        refused = Refused if known.enabled else None
        act = lambda: self.registry.enable(route)  # noqa: E731
        self.attempt(crash, act, self.refusal(route, refused), lambda: known.change(enabled=True))

    @rule(route=route, number=numbers, crash=crashes)
    def retire(self, route: str, number: int, crash: int | None) -> None:
        known = self.known(route)
        refused: type[BranchlineError] | None = None
        if not 1 <= number <= known.latest:
            refused = NotFound
        elif number in known.retired:
            refused = Refused
        self.attempt(
            crash,
            lambda: self.registry.retire(route, number),
            self.refusal(route, refused),
            lambda: known.change(retired=known.retired | {number}),
        )

    def set_policy(self, route: str, crash: int | None) -> None:
        known = self.known(route)
        act = lambda: self.registry.change_route(route, policy={"min_items": 7})  # noqa: E731
        self.attempt(crash, act, self.refusal(route, None), known.change)

    def add_texts(self, route: str, texts: list[str], crash: int | None) -> None:
        known = self.known(route)
        self.attempt(
            crash,
            lambda: add_examples(self.registry, route, texts, source="machine"),
            self.refusal(route, None),
            lambda: known.texts.extend(text for text in dict.fromkeys(texts) if text not in known.texts),
        )

    def remove_text(self, route: str, text: str, crash: int | None) -> None:
        known = self.known(route)

        def apply() -> None:
            known.texts = [one for one in known.texts if one != text]

        act = lambda: remove_examples(self.registry, route, [text])  # noqa: E731
        self.attempt(crash, act, self.refusal(route, None), apply)

    def forget(self, route: str, crash: int | None) -> None:
        known = self.known(route)
        act = lambda: forget_texts(self.registry, route)  # noqa: E731
        self.attempt(crash, act, self.refusal(route, None), known.texts.clear)

    def classifier_publish(self, number: int, crash: int | None) -> None:
        digest = f"{number:064x}"

        def apply() -> None:
            if digest not in self.classifiers:
                self.classifiers.append(digest)

        self.attempt(
            crash,
            lambda: publish_classifier(self.registry, self.store, self.artifact, digest=digest, summary={"rows": 1}),
            None,
            apply,
        )

    def classifier_promote(self, number: int, crash: int | None) -> None:
        refused: type[BranchlineError] | None = None
        if not 1 <= number <= len(self.classifiers):
            refused = NotFound
        elif [number] == self.classifier_stack[-1:]:
            refused = Refused
        act = lambda: promote_classifier(self.registry, number)  # noqa: E731
        self.attempt(crash, act, refused, lambda: self.classifier_stack.append(number))

    def classifier_rollback(self, crash: int | None) -> None:
        refused = Refused if len(self.classifier_stack) < 2 else None
        act = lambda: rollback_classifier(self.registry)  # noqa: E731
        self.attempt(crash, act, refused, lambda: self.classifier_stack.pop())

    # Few rules, so that most steps move traffic: hypothesis picks among them evenly.

    @rule(route=route, crash=crashes, act=st.sampled_from(["disable", "enable", "set_policy"]))
    def configure(self, route: str, crash: int | None, act: str) -> None:
        getattr(self, act)(route, crash)

    @rule(route=route, crash=crashes, texts=st.lists(st.sampled_from(TEXTS), min_size=1), act=st.integers(0, 3))
    def exemplify(self, route: str, crash: int | None, texts: list[str], act: int) -> None:
        if act == 0:
            self.forget(route, crash)
        elif act == 1:
            self.remove_text(route, texts[0], crash)
        else:
            self.add_texts(route, texts, crash)

    @rule(number=st.sampled_from([1, 2, 3, 1, 2, 3, 0, 9]), crash=crashes, act=st.integers(0, 4))
    def classify(self, number: int, crash: int | None, act: int) -> None:
        if act <= 1:
            self.classifier_publish(number, crash)
        elif act <= 3:
            self.classifier_promote(number, crash)
        else:
            self.classifier_rollback(crash)

    # -- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def the_view_is_the_fold_of_the_events(self) -> None:
        events = self.registry.events()
        assert [one.serial for one in events] == list(range(1, len(events) + 1))
        assert self.registry.serial() == len(events)
        assert {state.name: state for state in self.registry.routes()} == fold_routes(events)
        assert self.registry.classifier_state() == fold_classifier(events)
        view = self.registry.view()
        assert view.serial == len(events)
        assert list(view.routes) == self.registry.routes()
        assert view.last_serials == {one.route: one.serial for one in events if one.route is not None}

    @invariant()
    def every_route_stands_where_the_book_says(self) -> None:
        assert {state.name for state in self.registry.routes()} == set(self.expected)
        for name, known in self.expected.items():
            state = self.registry.route(name)
            assert (state.live, state.previous) == (known.live(), known.previous())
            assert (state.latest, state.enabled, state.revision) == (known.latest, known.enabled, known.revision)
            numbers = range(1, known.latest + 1)
            assert [state.stage(number) for number in numbers] == [known.stage(number) for number in numbers]
            assert [(one.number, one.digest) for one in self.registry.versions(name)] == list(
                zip(numbers, self.digests[name], strict=True)
            )
            assert sorted(examples_of(self.registry, name)) == sorted(known.texts)
            assert (state.examples_digest is None) == (not known.texts)
            assert route_from_json(route_to_json(state)) == state

    @invariant()
    def the_classifier_stands_where_the_book_says(self) -> None:
        assert [one.digest for one in self.registry.classifiers()] == self.classifiers
        live = live_classifier(self.registry)
        assert (live.number if live else None) == (self.classifier_stack[-1] if self.classifier_stack else None)
        assert self.registry.view().live_classifier == (live.digest if live else None)


RegistryMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestRegistryMachine = pytest.mark.timeout(900)(RegistryMachine.TestCase)  # a failure takes minutes to shrink


# -- the rules of the stack, by hand ----------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", actor="tester")
    opened.create_route("sql")
    for seed in range(1, 6):
        opened.publish("sql", manifest(seed))
    yield opened
    opened.close()


def promote_all(registry: Registry, *numbers: int) -> None:
    for number in numbers:
        registry.promote("sql", number, forced="why")


def test_rolling_back_twice_goes_two_steps_back_and_never_forward(registry: Registry) -> None:
    promote_all(registry, 1, 2, 3)
    assert registry.rollback("sql").state.live == 2
    assert registry.rollback("sql").state.live == 1
    with pytest.raises(Refused, match=r"no earlier version to go back to .*route disable sql"):
        registry.rollback("sql")


def test_a_rollback_skips_retired_versions(registry: Registry) -> None:
    promote_all(registry, 1, 2, 3)
    registry.retire("sql", 2)
    assert registry.rollback("sql").state.live == 1


def test_a_retired_version_is_never_promoted_or_retired_again(registry: Registry) -> None:
    registry.retire("sql", 1)
    for act in (registry.retire, registry.promote):
        with pytest.raises(Refused, match="sql@1 is retired"):
            act("sql", 1)


def test_the_classifier_rolls_back_one_promotion_at_a_time(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "weights.npy").write_bytes(b"w")
    store = Store(tmp_path / "store")
    for number in (1, 2, 3):
        publish_classifier(registry, store, tmp_path / "classifier", digest=f"{number:064x}", summary={})
        promote_classifier(registry, number)
    for number in (2, 1):
        rollback_classifier(registry)
        assert registry.classifier_state().live == number
    with pytest.raises(Refused, match="no earlier classifier"):
        rollback_classifier(registry)


def test_retiring_the_live_version_brings_back_the_one_before_it(registry: Registry) -> None:
    promote_all(registry, 1, 2)
    assert registry.retire("sql", 2).state.live == 1
    assert registry.retire("sql", 1).state.live is None


def test_a_retired_version_between_two_promotions_of_one_version_makes_no_false_step_back(registry: Registry) -> None:
    promote_all(registry, 1, 2, 1)
    registry.retire("sql", 2)
    with pytest.raises(Refused, match="no earlier version"):
        registry.rollback("sql")


def test_a_rollback_and_a_promotion_do_not_enable(registry: Registry) -> None:
    promote_all(registry, 1, 2)
    registry.disable("sql")
    assert not registry.rollback("sql").state.enabled
    assert not registry.promote("sql", 3, forced="why").state.enabled


def test_a_rollback_to_a_number_needs_a_version_that_was_live(registry: Registry) -> None:
    promote_all(registry, 1, 2)
    for number, reason in ((3, "never live"), (2, "live now"), (9, "no version sql@9"), (0, "no version sql@0")):
        with pytest.raises((Refused, NotFound), match=reason):
            registry.rollback("sql", to=number)
    registry.rollback("sql")
    assert registry.rollback("sql", to=2).state.live == 2
    registry.retire("sql", 1)
    with pytest.raises(Refused, match="sql@1 is retired"):
        registry.rollback("sql", to=1)


def test_publishing_and_evidence_never_make_a_traffic_change_fail(registry: Registry) -> None:
    revision = registry.route("sql").revision
    registry.publish("sql", manifest(99))
    registry.add_evidence("sql", 1, "e" * 64)
    add_examples(registry, "sql", ["text"], source="test")
    assert registry.promote("sql", 1, forced="why", expected_revision=revision).state.revision == revision + 1


def test_a_change_of_one_route_never_conflicts_with_another(registry: Registry) -> None:
    registry.create_route("other")
    revision = registry.route("sql").revision
    registry.disable("other")
    registry.disable("sql", expected_revision=revision)


def test_every_event_says_who_when_what_and_why(tmp_path: Path) -> None:
    times = iter(("2026-01-01T00:00:00.000+00:00", "2026-01-02T00:00:00.000+00:00"))
    registry = Registry(connect(f"sqlite:///{tmp_path / 'r.db'}"), actor="ann@host", clock=lambda: next(times))
    registry.create_route("sql")
    registry.disable("sql", why="it answers nonsense")
    last = registry.events()[-1]
    assert (last.kind, last.actor, last.why, last.time) == (
        "disabled", "ann@host", "it answers nonsense", "2026-01-02T00:00:00.000+00:00",
    )  # fmt: skip
    registry.close()


def test_the_same_registry_can_act_for_another(registry: Registry) -> None:
    other = registry.acting_as("key:ann")
    assert other.disable("sql").event.actor == "key:ann"
    assert other.engine is registry.engine
    assert registry.enable("sql").event.actor == "tester"


def test_events_are_read_after_a_serial_and_by_route(registry: Registry) -> None:
    registry.create_route("other")
    registry.disable("sql")
    assert [one.kind for one in registry.events(after=6)] == ["route_created", "disabled"]
    assert [one.serial for one in registry.events(route="other")] == [7]
    view = registry.view(after=7)
    assert [state.name for state in view.routes] == ["sql"]
    assert view.last_serials == {"sql": 8}
    assert len(view.versions) == 5


# -- writers against each other ---------------------------------------------------------------------------------------


def race(url: str, *acts: Callable[[Registry], object]) -> list[object]:
    """Run each act in a thread with a registry of its own, all at once; what each returned or raised."""
    results: list[object] = [None] * len(acts)
    barrier = threading.Barrier(len(acts))

    def run(place: int) -> None:
        mine = Registry.open(url, actor=f"writer-{place}")
        barrier.wait()
        try:
            results[place] = acts[place](mine)
        except BranchlineError as error:
            results[place] = error
        mine.close()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_writers_with_the_same_expected_revision_exactly_one_wins(registry: Registry) -> None:
    def change_to(items: int, revision: int) -> Callable[[Registry], object]:
        return lambda mine: mine.change_route("sql", policy={"min_items": items}, expected_revision=revision)

    for start in range(0, 40, 4):
        revision = registry.route("sql").revision
        results = race(str(registry.engine.url), *(change_to(start + writer, revision) for writer in range(4)))
        assert sum(isinstance(result, Conflict) for result in results) == 3, results
        assert registry.route("sql").revision == revision + 1
        (winner,) = [place for place, result in enumerate(results) if not isinstance(result, Conflict)]
        assert registry.route("sql").policy == {"min_items": start + winner}


def test_writers_without_an_expected_revision_all_succeed_in_order(registry: Registry) -> None:
    before = len(registry.events())

    def many(mine: Registry) -> list[int]:
        return [mine.change_route("sql", description="x").event.serial for _ in range(10)]

    results = race(str(registry.engine.url), many, many, many)
    serials: list[int] = []
    for result in results:
        assert isinstance(result, list), result
        assert result == sorted(result)
        serials += result
    assert sorted(serials) == list(range(before + 1, before + 31))
    assert registry.route("sql").revision == 31


def test_the_same_bytes_published_at_once_are_one_version(registry: Registry) -> None:
    results = race(str(registry.engine.url), *[lambda mine: mine.publish("sql", manifest(77))] * 4)
    created = []
    for result in results:
        assert isinstance(result, tuple), result
        created.append(result[1])
        assert result[0].number == 6
    assert sorted(created) == [False, False, False, True]


def test_a_fresh_home_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'home' / 'registry.db'}"
    barrier = threading.Barrier(6)
    failures: list[BaseException] = []

    def start(place: int) -> None:
        barrier.wait()
        try:
            mine = Registry.open(url, actor="x")
            mine.create_route(f"route-{place}")
            mine.close()
        except BranchlineError as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    opened = Registry.open(url, actor="x")
    assert len(opened.routes()) == opened.serial() == 6
    opened.close()


# -- how transactions are made ----------------------------------------------------------------------------------------


def test_writers_begin_immediate_and_readers_do_not(registry: Registry) -> None:
    statements: list[str] = []
    raw = registry.engine.raw_connection()
    raw.driver_connection.set_trace_callback(statements.append)  # type: ignore[union-attr]  # sqlite3's own connection
    raw.close()
    registry.routes()
    assert statements[0] == "BEGIN"
    assert statements[-1] == "COMMIT"
    statements.clear()
    registry.disable("sql")
    assert [one for one in statements if one.split()[0] in {"BEGIN", "COMMIT", "ROLLBACK"}] == [
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]
    statements.clear()
    with pytest.raises(Refused):
        registry.disable("sql")
    assert statements[0] == "BEGIN IMMEDIATE"
    assert statements[-1] == "ROLLBACK"


def test_sqlite_is_durable_and_overwrites_what_is_deleted(registry: Registry) -> None:
    with registry.engine.connect() as connection:
        settings_found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys", "busy_timeout")
        }
    assert settings_found == {
        "journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1, "busy_timeout": 10_000,
    }  # fmt: skip


def test_a_reader_sees_one_moment_while_a_writer_commits(registry: Registry) -> None:
    other = Registry.open(str(registry.engine.url), actor="other")
    with registry.reading() as connection:
        before = connection.execute(select(schema.registry.c.serial)).scalar_one()
        other.disable("sql")
        assert connection.execute(select(schema.registry.c.serial)).scalar_one() == before
    assert registry.serial() == before + 1
    other.close()


def test_on_postgresql_a_writer_locks_the_registrys_row() -> None:
    query = select(schema.registry.c.serial).with_for_update()
    assert str(query.compile(dialect=postgresql.dialect())).endswith("FOR UPDATE")  # type: ignore[no-untyped-call]
