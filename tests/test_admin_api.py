"""The admin API over a real socket: who may do what, what it does, and that it is done once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from adapters.errors import RegistryUnavailable
from adapters.home import Home
from adapters.keyring import create_key, keys_of
from adapters.keys import Role
from adapters.manifests import weights_digest
from adapters.publish import publish_folder
from router.admin_api.operation import Operation
from router.admin_api.table import OPERATIONS, path_of
from router.auth import Gatekeeper
from router.errors import ConfigInvalid
from router.settings import read_settings
from tests.adapter_folders import make_evidence
from tests.admin_client import OWN_KEY, TLS, V1, Person
from tests.gateway_parts import DEADLINE, Served, Stock, make_stock
from tests.test_router_app import body, require_error

ROLES: tuple[Role, ...] = ("inference", "operator", "admin")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=3)


@pytest.fixture(scope="module")
def served(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = stock.copy(tmp_path_factory.mktemp("served") / "home")
    gatekeeper = Gatekeeper.for_bind("127.0.0.1", OWN_KEY)
    folders = (stock.folders[0].parent,)
    with Served(home, stock.base, gatekeeper, live=[("sql", 1)], lora_folders=folders) as served:
        yield served


@pytest.fixture(scope="module")
def keys(served: Served) -> dict[str, str]:
    """A secret of each role, and one of an operator and of an admin who may use the route regex only."""
    registry = served.gateway.registry
    made = {str(role): create_key(registry, f"the-{role}", role) for role in ROLES}
    made |= {f"{role}-of-regex": create_key(registry, f"{role}-of-regex", role, routes=["regex"]) for role in ROLES[1:]}
    served.until(lambda: served.gateway.catalog.snapshot.serial >= registry.serial(), "the keys")
    return {name: key.secret for name, key in made.items()}


def status_with(client: httpx.Client, secret: str) -> int:
    return client.get("/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=DEADLINE, verify=TLS) as client:
        yield client


@pytest.fixture(scope="module")
def operator(served: Served, keys: dict[str, str]) -> Iterator[Person]:
    somebody = Person(served.url, keys["operator"])
    with somebody.client:
        yield somebody


@pytest.fixture(scope="module")
def admin(served: Served, keys: dict[str, str]) -> Iterator[Person]:
    somebody = Person(served.url, keys["admin"])
    with somebody.client:
        yield somebody


@pytest.fixture
def route(served: Served, request: pytest.FixtureRequest, stock: Stock) -> str:
    """A route of the test's own, with two published versions, none live."""
    registry = served.gateway.registry
    name = f"r{registry.serial()}"
    registry.create_route(name)
    for folder in stock.folders[:2]:
        publish_folder(registry, served.gateway.store, name, folder, stock.base)
    return name


# -- who -------------------------------------------------------------------------------------------------------------


def concrete(operation: Operation, route: str = "sql") -> str:
    return path_of(operation).format(route=route, number=1, name="nobody")


def test_every_path_of_operators_that_is_served_stands_in_the_table(served: Served) -> None:
    paths = {(route.path, *sorted(route.methods)) for route in served.app.routes if isinstance(route, APIRoute)}
    ours = {one for one in paths if one[0].startswith(V1) or "lora" in one[0]}
    assert {one for one in ours if "/engines" not in one[0]} == {(path_of(one), one.method) for one in OPERATIONS}


