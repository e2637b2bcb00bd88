"""The whole loop on the real engine: `serve --backend vllm`, the official client, every operator step by command."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from adapters.base import find_base
from adapters.manifests import weights_digest
from tests.adapter_folders import make_evidence
from tests.gateway_process import GatewayProcess, branchline, serving
from tests.tiny_model import make_adapter
from tests.vllm_engine import POCKET_BASE, needs_vllm, vllm_python

pytestmark = needs_vllm
QUESTION = "Show the owner of the ship where the color is amber."
SERVE = ("--backend", "vllm", "--base", str(POCKET_BASE), "--dtype", "float32", "--max-model-len", "1024")
# Ranks of the versions. sql@3 comes with a trainer's record of another adapter; regex@2 is over the engine's rank.
RANKS = {"sql": (4, 8, 4), "regex": (2, 32)}


@dataclass(frozen=True, slots=True)
class World:
    home: Path
    engine_names: dict[str, str]

    def run(self, *words: str, expect: int = 0) -> str:
        return branchline(*words, home=self.home, expect=expect)

    def show(self, route: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.run("route", "show", route, "--json"))
        return shown


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two routes with their versions, sql@1 and regex@1 live."""
    root = tmp_path_factory.mktemp("world")
    home = root / "home"
    for route, ranks in RANKS.items():
        examples = root / f"{route}.jsonl"
        examples.write_text("".join(json.dumps({"text": f"{route} example {n}"}) + "\n" for n in range(12)))
        branchline("route", "create", route, "--examples", str(examples), home=home)
        for number, rank in enumerate(ranks, 1):
            folder = make_adapter(POCKET_BASE, root / f"{route}-{number}", seed=10 * rank + number, rank=rank)
            branchline("adapter", "add", route, str(folder), "--base", str(POCKET_BASE), home=home)
            if (route, number) == ("sql", 3):
                evidence = root / "foreign.json"
                evidence.write_text(foreign_evidence(folder))
                branchline("adapter", "evidence", "sql@3", str(evidence), home=home)
        branchline("route", "promote", f"{route}@1", "--force", "random weights have no evidence", home=home)
    versions = json.loads(branchline("adapter", "list", "--json", home=home))
    return World(home, {one["version"]: one["engine_name"] for one in versions})


def foreign_evidence(folder: Path) -> str:
    """Evidence for these weights whose recorded answers are not theirs: the same token, ever surer."""
    prompt = {
        "messages": [{"role": "user", "content": QUESTION}],
        "prompt_tokens": [3, 921, 225, 912, 1, 4],
        "tokens": [7] * 8,
        "logprobs": [-0.001] * 8,
        "base_logprobs": [-9.0] * 8,
    }
    base = find_base(str(POCKET_BASE))
    probe = {"dtype": "float32", "prompts": [prompt] * 4}
    return make_evidence(weights_digest(folder), base.fingerprint, probe=probe).to_json()


@pytest.fixture(scope="module")
def gateway(world: World) -> Iterator[GatewayProcess]:
    variables = {"BRANCHLINE_VLLM_PYTHON": str(vllm_python()), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with serving(world.home, *SERVE, "--max-lora-rank", "16", variables=variables) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=120) as connected:
        yield connected


def ask(client: OpenAI, model: str, **body: Any) -> Any:
    messages: Any = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(
        model=model, messages=messages, **{"max_tokens": 12, "temperature": 0, **body}
    )


def said(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def test_each_model_name_is_answered_by_what_it_names(world: World, client: OpenAI) -> None:
    answers = {model: ask(client, model) for model in ("base", "sql", "sql@1", "regex")}
    assert answers["sql"].model == answers["sql@1"].model == world.engine_names["sql@1"]
    assert answers["regex"].model == world.engine_names["regex@1"]
    assert answers["base"].model == "base"
    assert said(answers["sql"]) == said(answers["sql@1"])
    assert len({said(answers[model]) for model in ("base", "sql", "regex")}) == 3


def test_a_stream_says_what_the_whole_answer_says_and_counts_the_same(client: OpenAI) -> None:
    whole = ask(client, "sql")
    events = list(ask(client, "sql", stream=True, stream_options={"include_usage": True}))
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == said(whole)
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_what_vllm_supports_reaches_it(client: OpenAI) -> None:
    several = ask(client, "sql", n=2, temperature=1.0, seed=5, logprobs=True, top_logprobs=3)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert len(several.choices[0].logprobs.content[0].top_logprobs) >= 3
    form = {"type": "json_schema", "json_schema": {"name": "color", "schema": {"enum": ["amber", "green"]}}}
    assert json.loads(said(ask(client, "sql", response_format=form, logit_bias={"5": -1}))) in ("amber", "green")
    stopped = ask(client, "sql", stop=[said(ask(client, "sql"))[3:5]])
    assert stopped.choices[0].finish_reason == "stop"


def test_responses_are_served_stateless(world: World, client: OpenAI) -> None:
    answer = client.responses.create(model="sql", input=QUESTION, max_output_tokens=12, temperature=0)
    assert answer.model == world.engine_names["sql@1"]
    assert answer.output_text == said(ask(client, "sql"))
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="sql", input=QUESTION, previous_response_id=answer.id)
    assert refused.value.code == "unsupported_parameter"
    events = list(
        client.responses.create(model="sql", input=QUESTION, max_output_tokens=12, temperature=0, stream=True)
    )
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_completions_and_tokenize_are_routed_too(world: World, gateway: GatewayProcess, client: OpenAI) -> None:
    done = client.completions.create(model="regex", prompt="lines that", max_tokens=4, temperature=0)
    assert done.model == world.engine_names["regex@1"]
    body = {"model": "sql", "messages": [{"role": "user", "content": QUESTION}]}
    answer = httpx.post(f"{gateway.url}/tokenize", json=body)
    assert answer.headers["x-branchline-route"] == "sql"
    assert answer.json()["count"] == ask(client, "sql").usage.prompt_tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_logprobs": 1},
        {"echo": True, "logprobs": True},
        {"kv_transfer_params": {}},
        {"priority": -5},
        {"vllm_xargs": {"a": 1}},
        {"request_id": "x"},
        {"mm_processor_kwargs": {"a": 1}},
        {"media_io_kwargs": {"image": {}}},
        {"logprob_token_ids": [1], "logprobs": True},
    ],
    ids=repr,
)
def test_a_field_that_can_hurt_others_is_refused_under_load_and_the_engine_lives(
    client: OpenAI, fields: dict[str, Any]
) -> None:
    with ask(client, "sql", stream=True, max_tokens=100, extra_body={"ignore_eos": True}) as running:
        pieces = iter(running)
        next(pieces)
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, "regex", extra_body=fields)
        assert refused.value.code == "unsupported_parameter"
        finish = [event.choices[0].finish_reason for event in pieces][-1]
    assert finish == "length"


