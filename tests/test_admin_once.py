"""Idempotency keys and ETags of the admin API: done once, by one of two, on either database, whatever dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from adapters import schema
from adapters.base import Base, find_base
from adapters.errors import Conflict
from adapters.home import Home
from adapters.keyring import create_key
from adapters.registry import Registry
from adapters.repeats import LEASE_SECONDS, Claim, Request, claim, file_answer, give_up
from router.auth import Gatekeeper
from tests.admin_client import OWN_KEY, V1, Person
from tests.gateway_parts import Served
from tests.postgres_server import PostgresServer
from tests.test_router_app import require_error
from tests.tiny_model import make_base

ASKING = 8
ROUNDS = 3
SQL = f"{V1}/routes/sql"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(make_base(tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A home whose registry has the route sql; where a test is `on_either`, on SQLite and on PostgreSQL."""
    url = None
    if getattr(request, "param", "sqlite") == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgresql")
        url = server.new_database()
    home = Home.at(tmp_path / "home", url)
    registry = Registry.open(home.registry_url)
    registry.create_route("sql")
    registry.close()
    return home


on_either = pytest.mark.parametrize("home", ["sqlite", "postgresql"], indirect=True)


def gateway(home: Home, base: Base) -> Served:
    return Served(home, base, Gatekeeper.for_bind("127.0.0.1", OWN_KEY), lora_folders=())


@pytest.fixture
def two(home: Home, base: Base) -> Iterator[list[Served]]:
    """Two gateways on one registry."""
    with ExitStack() as running:
        yield [running.enter_context(gateway(home, base)) for _ in range(2)]


class People:
    """Those who ask in a test; their connections end with it."""

    def __init__(self, kept: ExitStack) -> None:
        self._kept = kept

    def __call__(self, served: Served, secret: str = OWN_KEY) -> Person:
        somebody = Person(served.url, secret)
        self._kept.enter_context(somebody.client)
        return somebody


@pytest.fixture
def people() -> Iterator[People]:
    with ExitStack() as kept:
        yield People(kept)


def kinds(served: Served) -> list[str]:
    return [event.kind for event in served.gateway.registry.events(route="sql")]


def at_once(asking: list[Person], method: str, path: str, document: object, **headers: str) -> list[httpx.Response]:
    """The same request from many at once, by all who are `asking`."""

    def ask(number: int) -> httpx.Response:
        return asking[number % len(asking)].ask(method, path, document, **headers)

    with ThreadPoolExecutor(ASKING) as threads:
        return list(threads.map(ask, range(ASKING)))


def test_a_request_that_is_sent_again_is_done_once_and_answered_alike(two: list[Served], people: People) -> None:
    one, other = (people(served) for served in two)
    first = one.ask("POST", f"{SQL}/disable", {"why": "slow"}, idempotency_key="a")
    again = other.ask("POST", f"{SQL}/disable", {"why": "slow"}, idempotency_key="a")
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["etag"] == first.headers["etag"] == '"2"'
    assert kinds(two[0]) == ["route_created", "disabled"]
    for document, path in (({"why": "broken"}, "disable"), ({"why": "slow"}, "enable")):
        refused = one.ask("POST", f"{SQL}/{path}", document, idempotency_key="a")
        require_error(refused, 422, "idempotency_key_reused")
    refused = one.ask("POST", f"{SQL}/disable", {}, idempotency_key="b")
    require_error(refused, 409, "refused")
    one.done("POST", f"{SQL}/enable")
    assert other.ask("POST", f"{SQL}/disable", {}, idempotency_key="b").content == refused.content  # kept, too
    assert kinds(two[0]) == ["route_created", "disabled", "enabled"]


def test_an_idempotency_key_is_its_owners_alone(two: list[Served], people: People) -> None:
    registry = two[0].gateway.registry
    secret = create_key(registry, "another", "operator")
    two[0].until(lambda: two[0].gateway.catalog.snapshot.serial >= secret.event.serial, "the key")
    people(two[0]).done("POST", f"{SQL}/disable", {}, idempotency_key="a")
    people(two[0], secret.secret).done("POST", f"{SQL}/enable", {}, idempotency_key="a")


@on_either
def test_of_many_that_come_at_once_one_does_it_and_all_get_its_answer(two: list[Served], people: People) -> None:
    asking = [people(served) for served in two]
    for number in range(ROUNDS):
        action = "disable" if number % 2 == 0 else "enable"
        answers = at_once(asking, "POST", f"{SQL}/{action}", {"why": "x"}, idempotency_key=f"k{number}")
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        assert len({answer.content for answer in answers}) == 1
    assert len(kinds(two[0])) == 1 + ROUNDS


