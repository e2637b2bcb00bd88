"""The admin API over a real socket: who may do what, what it does, and that it is done once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from adapters.keyring import create_key, keys_of
from adapters.keys import Role
from router.admin_api.operation import Operation
from router.admin_api.table import OPERATIONS, path_of
from router.auth import Gatekeeper
from tests.gateway_parts import DEADLINE, Served, Stock, make_stock
from tests.test_router_app import require_error

OWN_KEY = "k-0123456789abcdef"
ROLES: tuple[Role, ...] = ("inference", "operator", "admin")
V1 = "/admin/v1"


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
    made = {role: create_key(registry, f"the-{role}", role) for role in ROLES}
    made |= {f"{role}-of-regex": create_key(registry, f"{role}-of-regex", role, routes=["regex"]) for role in ROLES[1:]}
    served.until(lambda: served.gateway.catalog.snapshot.serial >= registry.serial(), "the keys")
    return {name: key.secret for name, key in made.items()}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=DEADLINE) as client:
        yield client


class Operator:
    """Somebody with a key."""

    def __init__(self, client: httpx.Client, secret: str) -> None:
        self._client = client
        self._headers = {"authorization": f"Bearer {secret}"}

    def ask(self, method: str, path: str, document: Any = None, **headers: str) -> httpx.Response:
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.request(method, path, json=document, headers={**self._headers, **said})

    def done(self, method: str, path: str, document: Any = None, **headers: str) -> dict[str, Any]:
        response = self.ask(method, path, document, **headers)
        assert response.status_code in (200, 201), response.text
        assert response.headers["x-request-id"]
        found: dict[str, Any] = response.json()
        return found


@pytest.fixture
def operator(client: httpx.Client, keys: dict[str, str]) -> Operator:
    return Operator(client, keys["operator"])


@pytest.fixture
def admin(client: httpx.Client, keys: dict[str, str]) -> Operator:
    return Operator(client, keys["admin"])


@pytest.fixture
def route(served: Served, request: pytest.FixtureRequest, stock: Stock) -> str:
    """A route of the test's own, with two published versions, none live."""
    from adapters.publish import publish_folder

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
        assert httpx.get(f"{served.url}/v1/models").status_code == 200
        assert httpx.get(f"{served.url}{V1}/engines").status_code == 200
        for operation in OPERATIONS:
            response = httpx.request(operation.method, f"{served.url}{concrete(operation)}")
            require_error(response, 401, "invalid_api_key")


def test_a_port_of_their_own_answers_operators_and_nobody_else(
    stock: Stock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = stock.copy(tmp_path_factory.mktemp("apart") / "home")
    gatekeeper = Gatekeeper.for_bind("127.0.0.1", OWN_KEY)
    headers = {"authorization": f"Bearer {OWN_KEY}"}
    with Served(home, stock.base, gatekeeper, lora_folders=(), admin_port=True) as served:
        for path in [*(concrete(one) for one in OPERATIONS), f"{V1}/engines", f"{V1}/nothing"]:
            spoofed = {**headers, "host": f"127.0.0.1:{served.admin_port}"}
            require_error(httpx.get(f"{served.url}{path}", headers=spoofed), 404, "unknown_url")
        assert httpx.get(f"{served.admin_url}{V1}/routes", headers=headers).status_code == 200
        assert httpx.get(f"{served.admin_url}{V1}/engines", headers=headers).status_code == 200
        require_error(httpx.get(f"{served.admin_url}/v1/models", headers=headers), 404, "unknown_url")
        refused = httpx.post(f"{served.admin_url}/v1/chat/completions", headers=headers, json={})
        require_error(refused, 404, "unknown_url")
        require_error(httpx.get(f"{served.admin_url}{V1}/routes"), 401, "invalid_api_key")
        for path in ("/health", "/ready"):
            assert httpx.get(f"{served.admin_url}{path}").status_code == httpx.get(f"{served.url}{path}").status_code


# -- what ------------------------------------------------------------------------------------------------------------


def test_a_day_of_an_operator_is_in_force_when_the_answer_says_so_and_in_the_audit_trail(
    operator: Operator, admin: Operator, served: Served, route: str
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


def test_the_audit_trail_is_read_page_by_page_and_nothing_is_missed(operator: Operator, served: Served) -> None:
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        page = operator.done("GET", f"{V1}/events?after={after}&limit=3")
        found += [event["serial"] for event in page["events"]]
        after = page["next"]
    assert found == [event.serial for event in served.gateway.registry.events()]


def test_keys_are_made_changed_and_revoked_and_the_secret_is_told_once(
    admin: Operator, client: httpx.Client, served: Served
) -> None:
    wanted = {"name": "shop", "role": "inference", "routes": ["sql"], "limits": {"requests_per_minute": 60}}
    made = admin.done("POST", f"{V1}/keys?wait=20", wanted, idempotency_key="make-shop")
    assert Operator(client, made["secret"]).ask("GET", "/v1/models").status_code == 200
    again = admin.done("POST", f"{V1}/keys", wanted, idempotency_key="make-shop")
    assert again == {**{name: value for name, value in made.items() if name != "in_force"}, "secret": None}
    assert made["secret"] not in json.dumps(admin.done("GET", f"{V1}/keys"))
    changed = admin.done("PATCH", f"{V1}/keys/shop", {"limits": {"max_concurrent": 2}})
    assert changed["limits"] == {"requests_per_minute": 60, "tokens_per_minute": None, "max_concurrent": 2}
    assert changed["routes"] == ["sql"]
    assert admin.done("PATCH", f"{V1}/keys/shop", {"routes": None})["routes"] is None
    admin.done("POST", f"{V1}/keys/shop/revoke?wait=20", {"why": "gone"})
    require_error(Operator(client, made["secret"]).ask("GET", "/v1/models"), 401, "invalid_api_key")
    kept = [one for one in keys_of(served.gateway.registry) if one.name == "shop"]
    assert len(kept) == 1
    database = b"".join(file.read_bytes() for file in served.gateway.home.folder.glob("registry.db*"))
    assert made["secret"].encode() not in database
