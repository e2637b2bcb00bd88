"""Keys at the gateway's door, over a real socket: who is let in, for what, how much, and from when on no more."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest

from adapters.classifiers import promote_classifier
from adapters.feedback import Choice, waiting_feedback
from adapters.keyring import NewKey, create_key, revoke_key
from adapters.keys import KeyLimits, Role
from router.auth import Gatekeeper
from router.errors import EngineFailed
from tests.gateway_parts import DEADLINE, Served, Stock, make_stock
from tests.test_router_app import Body, body, require_error

TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # made once: each client would load all certificates for its own
OWN_KEY = "k-0123456789abcdef"
CHAT = "/v1/chat/completions"
TIGHT = KeyLimits(requests_per_minute=2, tokens_per_minute=1_000_000, max_concurrent=5)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=3)


@pytest.fixture(scope="module")
def served(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway that has a key of its own, and whose registry gets keys as the tests make them."""
    gatekeeper = Gatekeeper.for_bind("127.0.0.1", OWN_KEY)
    home = stock.copy(tmp_path_factory.mktemp("served") / "home")
    with Served(home, stock.base, gatekeeper, live=[("sql", 1), ("regex", 1)]) as served:
        promote_classifier(served.gateway.registry, 1)
        served.until(lambda: served.gateway.catalog.classifier is not None, "the classifier")
        yield served


