"""The whole loop with the official client: a real server process, a real engine, every operator step by command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.classifier_rows import routes_rows
from tests.gateway_process import GatewayProcess, branchline, serving
from tests.tiny_model import make_adapter, make_base

PROMPTS = {
    "sql": "select the name of users where age is over 30",
    "booking": "please book a table for 4 people tomorrow at 7",
    "regex": "lines with digits before commas at least 3 times",
}
# Versions published per route; booking's three are promoted one after the other, of sql only the first.
VERSIONS = {"sql": 2, "regex": 1, "booking": 3}
LONG_STREAM_TOKENS = 4000


@dataclass(frozen=True, slots=True)
class World:
    home: Path
    base: Path
    engine_names: dict[str, str]

    def run(self, *words: str, expect: int = 0) -> str:
        return branchline(*words, home=self.home, expect=expect)

    def serve_words(self) -> tuple[str, ...]:
        return ("--backend", "embedded", "--base", str(self.base))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Routes, versions and a classifier, all made by command."""
    root = tmp_path_factory.mktemp("world")
    home, base = root / "home", make_base(root / "tiny")
    seed = 0
    for route, count in VERSIONS.items():
        examples = root / f"{route}.jsonl"
        rows = [json.dumps({"text": row.text}) for row in routes_rows(12) if row.label == route]
        examples.write_text("\n".join(rows) + "\n", encoding="utf-8")
        branchline("route", "create", route, "--examples", str(examples), home=home)
        for _ in range(count):
            seed += 1
            folder = make_adapter(base, root / f"adapter-{seed}", seed=seed)
            branchline("adapter", "add", route, str(folder), "--base", str(base), home=home)
    for version in ("sql@1", "regex@1", "booking@1", "booking@2", "booking@3"):
        branchline("route", "promote", version, "--force", "random weights have no evidence", home=home)
    branchline("classifier", "fit", "--promote", home=home)
    versions = json.loads(branchline("adapter", "list", "--json", home=home))
    return World(home, base, {one["version"]: one["engine_name"] for one in versions})


@pytest.fixture(scope="module")
def gateway(world: World) -> Iterator[GatewayProcess]:
    with serving(world.home, *world.serve_words()) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with connect(gateway) as connected:
        yield connected


