"""Keys in the registry and on the command line: made, changed, revoked; their secrets told once and kept nowhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from adapters.cli_keys import key as key_group
from adapters.errors import AlreadyExists, BadInput, BranchlineError, InvalidName, NotFound
from adapters.fold import fold_keys
from adapters.keyring import NewKey, change_key, create_key, keys_of, revoke_key
from adapters.keys import MAX_LIMIT, ApiKey, KeyLimits, Role, key_id_of, new_key_id, new_secret, secret_digest
from adapters.records import event_row
from adapters.registry import Registry
from tests.adapter_folders import memory_folder
from tests.postgres_server import PostgresServer

ROUTES = ("sql", "regex")
Run = Callable[..., Result]


def filled(url: str) -> Registry:
    registry = Registry.open(url, actor="ann@host")
    for route in ROUTES:
        registry.create_route(route)
    return registry


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    registry = filled(f"sqlite:///{home / 'registry.db'}")
    yield registry
    registry.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, home: Path) -> Iterator[Registry]:
    """Each kind of database."""
    if request.param == "sqlite":
        registry = filled(f"sqlite:///{home / 'registry.db'}")
    else:
        server: PostgresServer = request.getfixturevalue("postgresql")
        registry = filled(server.new_database())
    yield registry
    registry.close()


@pytest.fixture
def run(home: Path) -> Run:
    """The `key` group on this home."""

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(key_group, [*words, "--home", str(home)])

    return invoke


def limited(requests: int | None = None, tokens: int | None = None, concurrent: int | None = None) -> KeyLimits:
    return KeyLimits(requests, tokens, concurrent)


# -- the registry ----------------------------------------------------------------------------------------------------


def test_a_key_is_what_it_was_made_as_and_then_what_it_was_changed_to(anywhere: Registry) -> None:
    made = create_key(anywhere, "app", "inference", routes=["sql"], limits=limited(60), why="the shop")
    assert keys_of(anywhere) == [made.key]
    assert (made.key.routes, made.key.limits, made.key.revoked_at) == (frozenset({"sql"}), limited(60), None)
    changed = change_key(anywhere, "app", lambda before: replace(before, routes=None, limits=limited(None, 5)))
    assert keys_of(anywhere) == [changed.key] == [replace(made.key, routes=None, limits=limited(None, 5))]
    revoked = revoke_key(anywhere, made.key.id, why="leaked")
    assert keys_of(anywhere) == [revoked.key] == [replace(changed.key, revoked_at=revoked.event.time)]
    history = [(event.kind, event.actor, event.why, event.route) for event in anywhere.events()[2:]]
    assert history == [
        ("key_created", "ann@host", "the shop", None),
        ("key_changed", "ann@host", None, None),
        ("key_revoked", "ann@host", "leaked", None),
    ]


def test_a_change_of_a_key_changes_neither_its_role_nor_its_name_nor_its_secret(registry: Registry) -> None:
    made = create_key(registry, "app", "inference")
    change_key(registry, "app", lambda before: replace(before, role="admin", name="root", digest="0" * 64, id="x"))
    (found,) = keys_of(registry)
    assert (found, found.digest) == (made.key, made.key.digest)


def test_a_gateway_learns_the_keys_that_changed_and_no_others(anywhere: Registry) -> None:
    first, second = create_key(anywhere, "first", "inference"), create_key(anywhere, "second", "operator")
    assert {one.id: one.digest for one in anywhere.view().keys} == {
        made.key.id: secret_digest(made.secret) for made in (first, second)
    }
    serial = anywhere.serial()
    anywhere.disable("sql")
    assert anywhere.view(after=serial).keys == ()
    revoked = revoke_key(anywhere, "first")
    assert anywhere.view(after=serial).keys == (revoked.key,)


def test_more_names_than_a_query_takes_are_all_in_the_view(anywhere: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        create_key(anywhere, f"key-{number}", "inference")
        anywhere.create_route(f"route-{number}")
    whole = anywhere.view()
    assert (len(whole.keys), len(whole.routes)) == (5, 5 + len(ROUTES))
    monkeypatch.setattr("adapters.view.MOST_NAMES", 2)
    found = anywhere.view()
    assert sorted(found.keys, key=lambda key: key.id) == sorted(whole.keys, key=lambda key: key.id)
    assert replace(found, keys=()) == replace(whole, keys=())


@pytest.mark.parametrize(
    "name", ["", "App", "1app", "a b", "a/b", "a\n", "é", "x" * 64, "owner", "anonymous", "other", "abcdefabcdef"]
)
def test_a_name_that_is_no_label_or_means_something_else_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidName):
        create_key(registry, name, "inference")
    assert keys_of(registry) == []


def test_a_name_is_one_keys_at_a_time_and_free_again_when_that_is_revoked(registry: Registry) -> None:
    first = create_key(registry, "app", "inference")
    with pytest.raises(AlreadyExists):
        create_key(registry, "app", "operator")
    revoke_key(registry, "app")
    second = create_key(registry, "app", "operator")
    assert [one.id for one in keys_of(registry) if one.revoked_at is None] == [second.key.id] != [first.key.id]


def test_a_revoked_key_is_neither_changed_nor_revoked_again(registry: Registry) -> None:
    made = create_key(registry, "app", "inference")
    revoke_key(registry, "app")
    for name in ("app", made.key.id, "nobody"):
        for act in (partial(revoke_key, registry, name), partial(change_key, registry, name, lambda before: before)):
            with pytest.raises(NotFound, match="is in force"):
                act()


def test_a_route_that_is_not_there_is_refused_with_all_that_are_not(registry: Registry) -> None:
    with pytest.raises(NotFound, match="no route nowhere, sqll"):
        create_key(registry, "app", "inference", routes=["sql", "sqll", "nowhere"])
    create_key(registry, "app", "inference", routes=["sql"])
    with pytest.raises(NotFound, match="no route sqll"):
        change_key(registry, "app", lambda before: replace(before, routes=frozenset({"sqll"})))
    assert [one.routes for one in keys_of(registry)] == [frozenset({"sql"})]


@pytest.mark.parametrize("limit", [0, -1, MAX_LIMIT + 1])
def test_a_limit_that_is_none_is_refused_with_every_one_that_is(limit: int) -> None:
    with pytest.raises(BadInput, match=f"requests_per_minute is {limit}, max_concurrent is {limit}"):
        KeyLimits(limit, 1, limit)


def test_of_operators_that_make_a_key_of_one_name_at_once_one_makes_it(anywhere: Registry) -> None:
    def attempt(number: int) -> str | None:
        try:
            return create_key(anywhere.acting_as(f"operator {number}"), "app", "inference").key.id
        except AlreadyExists:
            return None

    with ThreadPoolExecutor(4) as pool:
        made = [one for one in pool.map(attempt, range(4)) if one]
    assert [one.id for one in keys_of(anywhere)] == made
    assert len(made) == 1


def test_operators_that_change_one_key_at_once_lose_nothing_of_each_other(anywhere: Registry) -> None:
    create_key(anywhere, "app", "inference", limits=limited(1))

    def more(before: ApiKey) -> ApiKey:
        return replace(before, limits=limited((before.limits.requests_per_minute or 0) + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: change_key(anywhere, "app", more), range(8)))
    assert [one.limits for one in keys_of(anywhere)] == [limited(9)]


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_has_256_random_bits_and_names_its_key() -> None:
    key_id = new_key_id()
    secrets = {new_secret(key_id) for _ in range(1000)}
    assert len(secrets) == 1000
    assert all(re.fullmatch(rf"bl-{key_id}-[A-Za-z0-9_-]{{43}}", one) and key_id_of(one) == key_id for one in secrets)


@pytest.mark.parametrize("other", ["", "bl", "bl-", "bl-abc", "sk-abc-def", "k-0123456789abcdef"])
def test_what_is_no_secret_of_ours_names_no_key(other: str) -> None:
    assert key_id_of(other) is None


def test_a_secret_is_told_once_and_kept_nowhere(registry: Registry, home: Path) -> None:
    made = create_key(registry, "app", "inference", why="the shop")
    random = made.secret.rsplit(made.key.id + "-", 1)[1]
    change_key(registry, "app", lambda before: replace(before, limits=limited(1)))
    revoke_key(registry, "app")
    said = [repr(made), repr(keys_of(registry)), repr(registry.view()), *(repr(one) for one in registry.events())]
    said += [json.dumps(event_row(one)) for one in registry.events()]
    assert not [one for one in said if random in one]
    assert not [one for one in said if made.key.digest in one]  # and neither is what it is told by
    registry.close()
    assert not [file for file in home.rglob("*") if file.is_file() and random.encode() in file.read_bytes()]


# -- any order -------------------------------------------------------------------------------------------------------


class KeysMachine(RuleBasedStateMachine):
    """`book` holds each key ever made, by id; of the names in it those not revoked are unique."""

    names = st.sampled_from(["app", "shop", "ops"])
    routes = st.none() | st.lists(st.sampled_from([*ROUTES, "nowhere"]), max_size=2)
    limits = st.builds(KeyLimits, *[st.none() | st.integers(1, 100)] * 3)

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="keys-machine-", dir=memory_folder()))
        self.registry = filled(f"sqlite:///{self.root / 'registry.db'}")
        self.book: dict[str, ApiKey] = {}
        self.secrets: dict[str, str] = {}
        self.known: dict[str, ApiKey] = {}  # by a gateway that looks now and then
        self.seen = 0

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.root)

    def named(self, name: str) -> ApiKey | None:
        return next((one for one in self.book.values() if one.name == name and one.revoked_at is None), None)

    def attempt(self, act: Callable[[], object], refusal: type[BranchlineError] | None) -> object:
        found, refused = None, None
        try:
            found = act()
        except BranchlineError as error:
            refused = type(error)
        assert refused is refusal
        return found

    @rule(name=names, role=st.sampled_from(["inference", "operator", "admin"]), routes=routes, limits=limits)
    def create(self, name: str, role: Role, routes: list[str] | None, limits: KeyLimits) -> None:
        refusal = AlreadyExists if self.named(name) else NotFound if "nowhere" in (routes or ()) else None
        made = self.attempt(partial(create_key, self.registry, name, role, routes=routes, limits=limits), refusal)
        if isinstance(made, NewKey):
            allowed = None if routes is None else frozenset(routes)
            self.book[made.key.id] = ApiKey(made.key.id, name, role, allowed, limits, made.event.time)
            self.secrets[made.key.id] = made.secret

    @rule(name=names, by_id=st.booleans(), routes=routes, limits=limits)
    def change(self, name: str, by_id: bool, routes: list[str] | None, limits: KeyLimits) -> None:
        found = self.named(name)
        allowed = None if routes is None else frozenset(routes)
        refusal = NotFound if found is None or "nowhere" in (routes or ()) else None
        called = found.id if by_id and found else name
        act = partial(change_key, self.registry, called, lambda one: replace(one, routes=allowed, limits=limits))
        self.attempt(act, refusal)
        if found is not None and refusal is None:
            self.book[found.id] = replace(found, routes=allowed, limits=limits)

    @rule(name=names)
    def revoke(self, name: str) -> None:
        found = self.named(name)
        self.attempt(partial(revoke_key, self.registry, name), NotFound if found is None else None)
        if found is not None:
            self.book[found.id] = replace(found, revoked_at=self.registry.events()[-1].time)

    @rule()
    def look(self) -> None:
        """A gateway polls."""
        view = self.registry.view(after=self.seen)
        self.known |= {one.id: one for one in view.keys}
        self.seen = view.serial
        assert self.known == self.book

    @invariant()
    def the_book_holds(self) -> None:
        assert {one.id: one for one in keys_of(self.registry)} == self.book == fold_keys(self.registry.events())
        assert {one.id: one.digest for one in keys_of(self.registry)} == {
            known: secret_digest(secret) for known, secret in self.secrets.items()
        }


KeysMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestKeysMachine = KeysMachine.TestCase


# -- the command line ------------------------------------------------------------------------------------------------


def test_create_prints_the_secret_alone_and_says_the_rest_beside_it(run: Run, registry: Registry) -> None:
    done = run("create", "app", "--role", "inference", "--route", "sql", "--requests-per-minute", "60")
    (found,) = keys_of(registry)
    assert (found.name, found.role, found.routes, found.limits) == ("app", "inference", frozenset({"sql"}), limited(60))
    assert secret_digest(done.stdout.strip()) == found.digest
    assert "shown this once" in done.stderr
    assert "no gateway is running" in done.stderr


def test_create_as_json_holds_the_secret_and_no_digest(run: Run, registry: Registry) -> None:
    document = json.loads(run("create", "app", "--role", "admin", "--json").stdout)
    (found,) = keys_of(registry)
    assert secret_digest(document.pop("secret")) == found.digest
    assert document == {
        "id": found.id,
        "name": "app",
        "role": "admin",
        "routes": None,
        "limits": {"requests_per_minute": None, "tokens_per_minute": None, "max_concurrent": None},
        "created_at": found.created_at,
        "revoked_at": None,
    }


def test_the_list_shows_keys_in_force_and_with_revoked_all_of_them_and_never_a_secret(run: Run) -> None:
    secrets = [run("create", name, "--role", "inference").stdout.strip() for name in ("app", "shop")]
    run("revoke", "shop")
    assert [one["name"] for one in json.loads(run("list", "--json").stdout)] == ["app"]
    assert [one["name"] for one in json.loads(run("list", "--revoked", "--json").stdout)] == ["app", "shop"]
    for words in (["list", "--revoked"], ["list", "--revoked", "--json"]):
        said = run(*words).output
        assert not [one for one in secrets if one in said or secret_digest(one) in said]
    assert [line.split()[0] for line in run("list", "--revoked").stdout.splitlines()] == ["name", "app", "shop"]


def test_the_history_tells_who_did_what_when_and_why_and_no_secret(run: Run, registry: Registry) -> None:
    secret = run("create", "app", "--role", "inference", "--why", "the shop").stdout.strip()
    run("create", "ops", "--role", "operator")
    run("revoke", "app", "--why", "leaked")
    registry.disable("sql")
    events = json.loads(run("history", "--json").stdout)
    told = [(one["kind"], one["payload"]["name"], one["why"]) for one in events]
    assert told == [("key_created", "app", "the shop"), ("key_created", "ops", None), ("key_revoked", "app", "leaked")]
    assert all(one["actor"] and one["time"] for one in events)
    key_id = events[0]["payload"]["id"]
    assert run("history", "app").stdout == run("history", key_id).stdout
    assert [line.split()[2] for line in run("history", "app").stdout.splitlines()[1:]] == ["key_created", "key_revoked"]
    for said in (run("history").output, run("history", "--json").output):
        assert secret not in said
        assert secret_digest(secret) not in said


def test_set_changes_what_is_given_and_leaves_the_rest(run: Run, registry: Registry) -> None:
    run("create", "app", "--role", "inference", "--route", "sql", "--tokens-per-minute", "100")
    assert "key app changed (serial 4)" in run("set", "app", "--max-concurrent", "4").stdout
    (found,) = keys_of(registry)
    assert (found.routes, found.limits) == (frozenset({"sql"}), limited(None, 100, 4))
    run("set", "app", "--all-routes", "--tokens-per-minute", "none")
    (found,) = keys_of(registry)
    assert (found.routes, found.limits) == (None, limited(None, None, 4))
    run("set", found.id, "--route", "regex", "--route", "sql")
    assert keys_of(registry)[0].routes == frozenset({"sql", "regex"})


def test_revoke_says_where_it_is_in_force(run: Run) -> None:
    run("create", "app", "--role", "inference")
    assert run("revoke", "app").stdout == (
        "key app revoked (serial 2): no gateway is running; it takes effect when one starts\n"
    )
    assert isinstance(run("revoke", "app").exception, NotFound)


def test_the_commands_of_the_page_on_keys_run_one_after_another_as_they_stand(run: Run, registry: Registry) -> None:
    page = (Path(__file__).parents[1] / "docs" / "keys.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ branchline key (.*)$", page, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert run(*shlex.split(command)).exit_code == 0, command
    shop, ops = keys_of(registry)
    assert (shop.routes, shop.limits, bool(shop.revoked_at)) == (
        frozenset({"sql", "regex"}),
        limited(600, None, 16),
        True,
    )
    assert (ops.role, ops.routes, ops.revoked_at) == ("operator", None, None)


@pytest.mark.parametrize(
    "words",
    [
        ("create", "app"),
        ("create", "app", "--role", "root"),
        ("create", "app", "--role", "admin", "--requests-per-minute", "0"),
        ("set", "app"),
        ("set", "app", "--route", "sql", "--all-routes"),
        ("set", "app", "--max-concurrent", "some"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, words: tuple[str, ...]) -> None:
    run("create", "app", "--role", "inference")
    assert run(*words).exit_code == 2