@on_either
def test_of_operators_who_decide_on_the_same_revision_exactly_one_wins(two: list[Served], people: People) -> None:
    asking = [people(served) for served in two]
    for number in range(ROUNDS):
        etag = asking[0].ask("GET", SQL).headers["etag"]
        assert etag == f'"{number + 1}"'
        answers = at_once(asking, "PATCH", SQL, {"policy": {"min_items": number}}, if_match=etag)
        won = [answer for answer in answers if answer.status_code == 200]
        assert [answer.headers["etag"] for answer in won] == [f'"{number + 2}"']
        for answer in answers:
            if answer not in won:
                require_error(answer, 412, "precondition_failed")
                assert answer.headers["etag"] == f'"{number + 2}"'
    assert len(kinds(two[0])) == 1 + ROUNDS


def test_what_was_done_is_remembered_by_a_gateway_that_was_not_there(home: Home, base: Base, people: People) -> None:
    def disable() -> httpx.Response:
        with gateway(home, base) as served:
            return people(served).ask("POST", f"{SQL}/disable", {}, idempotency_key="a")

    first, again = disable(), disable()
    assert (again.status_code, again.content) == (200, first.content)


def test_what_was_done_by_a_gateway_that_died_before_it_answered_is_not_done_again(
    two: list[Served], people: People
) -> None:
    person = people(two[0])
    first = person.done("POST", f"{SQL}/disable", {"why": "x"}, idempotency_key="a")
    died = update(schema.repeats).values(answer=None, time=time.time() - LEASE_SECONDS - 1)
    with two[0].gateway.registry.transaction() as connection:
        connection.execute(died)
    again = person.done("POST", f"{SQL}/disable", {"why": "x"}, idempotency_key="a")
    assert again == {**first, "recovered": True}
    assert kinds(two[0]) == ["route_created", "disabled"]


def test_a_request_with_an_etag_that_is_no_etag_is_refused(two: list[Served], people: People) -> None:
    person = people(two[0])
    for wrong in ('W/"1"', "1", '"x"', '"1", "2"', '"0"'):
        require_error(person.ask("POST", f"{SQL}/disable", {}, if_match=wrong), 412, "precondition_failed")
    assert person.ask("POST", f"{SQL}/disable", {}, if_match="*").status_code == 200
    require_error(person.ask("POST", f"{V1}/classifiers/rollback", {}, if_match='"1"'), 400, None)


# -- the claim itself ------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(home: Home) -> Iterator[Registry]:
    opened = Registry.open(home.registry_url)
    yield opened
    opened.close()


ASKED = Request("key", "a", "digest")


def taken(registry: Registry, at: float, *, again: bool = False, request: Request = ASKED) -> Claim:
    return claim(registry, request, again=again, clock=lambda: at)


def test_a_claim_is_anothers_until_its_time_is_over(registry: Registry) -> None:
    assert taken(registry, 1000).found == "claimed"
    assert taken(registry, 1000 + LEASE_SECONDS - 1).found == "running"
    assert taken(registry, 1000 + LEASE_SECONDS + 1).found == "claimed"
    assert taken(registry, 1000, request=Request("key", "a", "another")).found == "other"
    assert taken(registry, 1000, request=Request("another", "a", "digest")).found == "claimed"


@on_either
def test_who_was_overtaken_can_write_no_more(registry: Registry) -> None:
    slow = taken(registry, 1000)
    second = taken(registry, 1000 + LEASE_SECONDS + 1)
    with pytest.raises(Conflict, match="another took it over"):
        registry.acting_as("slow", beside=slow.beside).disable("sql")
    assert registry.route("sql").enabled
    file_answer(registry, slow, "of the slow one")
    registry.acting_as("second", beside=second.beside).disable("sql")
    lost = taken(registry, 5000)
    assert (lost.found, lost.serial) == ("lost", registry.serial())
    assert taken(registry, 5000, again=True).found == "claimed"


def test_what_failed_may_be_tried_again_at_once(registry: Registry) -> None:
    give_up(registry, taken(registry, 1000))
    assert taken(registry, 1000).found == "claimed"


def test_an_answer_is_kept_for_a_day(registry: Registry) -> None:
    file_answer(registry, taken(registry, 1000), "done")
    assert taken(registry, 1000 + 23 * 3600).answer == "done"
    assert taken(registry, 1000 + 25 * 3600).found == "claimed"