def connect(gateway: GatewayProcess) -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=120)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its text, the model it names, and the `x-branchline-` headers without their prefix."""

    text: str
    model: str
    headers: dict[str, str]


def ask(client: OpenAI, model: str, text: str = "the quick brown fox") -> Said:
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=12
    )
    answer = raw.parse()
    return Said(str(answer.choices[0].message.content), answer.model, told(dict(raw.headers)))


def told(headers: dict[str, str]) -> dict[str, str]:
    prefix = "x-branchline-"
    return {name.removeprefix(prefix): value for name, value in headers.items() if name.startswith(prefix)}


@pytest.mark.parametrize("route", ["sql", "booking", "regex"])
def test_auto_takes_the_branch_that_the_text_belongs_to(client: OpenAI, world: World, route: str) -> None:
    said = ask(client, "auto", PROMPTS[route])
    version = {"sql": 1, "regex": 1, "booking": 3}[route]
    assert said.model == world.engine_names[f"{route}@{version}"]
    assert said.headers["route"] == route
    assert said.headers["version"] == str(version)
    assert (said.headers["stage"], said.headers["reason"]) == ("live", "classified")
    assert 0 < float(said.headers["confidence"]) <= 1
    assert said.text == ask(client, route, PROMPTS[route]).text != ask(client, "tiny", PROMPTS[route]).text


def test_auto_stays_on_the_base_for_a_text_that_belongs_nowhere(client: OpenAI) -> None:
    said = ask(client, "auto", "写一首关于秋天的诗")
    assert said.model == "tiny"
    assert (said.headers["stage"], said.headers["reason"]) == ("base", "abstained")


def test_the_base_and_every_live_adapter_answer_differently(client: OpenAI) -> None:
    texts = [ask(client, model).text for model in ("tiny", "sql", "regex", "booking")]
    assert len(set(texts)) == len(texts)


def test_a_route_a_version_and_an_engine_name_reach_the_same_version(client: OpenAI, world: World) -> None:
    name = world.engine_names["sql@1"]
    said = [ask(client, model) for model in ("sql", "sql@1", name)]
    assert {one.model for one in said} == {name}
    assert len({one.text for one in said}) == 1
    assert [one.headers["stage"] for one in said] == ["live", "pinned", "pinned"]


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI, world: World) -> None:
    chunks = list(
        client.chat.completions.create(
            model="sql",
            messages=[{"role": "user", "content": "the quick brown fox"}],
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ask(client, "sql").text
    assert {chunk.model for chunk in chunks} == {world.engine_names["sql@1"]}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_completions_are_served_too(client: OpenAI, world: World) -> None:
    answer = client.completions.create(model="sql", prompt="the quick brown fox", temperature=0, max_tokens=8)
    assert answer.model == world.engine_names["sql@1"]
    assert answer.choices[0].text


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, "gpt-9")
    assert refused.value.code == "model_not_found"


def test_a_version_that_was_never_live_is_not_permitted(client: OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        ask(client, "sql@2")
    assert refused.value.code == "not_permitted"


def test_the_model_list_shows_the_base_first_then_auto_then_live_routes(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()][:3] == ["tiny", "auto", "booking"]


def test_disable_lets_a_running_stream_finish_and_sends_the_next_request_to_the_base(
    client: OpenAI, gateway: GatewayProcess, world: World
) -> None:
    ended = finished(gateway, "regex", "live")
    stream = client.chat.completions.create(
        model="regex",
        messages=[{"role": "user", "content": "go on"}],
        temperature=0,
        max_tokens=LONG_STREAM_TOKENS,
        stream=True,
    )
    first = next(stream)
    printed = world.run("route", "disable", "regex", "--why", "a test")
    assert "in force on 1 of 1 gateways" in printed
    after = ask(client, "regex")
    assert finished(gateway, "regex", "live") == ended, "the stream was over before it could be disturbed"
    assert (after.model, after.headers["stage"], after.headers["reason"]) == ("tiny", "base", "route_disabled")
    assert after.headers["route"] == "regex"
    with pytest.raises(openai.ConflictError) as refused:
        ask(client, "regex@1")
    assert refused.value.code == "route_disabled"
    rest = list(stream)
    assert {chunk.model for chunk in [first, *rest]} == {world.engine_names["regex@1"]}
    assert rest[-1].choices[0].finish_reason == "length"
    assert "in force on 1 of 1 gateways" in world.run("route", "enable", "regex")
    assert ask(client, "regex").model == world.engine_names["regex@1"]


def test_rollback_goes_back_a_version_each_time_and_twice_is_two_back(client: OpenAI, world: World) -> None:
    said = [ask(client, "booking")]
    for _ in range(2):
        assert "in force on 1 of 1 gateways" in world.run("route", "rollback", "booking")
        said.append(ask(client, "booking"))
    assert [one.model for one in said] == [world.engine_names[f"booking@{number}"] for number in (3, 2, 1)]
    assert len({one.text for one in said}) == 3
    refused = world.run("route", "rollback", "booking", expect=1)
    assert "route disable booking" in refused
    for number in (2, 3):
        world.run("route", "promote", f"booking@{number}", "--force", "back to where the test began")
    assert ask(client, "booking").text == said[0].text


def test_a_gateway_started_later_on_the_same_registry_serves_what_is_there_and_both_follow_it(
    client: OpenAI, gateway: GatewayProcess, world: World
) -> None:
    models = ("sql", "booking", "regex", "tiny")
    before = [ask(client, model) for model in models]
    with (
        serving(world.home, *world.serve_words(), "--allow-unreleased") as second,
        connect(second) as other,
    ):
        assert [(one.text, one.model) for one in (ask(other, model) for model in models)] == [
            (one.text, one.model) for one in before
        ]
        assert ask(other, "auto", PROMPTS["sql"]).headers["reason"] == "classified"
        unreleased = ask(other, "sql@2")
        assert (unreleased.model, unreleased.headers["stage"]) == (world.engine_names["sql@2"], "pinned")
        assert unreleased.text != before[0].text
        assert "in force on 2 of 2 gateways" in world.run("route", "disable", "sql")
        assert [ask(each, "sql").model for each in (client, other)] == ["tiny", "tiny"]
        assert "in force on 2 of 2 gateways" in world.run("route", "enable", "sql")
        gateways = json.loads(world.run("route", "show", "sql", "--json"))["gateways"]
        assert [one["in_force"] for one in gateways.values()] == [world.engine_names["sql@1"]] * 2
    assert "in force on 1 of 1 gateways" in world.run("route", "disable", "sql")
    world.run("route", "enable", "sql")


def finished(gateway: GatewayProcess, route: str, stage: str) -> int:
    """How many answers of a route the gateway has ended."""
    lines = httpx.get(f"{gateway.url}/metrics").text.splitlines()
    labels = f'branchline_requests_total{{outcome="ok",reason="pinned",route="{route}",stage="{stage}"}}'
    found: Any = [line.rpartition(" ")[2] for line in lines if line.startswith(labels)]
    return int(float(found[0])) if found else 0
