"""The admin API and the command line are one: whatever sequence of calls, both leave the same registry.

`STEPS` random operations in `RUNS` runs, each done with both, on two copies of one home; after each step everything
that both have is compared, and that either both did it or both refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapters.cli import adapter
from adapters.cli_keys import key
from adapters.cli_route import route
from adapters.corrections import corrections_in_force
from adapters.examples import examples_of
from adapters.feedback import queue_feedback, waiting_feedback
from adapters.home import Home
from adapters.keyring import create_key, keys_of
from adapters.registry import Registry
from router.auth import Gatekeeper
from router.classifier_cli.group import classifier
from tests.admin_client import OWN_KEY, V1, Person, person
from tests.gateway_parts import Served, make_stock

RUNS = 10
STEPS = 10
ROUTES = ("sql", "regex", "new")
TEXTS = ("list all orders", "match an ip address", "what time is it", "sum the sales")
Body = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One operation, as a command and as a request."""

    group: click.Group
    words: tuple[str, ...]
    method: str
    path: str
    body: Body


def named(name: str, *words: str, body: Body | None = None, why: str | None = None) -> Step:
    """`route NAME-OF-COMMAND` and the request that does the same."""
    said = () if why is None else ("--why", why)
    document = {**(body or {}), **({} if why is None else {"why": why})}
    return Step(route, (name, *words, *said), "POST", f"{V1}/routes/{words[0]}/{name}", document)


names = st.sampled_from(ROUTES)
numbers = st.integers(1, 3)
reasons = st.none() | st.sampled_from(["broken", "größer"])
texts = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=2, unique=True)
keys = st.sampled_from(["shop", "ci"])
limits = st.none() | st.integers(1, 5)


@st.composite
def routes_steps(draw: st.DrawFn) -> Step:
    name, number, why = draw(names), draw(numbers), draw(reasons)
    kind = draw(st.sampled_from(["create", "promote", "rollback", "disable", "enable", "set", "retire"]))
    if kind == "create":
        return Step(
            route, ("create", name, "--description", "d"), "POST", f"{V1}/routes", {"name": name, "description": "d"}
        )
    if kind == "promote":
        forced = () if why is None else ("--force", why)
        body = {"version": number, **({} if why is None else {"force": why})}
        return Step(
            route, ("promote", f"{name}@{number}", *forced, "--no-wait"), "POST", f"{V1}/routes/{name}/promote", body
        )
    if kind == "rollback":
        to = draw(st.none() | numbers)
        words = () if to is None else ("--to", str(to))
        return named("rollback", name, *words, "--no-wait", body={} if to is None else {"to": to}, why=why)
    if kind == "set":
        value = draw(st.sampled_from(["5", "x", ""]))
        policy = {"min_items": {"5": 5, "x": "x", "": None}[value]}
        return Step(route, ("set", name, f"min_items={value}"), "PATCH", f"{V1}/routes/{name}", {"policy": policy})
    if kind == "retire":
        said = () if why is None else ("--why", why)
        path = f"{V1}/routes/{name}/versions/{number}/retire"
        return Step(
            adapter,
            ("retire", f"{name}@{number}", *said, "--no-wait"),
            "POST",
            path,
            {} if why is None else {"why": why},
        )
    return named(kind, name, "--no-wait", why=why)


@st.composite
def texts_steps(draw: st.DrawFn) -> Step:
    name, chosen = draw(names), draw(texts)
    label = draw(st.sampled_from([name, "base"]))
    options = [word for text in chosen for word in ("--text", text)]
    kind = draw(st.sampled_from(["add", "remove", "correct", "accept", "reject", "forget"]))
    if kind == "add":
        forced = {"texts": chosen, "force": "x"}
        words = ("examples", "add", name, *options, "--force", "x")
        return Step(route, words, "POST", f"{V1}/routes/{name}/examples", forced)
    if kind == "remove":
        words = ("examples", "remove", name, *options)
        return Step(route, words, "POST", f"{V1}/routes/{name}/examples/remove", {"texts": chosen})
    if kind == "correct":
        body = {"route": label, "texts": chosen}
        return Step(route, ("correct", label, *options, "--no-wait"), "POST", f"{V1}/corrections", body)
    if kind == "forget":
        return Step(route, ("forget", label), "POST", f"{V1}/routes/{label}/forget", {})
    number = draw(st.integers(1, 4))
    words = ("corrections", kind, str(number), *(("--no-wait",) if kind == "accept" else ()))
    return Step(route, words, "POST", f"{V1}/corrections/{kind}", {"ids": [number]})