def test_what_adds_or_ends_something_for_good_takes_an_admin_and_all_else_an_operator() -> None:
    admins = {one.name for one in OPERATIONS if one.role == "admin"}
    assert admins == {
        "publish_version",
        "attach_evidence",
        "retire_version",
        "forget_route",
        "list_keys",
        "create_key",
        "change_key",
        "revoke_key",
        "load_lora_adapter",
        "unload_lora_adapter",
    }
    assert {one.role for one in OPERATIONS if one.name not in admins} == {"operator"}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_an_operation_is_refused_to_whoever_has_not_its_role(
    operation: Operation, client: httpx.Client, keys: dict[str, str]
) -> None:
    def ask(secret: str | None, route: str = "sql") -> httpx.Response:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        return client.request(operation.method, concrete(operation, route), json={"nobody": 1}, headers=headers)

    require_error(ask(None), 401, "invalid_api_key")
    require_error(ask("bl-0-wrong"), 401, "invalid_api_key")
    allowed = ROLES.index(operation.role)
    for role in ROLES[:allowed]:
        require_error(ask(keys[role]), 403, "not_permitted")
    for role in ROLES[allowed:]:  # let in: what is refused now is the body, or what is asked for
        assert ask(keys[role]).status_code not in (401, 403)
    assert (ask(OWN_KEY).status_code == 403) == (operation.role == "admin")  # the server's own key is an operator's
    for role in ROLES[max(1, allowed) :]:
        require_error(ask(keys[f"{role}-of-regex"]), 403, "not_permitted")
        mine = ask(keys[f"{role}-of-regex"], "regex")
        assert (mine.status_code == 403) == (not operation.of_route)