def test_a_version_that_is_not_what_was_trained_never_becomes_live(
    world: World, gateway: GatewayProcess, client: OpenAI
) -> None:
    announced = world.run("route", "promote", "sql@3", "--force", "a test")
    assert "in force on 0 of 1 gateways" in announced
    gateway.wait_for("sql@3 could not be brought in: .*does not answer as the version that was trained")
    assert ask(client, "sql").model == world.engine_names["sql@1"]
    (seen,) = world.show("sql")["gateways"].values()
    assert seen["in_force"] == world.engine_names["sql@1"]
    assert "does not answer as the version that was trained" in seen["problem"]
    metrics = httpx.get(f"{gateway.url}/metrics").text
    assert 'branchline_adapter_loads_total{outcome="not_applied",route="sql"}' in metrics
    assert "in force on 1 of 1 gateways" in world.run("route", "rollback", "sql")


def test_a_rank_over_the_engines_is_one_clear_line_and_the_old_version_stays(world: World, client: OpenAI) -> None:
    world.run("route", "promote", "regex@2", "--force", "a test")
    (seen,) = world.show("regex")["gateways"].values()
    assert seen["in_force"] == world.engine_names["regex@1"]
    assert "rank 32" in seen["problem"]
    assert "16" in seen["problem"]
    assert ask(client, "regex").model == world.engine_names["regex@1"]
    world.run("route", "rollback", "regex")


def test_promote_rollback_and_disable_act_on_one_route_alone(world: World, client: OpenAI) -> None:
    assert "in force on 1 of 1 gateways" in world.run("route", "promote", "sql@2", "--force", "a test")
    assert ask(client, "sql").model == world.engine_names["sql@2"]
    assert "in force on 1 of 1 gateways" in world.run("route", "rollback", "sql")
    assert ask(client, "sql").model == world.engine_names["sql@1"]
    assert "in force on 1 of 1 gateways" in world.run("route", "disable", "sql")
    assert ask(client, "sql").model == "base"
    assert ask(client, "regex").model == world.engine_names["regex@1"]
    assert "in force on 1 of 1 gateways" in world.run("route", "enable", "sql")


def test_the_fleet_and_its_engine_are_on_show(world: World, gateway: GatewayProcess) -> None:
    (engine,) = engines(gateway)
    assert (engine["state"], engine["restarts"]) == ("up", 0)
    assert world.show("sql")["base_unverified"] == []


def test_an_engine_that_is_killed_comes_back_with_what_was_in_force(
    world: World, gateway: GatewayProcess, client: OpenAI
) -> None:
    os.kill(engine_process(gateway), signal.SIGKILL)
    gateway.wait_for("starting it again")
    with pytest.raises(openai.InternalServerError) as refused:
        ask(client, "sql")
    assert refused.value.code == "engine_unavailable"
    told = len(gateway.lines)
    for route in ("sql", "regex"):
        gateway.wait_for(f"vllm applies {world.engine_names[f'{route}@1']}", after=told)
    assert ask(client, "sql").model == world.engine_names["sql@1"]
    (engine,) = engines(gateway)
    assert (engine["state"], engine["restarts"]) == ("up", 1)


def engines(gateway: GatewayProcess) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = httpx.get(f"{gateway.url}/admin/v1/engines").json()["engines"]
    return listed


def engine_process(gateway: GatewayProcess) -> int:
    """The gateway's vLLM API server: the process below it that was started as one."""
    known = {gateway.process.pid}
    for status in sorted(Path("/proc").glob("[0-9]*/status"), key=lambda path: int(path.parent.name)):
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if int(fields["PPid"]) in known:
            known.add(int(fields["Pid"]))
            words = (status.parent / "cmdline").read_bytes().split(b"\0")
            if b"vllm.entrypoints.launchers.api_server.entry" in words and words[0].endswith(b"python"):
                return int(fields["Pid"])
    raise AssertionError("no vLLM below the gateway")