class Door:
    """Makes keys and asks with them."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.made = 0

    def key(self, role: Role = "inference", limits: KeyLimits | None = None, routes: list[str] | None = None) -> NewKey:
        """A new key that the gateway knows."""
        self.made += 1
        registry = self.served.gateway.registry
        key = create_key(registry, f"key-{self.made}-{registry.serial()}", role, limits=limits, routes=routes)
        self.follow(key.event.serial)
        return key

    def follow(self, serial: int) -> None:
        self.served.until(lambda: self.served.gateway.catalog.snapshot.serial >= serial, f"serial {serial}")

    @contextmanager
    def asking(self, secret: str | None) -> Iterator[httpx.Client]:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=self.served.url, timeout=DEADLINE, headers=headers, verify=TLS) as client:
            yield client

    def tokens(self, key: NewKey) -> int:
        """What was counted of the key so far."""
        uses = self.served.limits.uses
        return sum(one.tokens_counted for one in uses if one.name == key.key.name)

    def raw(self, key: NewKey, document: Body, *, length: int | None = None) -> socket.socket:
        """A connection on which a chat request was sent, its declared length `length`."""
        content = json.dumps(document).encode()
        connection = socket.create_connection(("127.0.0.1", self.served.port), timeout=DEADLINE)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {key.secret}\r\ncontent-length: {length or len(content)}\r\n\r\n"
        )
        connection.sendall(head.encode() + content)
        return connection

    def running(self, key: NewKey) -> int:
        limits = self.served.limits
        return sum(use.running for use in limits.uses if use.name == key.key.name)


@pytest.fixture
def door(served: Served) -> Iterator[Door]:
    yield Door(served)
    served.obey()
    served.until(lambda: served.engine.running == 0, "an idle engine")


def counted(client: httpx.Client, line: str) -> float:
    page = client.get("/metrics")
    assert page.status_code == 200
    return sum(float(one.rpartition(" ")[2]) for one in page.text.splitlines() if one.startswith(line))


# -- who -------------------------------------------------------------------------------------------------------------


def test_a_key_of_the_registry_is_let_in_and_so_is_the_servers_own(door: Door) -> None:
    for secret in (door.key().secret, OWN_KEY):
        with door.asking(secret) as client:
            assert client.post(CHAT, json=body("sql")).status_code == 200


@pytest.mark.parametrize("change", ["none", "id", "last", "cut", "case", "scheme"])
def test_nobody_is_let_in_without_a_key_that_is_whole(door: Door, change: str) -> None:
    secret = door.key().secret
    head, key_id, rest = secret.split("-", 2)
    wrong = {
        "none": None,
        "id": f"{head}-{'0' * 12}-{rest}",
        "last": secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        "cut": f"{head}-{key_id}-",
        "case": f"{head}-{key_id}-{rest.swapcase()}",
        "scheme": None,
    }[change]
    with door.asking(wrong) as client:
        headers = {"authorization": f"Basic {secret}"} if change == "scheme" else {}
        response = client.post(CHAT, json=body("sql"), headers=headers)
        error = require_error(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert secret not in json.dumps(error)


def test_a_revoked_key_is_refused_from_the_next_poll_on_and_its_running_answer_ends_as_it_would(door: Door) -> None:
    key = door.key()
    door.served.engine.pause_before = 1
    with door.asking(key.secret) as client:
        with client.stream("POST", CHAT, json=body("sql", stream=True)) as answer:
            door.follow(revoke_key(door.served.gateway.registry, key.key.id).event.serial)
            with door.asking(key.secret) as other:
                require_error(other.post(CHAT, json=body("sql")), 401, "invalid_api_key")
            door.served.obey()
            assert answer.read().endswith(b"data: [DONE]\n\n")
        require_error(client.get("/v1/models"), 401, "invalid_api_key")


def test_a_server_without_keys_asks_for_one_from_the_first_on_and_also_when_the_last_is_revoked(
    stock: Stock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = stock.copy(tmp_path_factory.mktemp("open") / "home")
    with Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", None)) as served:
        door = Door(served)
        with door.asking(None) as client:
            assert client.get("/v1/models").status_code == 200
            assert client.get("/metrics").status_code == 200
            assert client.get("/admin/v1/engines").status_code == 200
            key = door.key()
            require_error(client.get("/v1/models"), 401, "invalid_api_key")
            door.follow(revoke_key(served.gateway.registry, key.key.name).event.serial)
            require_error(client.get("/v1/models"), 401, "invalid_api_key")
            assert client.get("/ready").status_code == 200


# -- for what --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "status"), [("inference", 403), ("operator", 200), ("admin", 200)])
@pytest.mark.parametrize("path", ["/metrics", "/admin/v1/engines"])
def test_only_operators_see_metrics_and_engines(door: Door, role: Role, status: int, path: str) -> None:
    with door.asking(door.key(role).secret) as client:
        response = client.get(path)
        assert response.status_code == status
        if status == 403:
            require_error(response, 403, "not_permitted")


@pytest.mark.parametrize(("role", "told"), [(None, False), ("inference", False), ("operator", True), ("admin", True)])
def test_only_operators_are_told_which_routes_are_not_as_wanted(door: Door, role: Role | None, told: bool) -> None:
    with door.asking("no key at all" if role is None else door.key(role).secret) as client:
        response = client.get("/ready")
        assert response.status_code == 200
        assert {"ready", "engines", "registry_stale_seconds"} <= set(response.json())
        assert ("problems" in response.json(), "warming" in response.json()) == (told, told)


def test_an_engine_is_drained_by_operators_alone(door: Door) -> None:
    (engine,) = [one.name for one in door.served.gateway.engine.engines]
    with door.asking(door.key("inference").secret) as client:
        for act in ("drain", "resume"):
            require_error(client.post(f"/admin/v1/engines/{engine}/{act}"), 403, "not_permitted")


@pytest.mark.parametrize(("role", "status"), [("inference", 403), ("operator", 200), ("admin", 200)])
def test_only_operators_reach_a_version_that_was_never_live(door: Door, role: Role, status: int) -> None:
    with door.asking(door.key(role).secret) as client:
        response = client.post(CHAT, json=body("sql@3"))
        assert response.status_code == status
        if status == 403:
            assert "operator key" in require_error(response, 403, "not_permitted")["message"]


def test_a_key_reaches_the_routes_it_was_made_for_and_the_base(door: Door) -> None:
    with door.asking(door.key(routes=["regex"]).secret) as client:
        for model in ("regex", "regex@1", door.served.gateway.engine_name("regex", 1), door.served.engine.base_id):
            assert client.post(CHAT, json=body(model)).status_code == 200, model
        for model in ("sql", "sql@1", "sql@9", door.served.gateway.engine_name("sql", 1), "nowhere"):
            error = require_error(client.post(CHAT, json=body(model)), 403, "not_permitted")
            assert error["param"] == "model"


def test_an_auto_request_for_a_route_that_is_not_the_keys_is_answered_by_the_base_and_told_nothing_of_it(
    door: Door,
) -> None:
    with door.asking(door.key(routes=["regex"]).secret) as client:
        response = client.post(CHAT, json=body())
        assert response.json()["model"] == door.served.engine.base_id
        assert (response.headers["x-branchline-reason"], response.headers["x-branchline-stage"]) == (
            "not_permitted",
            "base",
        )
        assert "x-branchline-route" not in response.headers
    with door.asking(OWN_KEY) as client:
        assert counted(client, 'branchline_requests_total{outcome="ok",reason="not_permitted",route="sql"') >= 1


def test_the_model_list_shows_a_key_what_it_may_use(door: Door) -> None:
    def listed(secret: str) -> list[str]:
        with door.asking(secret) as client:
            return [card["id"] for card in client.get("/v1/models").json()["data"]]

    base = door.served.engine.base_id
    assert listed(door.key(routes=["regex"]).secret) == [base, "auto", "regex"]
    assert listed(door.key().secret) == [base, "auto", "regex", "sql"]


# -- how much --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_tells_what_is_left_and_the_one_too_many_when_to_come_again(door: Door, stream: bool) -> None:
    key = door.key(limits=TIGHT)
    with door.asking(key.secret) as client:
        for left in ("1", "0"):
            response = client.post(CHAT, json=body("sql", stream=stream))
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "2"
            assert response.headers["x-ratelimit-remaining-requests"] == left
            assert response.headers["x-ratelimit-reset-requests"]
            assert int(response.headers["x-ratelimit-remaining-tokens"]) <= 1_000_000
        response = client.post(CHAT, json=body("sql", stream=stream))
        error = require_error(response, 429, "rate_limit_exceeded")
        assert error["type"] == "rate_limit_error"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert 1 <= int(response.headers["retry-after-ms"]) <= 30_000
    with door.asking(OWN_KEY) as client:
        assert counted(client, f'branchline_key_limited_total{{key="{key.key.name}",limit="requests"}}') == 1
        assert counted(client, f'branchline_key_requests_total{{key="{key.key.name}"}}') == 2


def test_an_answer_that_is_an_error_tells_what_is_left_too_and_takes_no_tokens(door: Door) -> None:
    with door.asking(door.key(limits=TIGHT).secret) as client:
        response = client.post(CHAT, content=b"{", headers={"content-type": "application/json"})
        require_error(response, 400, None)
        assert response.headers["x-ratelimit-remaining-requests"] == "1"
        assert response.headers["x-ratelimit-remaining-tokens"] == "1000000"


def test_an_answer_that_nobody_foresaw_tells_what_is_left_too(door: Door) -> None:
    door.served.engine.break_at, door.served.engine.breaks_with = 0, RuntimeError("unforeseen")
    with door.asking(door.key(limits=TIGHT).secret) as client:
        response = client.post(CHAT, json=body("sql"))
        require_error(response, 500, "internal_error")
        assert response.headers["x-ratelimit-remaining-requests"] == "1"
    door.served.engine.breaks_with = EngineFailed("the engine died")


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_answer_took_counts_against_the_tokens_of_the_next(door: Door, stream: bool) -> None:
    key = door.key(limits=KeyLimits(tokens_per_minute=2))
    with door.asking(key.secret) as client:
        assert client.post(CHAT, json=body("sql", stream=stream)).status_code == 200
        response = client.post(CHAT, json=body("sql", stream=stream))
        require_error(response, 429, "rate_limit_exceeded")
        assert response.headers["x-ratelimit-remaining-tokens"] == "0"
    with door.asking(OWN_KEY) as client:
        assert counted(client, f'branchline_key_tokens_total{{key="{key.key.name}"}}') > 2


@pytest.mark.parametrize("stream", [False, True])
def test_one_request_too_many_at_a_time_is_refused_until_another_has_been_answered(door: Door, stream: bool) -> None:
    key = door.key(limits=KeyLimits(max_concurrent=1))
    door.served.engine.pause_before = 1
    with door.asking(key.secret) as client, closing(door.raw(key, body("sql", stream=stream))) as running:
        door.served.until(lambda: door.running(key) == 1, "a running request")
        response = client.post(CHAT, json=body("sql"))
        require_error(response, 429, "rate_limit_exceeded")
        assert response.headers["retry-after"] == "1"
        door.served.obey()
        assert running.recv(10_000).startswith(b"HTTP/1.1 200")
        door.served.until(lambda: door.running(key) == 0, "a place")
        assert client.post(CHAT, json=body("sql")).status_code == 200


@pytest.mark.parametrize(
    ("when", "stream"),
    [
        ("while it sends", False),
        ("before the engine answers", False),
        ("before the engine answers", True),
        ("before the first byte", False),
        ("before the first byte", True),
        ("in the midst of it", True),
    ],
)
def test_a_client_that_leaves_gives_its_place_back(door: Door, when: str, stream: bool) -> None:
    key = door.key(limits=KeyLimits(max_concurrent=1))
    engine = door.served.engine
    engine.hold_open = when == "before the engine answers"
    engine.pause_before = 0 if when == "before the first byte" else 2
    length = 100_000 if when == "while it sends" else None
    with closing(door.raw(key, body("sql", stream=stream), length=length)) as connection:
        if when == "in the midst of it":
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
        elif when != "while it sends":
            door.served.until(lambda: engine.opening + engine.running == 1, "a request at the engine")
        door.served.until(lambda: door.running(key) == 1, "a request that was let in")
    door.served.until(lambda: door.running(key) == 0, "its place")
    engine_read_it = when != "while it sends"
    assert (door.tokens(key) > 0) is engine_read_it


@pytest.mark.parametrize(("stream", "break_at"), [(False, 0), (True, 0), (True, 2)])
def test_an_engine_that_fails_gives_the_place_back(door: Door, stream: bool, break_at: int) -> None:
    key = door.key(limits=KeyLimits(max_concurrent=1))
    for _ in range(2):
        door.served.engine.break_at = break_at
        with door.asking(key.secret) as client:
            assert b"engine_failed" in client.post(CHAT, json=body("sql", stream=stream)).content
    door.served.until(lambda: door.running(key) == 0, "its place")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model":"nowhere","messages":[]}'])
def test_a_request_that_is_refused_gives_its_place_back(door: Door, content: bytes) -> None:
    key = door.key(limits=KeyLimits(max_concurrent=1))
    with door.asking(key.secret) as client:
        for _ in range(2):
            response = client.post(CHAT, content=content, headers={"content-type": "application/json"})
            assert response.status_code in (400, 404)


def test_a_key_that_is_at_its_limit_is_no_other_keys_concern(door: Door) -> None:
    first, second = door.key(limits=KeyLimits(1)), door.key(limits=KeyLimits(1))
    for key in (first, second):
        with door.asking(key.secret) as client:
            assert client.post(CHAT, json=body("sql")).status_code == 200
            require_error(client.post(CHAT, json=body("sql")), 429, "rate_limit_exceeded")
            assert client.get("/v1/models").status_code == 200  # it takes no engine


# -- what keys propose -----------------------------------------------------------------------------------------------


def test_feedback_comes_from_the_key_whatever_it_calls_itself(door: Door) -> None:
    key = door.key(routes=["sql"])
    with door.asking(key.secret) as client:
        for text, more in (("first of a key", {}), ("second of a key", {"user": "operator"})):
            document = {"route": "sql", "text": text, **more}
            assert client.post("/v1/feedback", json=document).status_code == 202
        require_error(client.post("/v1/feedback", json={"route": "regex", "text": "x"}), 403, "not_permitted")
    own = f"key:{key.key.name}"
    found = waiting_feedback(door.served.gateway.registry, Choice(source=own))
    assert [one.source for one in found] == [own, f"{own}/operator"]