def test_the_admin_api_asks_for_a_key_where_nothing_else_does(
    stock: Stock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = stock.copy(tmp_path_factory.mktemp("keyless") / "home")
    with Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", None), lora_folders=()) as served:
        anybody = Person(served.url, None)
        with anybody.client:
            assert anybody.ask("GET", "/v1/models").status_code == 200
            assert anybody.ask("GET", f"{V1}/engines").status_code == 200
            for operation in OPERATIONS:
                require_error(anybody.ask(operation.method, concrete(operation)), 401, "invalid_api_key")


def test_a_port_of_their_own_answers_operators_and_nobody_else(
    stock: Stock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = stock.copy(tmp_path_factory.mktemp("apart") / "home")
    gatekeeper = Gatekeeper.for_bind("127.0.0.1", OWN_KEY)
    with Served(home, stock.base, gatekeeper, lora_folders=(), admin_port=True) as served:
        main, apart = (Person(url, OWN_KEY) for url in (served.url, served.admin_url))
        nobody = Person(served.admin_url, None)
        with main.client, apart.client, nobody.client:
            for path in [*(concrete(one) for one in OPERATIONS), f"{V1}/engines", f"{V1}/nothing"]:
                response = main.ask("GET", path, host=f"127.0.0.1:{served.admin_port}")
                require_error(response, 404, "unknown_url")
            assert apart.done("GET", f"{V1}/routes")["routes"]
            assert apart.done("GET", f"{V1}/engines")["engines"]
            require_error(apart.ask("GET", "/v1/models"), 404, "unknown_url")
            require_error(apart.ask("POST", "/v1/chat/completions", {}), 404, "unknown_url")
            require_error(nobody.ask("GET", f"{V1}/routes"), 401, "invalid_api_key")
            assert nobody.ask("GET", "/health").status_code == 200


# -- what ------------------------------------------------------------------------------------------------------------


def test_a_day_of_an_operator_is_in_force_when_the_answer_says_so_and_in_the_audit_trail(
    operator: Person, admin: Person, served: Served, route: str
) -> None:
    before = served.gateway.registry.serial()
    created = operator.done(
        "POST", f"{V1}/routes", {"name": f"{route}-new", "description": "new", "examples": ["hi there"]}
    )
    assert created["revision"] == 1
    path = f"{V1}/routes/{route}"
    refused = operator.ask("POST", f"{path}/promote", {"version": 1})
    assert "does not pass the promotion gate" in require_error(refused, 409, "gate_refused")["message"]
    assert operator.done("PATCH", path, {"policy": {"min_items": 10}, "description": "d"})["policy"]["min_items"] == 10
    for number in (1, 2):
        done = operator.done("POST", f"{path}/promote?wait=20", {"version": number, "force": "a test"})
        assert done["live"] == number
        assert done["unmet"]
        assert done["in_force"]["problems"] == {}
        assert len(done["in_force"]["gateways"]) == 1
        assert served.gateway.in_force(route) == number
    assert operator.done("POST", f"{path}/rollback?wait=20", {"why": "worse"})["live"] == 1
    assert served.gateway.in_force(route) == 1
    assert operator.done("POST", f"{path}/disable?wait=20")["enabled"] is False
    assert operator.done("POST", f"{path}/enable?wait=20", {})["enabled"] is True
    admin.done("POST", f"{path}/versions/2/retire", {"why": "bad"})
    gateways = operator.done("GET", f"{V1}/gateways")
    assert gateways["wanted"][route] == served.gateway.engine_name(route, 1)
    assert operator.done("GET", f"{path}/versions/2")["stage"] == "retired"

    trail = operator.done("GET", f"{V1}/events?after={before}")["events"]
    mine = [(one["kind"], one["actor"], one["why"]) for one in trail if one["route"] == route]
    assert mine == [
        ("route_changed", "key:the-operator", None),
        ("promoted", "key:the-operator", "a test"),
        ("promoted", "key:the-operator", "a test"),
        ("rolled_back", "key:the-operator", "worse"),
        ("disabled", "key:the-operator", None),
        ("enabled", "key:the-operator", None),
        ("retired", "key:the-admin", "bad"),
    ]
    assert operator.done("GET", f"{path}/events?after={before}")["events"] == [
        one for one in trail if one["route"] == route
    ]


def test_the_audit_trail_is_read_page_by_page_and_nothing_is_missed(operator: Person, served: Served) -> None:
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        page = operator.done("GET", f"{V1}/events?after={after}&limit=3")
        found += [event["serial"] for event in page["events"]]
        after = page["next"]
    assert found == [event.serial for event in served.gateway.registry.events()]


def test_keys_are_made_changed_and_revoked_and_the_secret_is_told_once(
    admin: Person, client: httpx.Client, served: Served
) -> None:
    wanted = {"name": "shop", "role": "inference", "routes": ["sql"], "limits": {"requests_per_minute": 60}}
    made = admin.done("POST", f"{V1}/keys?wait=20", wanted, idempotency_key="make-shop")
    assert status_with(client, made["secret"]) == 200
    again = admin.done("POST", f"{V1}/keys", wanted, idempotency_key="make-shop")
    assert again == {**{name: value for name, value in made.items() if name != "in_force"}, "secret": None}
    assert made["secret"] not in json.dumps(admin.done("GET", f"{V1}/keys"))
    changed = admin.done("PATCH", f"{V1}/keys/shop", {"limits": {"max_concurrent": 2}})
    assert changed["limits"] == {"requests_per_minute": 60, "tokens_per_minute": None, "max_concurrent": 2}
    assert changed["routes"] == ["sql"]
    assert admin.done("PATCH", f"{V1}/keys/shop", {"routes": None})["routes"] is None
    admin.done("POST", f"{V1}/keys/shop/revoke?wait=20", {"why": "gone"})
    assert status_with(client, made["secret"]) == 401
    kept = [one for one in keys_of(served.gateway.registry) if one.name == "shop"]
    assert len(kept) == 1
    database = b"".join(file.read_bytes() for file in served.gateway.home.folder.glob("registry.db*"))
    assert made["secret"].encode() not in database


def test_texts_are_added_taken_back_corrected_and_forgotten(operator: Person, admin: Person, route: str) -> None:
    path = f"{V1}/routes/{route}"
    added = operator.done("POST", f"{path}/examples?wait=20", {"texts": ["one", "two", "two"]})
    assert (added["added"], added["in_force"]["problems"]) == (2, {})
    assert operator.done("POST", f"{path}/examples/remove", {"texts": ["one"]})["removed"] == 1
    assert operator.done("GET", f"{path}/examples")["examples"] == [{"text": "two"}]
    asked = operator.ask("POST", "/v1/feedback", {"route": route, "text": "three"})
    assert asked.status_code == 202
    waiting = [one for one in operator.done("GET", f"{V1}/corrections")["corrections"] if one["route"] == route]
    assert [one["text"] for one in waiting] == ["three"]
    accepted = operator.done("POST", f"{V1}/corrections/accept?wait=20", {"ids": [waiting[0]["id"]]})
    assert (accepted["added"], accepted["in_force"]["problems"]) == (1, {})
    assert operator.done("POST", f"{V1}/corrections", {"route": route, "texts": ["four"]})["added"] == 1
    acting = operator.done("GET", f"{V1}/corrections?state=in_force")["corrections"]
    assert {one["text"] for one in acting if one["route"] == route} == {"three", "four"}
    require_error(operator.ask("POST", f"{V1}/corrections/accept", {"ids": [1], "all": True}), 400, None)
    counts = admin.done("POST", f"{path}/forget", {"why": "asked to"})
    assert (counts["examples"], counts["corrections"], counts["bytes_remain"]) == (1, 2, False)
    assert operator.done("GET", f"{path}/examples")["examples"] == []


def test_examples_that_would_take_those_of_another_route_are_refused_without_quoting_them(
    operator: Person, served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"c{served.gateway.registry.serial()}-{end}" for end in "ab"]
    taken = [f"list order number {number} of my shop" for number in range(12)]
    for name, examples in zip(names, (taken, []), strict=True):
        operator.done("POST", f"{V1}/routes", {"name": name, "examples": examples})
    path = f"{V1}/routes/{names[1]}/examples"
    refused = operator.ask("POST", path, {"texts": taken})
    assert "would lose" in require_error(refused, 409, "refused")["message"]
    assert "of my shop" not in refused.text + "".join(capfd.readouterr())
    assert operator.done("POST", path, {"texts": taken, "force": "a test"})["added"] == len(taken)


def test_a_folder_is_published_with_its_evidence_and_passes_the_gate(
    operator: Person, admin: Person, served: Served, stock: Stock
) -> None:
    name = f"p{served.gateway.registry.serial()}"
    operator.done("POST", f"{V1}/routes", {"name": name})
    evidence = json.loads(make_evidence(weights_digest(stock.folders[2]), stock.base.fingerprint).to_json())
    path = f"{V1}/routes/{name}/versions"
    published = admin.done("POST", path, {"folder": str(stock.folders[2])})
    assert (published["number"], published["created"], published["evidence"]) == (1, True, [])
    assert admin.done("POST", path, {"folder": stock.folders[2].name})["created"] is False
    bad = json.loads(make_evidence("0" * 64, stock.base.fingerprint).to_json())
    require_error(admin.ask("POST", f"{path}/1/evidence", bad), 409, "refused")
    require_error(admin.ask("POST", f"{path}/1/evidence", {"schema": 1}), 400, "bad_input")
    digest = admin.done("POST", f"{path}/1/evidence", evidence)["digest"]
    assert operator.done("GET", f"{path}/1")["evidence"] == [digest]
    assert operator.done("GET", path)["versions"][0]["stage"] == "published"
    assert operator.done("POST", f"{V1}/routes/{name}/promote", {"version": 1})["unmet"] == []
    require_error(admin.ask("POST", path, {"folder": str(served.gateway.home.folder)}), 403, "folder_not_allowed")


def test_what_cannot_be_read_is_refused_by_name_and_nothing_is_done(operator: Person, served: Served) -> None:
    serial = served.gateway.registry.serial()
    path = f"{V1}/routes/sql"
    for method, where, document, param in (
        ("POST", f"{path}/promote", {}, "version"),
        ("POST", f"{path}/promote", {"version": "1"}, "version"),
        ("POST", f"{path}/promote", {"version": True}, "version"),
        ("POST", f"{path}/promote", {"version": 2, "forse": "x"}, "forse"),
        ("POST", f"{path}/promote", {"version": 2, "force": " "}, "force"),
        ("POST", f"{path}/disable?wait=never", {}, "wait"),
        ("POST", f"{path}/disable?wait=31", {}, "wait"),
        ("POST", f"{path}/disable?why=x", {}, "why"),
        ("PATCH", path, {"policy": {"min_items": [1]}}, None),
        ("GET", f"{V1}/events?limit=0", None, "limit"),
    ):
        error = require_error(operator.ask(method, where, document), 400, None) if param else None
        if error is None:
            assert operator.ask(method, where, document).status_code == 400
        else:
            assert error["param"] == param
    require_error(operator.ask("PATCH", path, {"policy": {"no_such_key": 1}}), 400, "invalid_name")
    require_error(operator.ask("POST", f"{path}/disable", {"why": "a\0b"}), 400, None)
    require_error(operator.ask("POST", f"{V1}/routes/No/disable", {}), 400, "invalid_name")
    require_error(operator.ask("GET", f"{V1}/routes/nobody"), 404, "not_found")
    require_error(operator.ask("GET", f"{path}/versions/0"), 404, "not_found")
    require_error(operator.ask("GET", f"{path}/versions/99"), 404, "not_found")
    require_error(operator.ask("PUT", path, {}), 405, "method_not_allowed")
    require_error(operator.ask("POST", f"{path}/disable", {}, idempotency_key="x" * 201), 400, None)
    assert served.gateway.registry.serial() == serial


def test_a_registry_that_is_locked_refuses_operators_and_disturbs_no_request(
    stock: Stock, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.admin_api.desk.BUSY_TIMEOUT_MS", 200)
    home = stock.copy(tmp_path_factory.mktemp("locked") / "home")
    with Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", OWN_KEY), lora_folders=()) as served:
        owner, other = Person(served.url, OWN_KEY), Person(served.url, OWN_KEY)
        with owner.client, other.client, ThreadPoolExecutor(1) as thread:
            owner.done("POST", f"{V1}/routes/sql/disable", {})
            with served.gateway.registry.transaction():
                asked = thread.submit(owner.ask, "POST", f"{V1}/routes/sql/enable", {}, idempotency_key="a")
                assert other.ask("POST", "/v1/chat/completions", body("tiny")).status_code == 200
                refused = asked.result()
            error = require_error(refused, 503, "registry_unavailable")
            assert error["message"] == "the registry cannot be used now"
            assert owner.done("POST", f"{V1}/routes/sql/enable", {}, idempotency_key="a")["enabled"] is True


def test_a_change_that_was_made_is_answered_as_made_although_nobody_can_see_whether_it_is_in_force(
    operator: Person, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise RegistryUnavailable("the disk of db.internal is gone", hint="")

    monkeypatch.setattr("router.admin_api.surface.wait_in_force", unavailable)
    done = operator.done("POST", f"{V1}/routes/{route}/disable?wait=0.1", {})
    assert done["enabled"] is False
    assert done["in_force"]["problems"] == {"registry": "the registry cannot be used now"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"admin_port": 70000}, "admin-port is 70000"),
        ({"admin_port": 8000}, "--admin-port is --port"),
        ({"admin_host": "127.0.0.1"}, "--admin-host needs --admin-port"),
        ({"admin_host": "10.0.0.1", "admin_port": 1}, "--admin-host is open beyond this machine"),
        ({"lora_folders": [Path("/nowhere/at-all")]}, "--lora-folder 'at-all' is no folder"),
    ],
)
def test_flags_for_operators_that_cannot_be_are_refused(given: dict[str, Any], problem: str, tmp_path: Path) -> None:
    engine = {"backend": "echo", "base": "tiny"}
    with pytest.raises(ConfigInvalid, match=problem):
        read_settings(Home.at(tmp_path), {}, host="127.0.0.1", port=8000, engine=engine, **given)