@st.composite
def other_steps(draw: st.DrawFn) -> Step:
    name, number, limit, why = draw(keys), draw(numbers), draw(limits), draw(reasons)
    kind = draw(st.sampled_from(["create", "set", "revoke", "promote", "rollback"]))
    said = () if why is None else ("--why", why)
    body: Body = {} if why is None else {"why": why}
    if kind == "promote":
        forced = () if why is None else ("--force", why)
        body = {} if why is None else {"force": why}
        path = f"{V1}/classifiers/{number}/promote"
        return Step(classifier, ("promote", str(number), *forced), "POST", path, body)
    if kind == "rollback":
        return Step(classifier, ("rollback", *said), "POST", f"{V1}/classifiers/rollback", body)
    if kind == "revoke":
        return Step(key, ("revoke", name, *said, "--no-wait"), "POST", f"{V1}/keys/{name}/revoke", body)
    given = "none" if limit is None else str(limit)
    limited = {"limits": {"max_concurrent": limit}}
    words = (name, "--max-concurrent", given, "--route", "sql", *said, "--no-wait")
    body |= {**limited, "routes": ["sql"]}
    if kind == "set":
        return Step(key, ("set", *words), "PATCH", f"{V1}/keys/{name}", body)
    return Step(
        key,
        ("create", *words, "--role", "inference"),
        "POST",
        f"{V1}/keys",
        {"name": name, "role": "inference", **body},
    )


def everything(registry: Registry) -> Body:
    """All that a registry says, without times, ids and who did it."""
    secret = {"id", "source"}
    events = [
        (
            one.kind,
            one.route,
            one.number,
            one.why,
            {name: one.payload[name] for name in one.payload if name not in secret},
        )
        for one in registry.events()
    ]
    routes = registry.routes()
    waiting = [(one.id, one.label, one.text, one.times) for one in waiting_feedback(registry)]
    return {
        "events": events,
        "routes": routes,
        "examples": {one.name: examples_of(registry, one.name) for one in routes},
        "corrections": sorted((one.label, one.text) for one in corrections_in_force(registry)),
        "waiting": waiting,
        "classifier": registry.classifier_state(),
        "keys": [(one.name, one.role, one.routes, one.limits, one.revoked_at is None) for one in keys_of(registry)],
    }


class Both:
    """The two homes and what works on them."""

    def __init__(self, served: Served, admin: Person, home: Home) -> None:
        self.served = served
        self.admin = admin
        self.home = home
        self.beside = Registry.open(home.registry_url)
        self.done = 0

    def take(self, step: Step) -> None:
        response = self.admin.ask(step.method, step.path, step.body)
        words = [*step.words, "--home", str(self.home.folder)]
        result = CliRunner().invoke(step.group, words)
        assert response.status_code < 500, response.text
        assert (response.status_code < 400) == (result.exit_code == 0), (step, response.text, result.output)
        self.done += response.status_code < 400
        assert everything(self.served.gateway.registry) == everything(self.beside), step


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    stock = make_stock(tmp_path_factory.mktemp("stock"), versions=2)
    registry = Registry.open(Home.at(stock.home).registry_url)
    for text, label in zip(TEXTS, ("sql", "regex", "base", "sql"), strict=True):
        queue_feedback(registry, label, text, source="app")
    create_key(registry, "first", "inference")
    registry.close()
    served_home, home = (stock.copy(tmp_path_factory.mktemp(name) / "home") for name in ("api", "cli"))
    with (
        Served(served_home, stock.base, Gatekeeper.for_bind("127.0.0.1", OWN_KEY), lora_folders=()) as served,
        person(served, "admin", name="admin") as admin,
    ):
        made = Both(served, admin, home)
        create_key(made.beside, "admin", "admin")
        yield made
        made.beside.close()


def test_any_sequence_of_calls_leaves_what_the_same_commands_leave(both: Both) -> None:
    steps = st.one_of(routes_steps(), texts_steps(), other_steps())

    @settings(
        max_examples=RUNS,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(steps, min_size=STEPS, max_size=STEPS))
    def alike(run: Sequence[Step]) -> None:
        for step in run:
            both.take(step)

    alike()
    assert both.done > RUNS * STEPS // 5  # else it has compared refusals
    actors = {event.actor for event in both.served.gateway.registry.events()[-10:]}
    assert actors == {"key:admin"}
