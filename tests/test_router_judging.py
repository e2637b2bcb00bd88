"""A gateway's judge: exemplars are in force as the registry has them, and what cannot be built replaces nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import router.judging
from adapters.classifiers import promote_classifier, publish_classifier
from adapters.corrections import correct
from adapters.decisions import day_files
from adapters.examples import add_examples
from adapters.exemplars import exemplars_of
from adapters.forget import forget_texts
from adapters.home import Home
from adapters.rows import text_digest
from router.classify.artifact import save_classifier
from router.classify.classifier import Classifier
from router.classify.encoding import Encoder, EncoderRef
from router.classify.fit import fit_classifier
from router.classify.loader import load_classifier
from router.classify.memory import Memory
from router.decision_log import DecisionLog
from router.errors import EncoderUnavailable
from router.judging import no_encoder
from router.types import Decision
from tests.classifier_rows import Meanings, routes_rows
from tests.gateway_parts import Gateway, Stock, classifier_versions, client_request, make_stock, running

OIL = "how often should i change the oil of my car"
TABLE = "select the name of users where age is over 30"
Scenario = Callable[[Gateway], Awaitable[None]]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=1, routes=("sql", "oil"))


@pytest.fixture
def home(stock: Stock, tmp_path: Path) -> Home:
    return stock.copy(tmp_path / "home")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router.judging, "RETRY_SECONDS", 0.02)


def with_gateway(home: Home, stock: Stock, scenario: Scenario, *, decision_log: DecisionLog | None = None) -> None:
    async def run() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("oil", 1)], decision_log=decision_log) as gateway:
            await scenario(gateway)

    asyncio.run(run())


async def asked(gateway: Gateway, text: str) -> Decision:
    answer = await gateway.dispatcher.answer(client_request("auto", text), "r-1")
    async for _ in answer.reply.body:
        pass
    return answer.decision


async def caught_up(gateway: Gateway) -> None:
    """Wait until the exemplars as the registry has them now are in force."""
    digest = exemplars_of(gateway.registry).digest
    await gateway.until(lambda: gateway.catalog.snapshot.exemplars_digest == digest, "the exemplars")


def test_a_route_is_routable_by_its_first_example_before_any_classifier(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        assert (await asked(gateway, OIL)).reason == "no_classifier"
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await caught_up(gateway)
        found = await asked(gateway, "how often do i change the oil of my car?")
        assert (found.route, found.version, found.reason, found.stage) == ("oil", 1, "classified", "live")
        assert (found.exemplar, found.exemplars_digest) == (text_digest(OIL), exemplars_of(gateway.registry).digest)
        assert (await asked(gateway, "tell me a joke")).reason == "abstained"

    with_gateway(home, stock, scenario)


def test_a_new_route_and_a_correction_act_beside_the_classifier_in_force(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        promote_classifier(gateway.registry, 2)
        await gateway.until(lambda: gateway.catalog.classifier is not None, "the classifier")
        assert (await asked(gateway, TABLE)).route == "sql"
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        correct(gateway.registry, "base", [TABLE])
        await caught_up(gateway)
        assert (await asked(gateway, OIL)).route == "oil"
        corrected = await asked(gateway, TABLE)
        assert (corrected.stage, corrected.reason, corrected.exemplar) == ("base", "abstained", text_digest(TABLE))
        assert corrected.classifier_digest == gateway.catalog.snapshot.classifier_digest is not None

    with_gateway(home, stock, scenario)


def test_what_is_forgotten_is_out_of_the_memory_in_force(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        add_examples(gateway.registry, "sql", [TABLE], source="operator")
        await caught_up(gateway)
        assert (await asked(gateway, OIL)).route == "oil"
        forget_texts(gateway.registry, "oil")
        await caught_up(gateway)
        memory = gateway.catalog.judge.memory
        assert {entry.label for entry in memory.entries} == {"sql"}
        assert set(memory.terms) == {text_digest(TABLE)}
        assert (await asked(gateway, OIL)).reason == "abstained"

    with_gateway(home, stock, scenario)


def test_a_route_that_memory_chose_obeys_disable_and_retire(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await caught_up(gateway)
        await gateway.applied(gateway.registry.disable("oil").event.serial)
        found = await asked(gateway, OIL)
        assert (found.stage, found.reason, found.exemplar) == ("base", "route_disabled", text_digest(OIL))
        await gateway.applied(gateway.registry.enable("oil").event.serial)
        await gateway.applied(gateway.registry.retire("oil", 1).event.serial)
        assert (await asked(gateway, OIL)).reason == "no_live_version"

    with_gateway(home, stock, scenario)


def test_the_decision_log_names_the_exemplar_by_digest_and_never_its_text(
    home: Home, stock: Stock, tmp_path: Path
) -> None:
    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await caught_up(gateway)
        await asked(gateway, OIL)

    with_gateway(home, stock, scenario, decision_log=DecisionLog(tmp_path / "decisions.jsonl"))
    (line,) = (tmp_path / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["exemplar"] == text_digest(OIL)
    assert "change the oil" not in line


def test_the_text_that_is_kept_is_that_of_the_turn_that_decided(home: Home, stock: Stock, tmp_path: Path) -> None:
    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await caught_up(gateway)
        for turns in ((OIL, "thanks"), ("thanks", OIL), ("thanks", "tell me a joke")):
            request = replace(client_request("auto"), texts=turns)
            async for _ in (await gateway.dispatcher.answer(request, "r-1")).reply.body:
                pass

    with_gateway(home, stock, scenario, decision_log=DecisionLog(tmp_path / "decisions.jsonl", text=True))
    (kept,) = day_files(tmp_path / "decisions.jsonl").values()
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == [OIL, OIL, "thanks"]


def test_a_memory_that_cannot_be_built_leaves_the_old_judge_says_so_and_is_tried_again(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Memory.build

    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await caught_up(gateway)
        monkeypatch.setattr(Memory, "build", broken)
        add_examples(gateway.registry, "sql", [TABLE], source="operator")
        await gateway.until(lambda: gateway.catalog.classifier_problem is not None, "the problem")
        assert "secret" not in str(gateway.catalog.classifier_problem)
        assert (await asked(gateway, OIL)).route == "oil"
        monkeypatch.setattr(Memory, "build", build)
        await caught_up(gateway)
        assert gateway.catalog.classifier_problem is None
        assert (await asked(gateway, TABLE)).route == "sql"

    def broken(*_: object, **__: object) -> Memory:
        raise RuntimeError("secret")

    with_gateway(home, stock, scenario)


def test_exemplars_are_followed_also_while_the_wanted_classifier_cannot_be_read(home: Home, stock: Stock) -> None:
    second = classifier_versions(home)[1]

    async def scenario(gateway: Gateway) -> None:
        promote_classifier(gateway.registry, 1)
        await gateway.until(lambda: gateway.catalog.classifier is not None, "the classifier")
        (gateway.store.classifier_folder(second.digest) / "weights.npy").unlink()
        promote_classifier(gateway.registry, 2)
        await gateway.until(lambda: gateway.catalog.classifier_problem is not None, "the problem")
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await caught_up(gateway)
        assert (await asked(gateway, OIL)).route == "oil"
        assert (await asked(gateway, TABLE)).route == "sql"
        assert gateway.catalog.classifier_problem is not None

    with_gateway(home, stock, scenario)


def test_a_classifier_whose_encoder_is_missing_replaces_nothing_until_the_encoder_is_there(
    home: Home, stock: Stock, tmp_path: Path
) -> None:
    given: list[Encoder] = []

    def find(ref: EncoderRef | None) -> Encoder | None:
        return given[0] if given else no_encoder(ref)

    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        fitted = fit_classifier(routes_rows(10), encoder=Meanings())
        save_classifier(fitted, tmp_path / "encoded")
        version = publish_classifier(
            gateway.registry, gateway.store, tmp_path / "encoded", digest=fitted.digest, summary=fitted.summary
        )
        promote_classifier(gateway.registry, version.number)
        await gateway.until(lambda: "encoder" in str(gateway.catalog.classifier_problem), "the problem")
        assert (await asked(gateway, OIL)).route == "oil"
        given.append(Meanings())
        await gateway.until(lambda: gateway.catalog.classifier is not None, "the classifier")
        assert gateway.catalog.classifier_problem is None
        assert (await asked(gateway, TABLE)).route == "sql"
        assert set(gateway.catalog.judge.memory.vectors) == set(gateway.catalog.judge.memory.terms) != set()

    async def run() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("oil", 1)], find_encoder=find) as gateway:
            await scenario(gateway)

    asyncio.run(run())


def test_an_encoder_that_only_memory_would_use_keeps_no_classifier_out(home: Home, stock: Stock) -> None:
    def broken(ref: EncoderRef | None) -> Encoder | None:
        raise EncoderUnavailable("it cannot be exported")

    async def run() -> None:
        async with running(home, stock.base, live=[("sql", 1)], find_encoder=broken) as gateway:
            promote_classifier(gateway.registry, 1)
            await gateway.until(lambda: gateway.catalog.classifier is not None, "the classifier")
            assert gateway.catalog.classifier_problem == "it cannot be exported"
            assert (await asked(gateway, TABLE)).route == "sql"

    asyncio.run(run())


def test_the_old_judge_answers_while_a_new_one_is_built_and_changes_meanwhile_share_the_next_build(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, begun, second = threading.Event(), threading.Event(), classifier_versions(home)[1]
    built: list[Memory] = []
    build = Memory.build

    def counted(*exemplars: Any, **options: Any) -> Memory:
        built.append(build(*exemplars, **options))
        return built[-1]

    def read(folder: Path, digest: str) -> Classifier:
        if digest == second.digest:
            begun.set()
            held.wait()
        return load_classifier(folder, digest=digest)

    async def run() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("oil", 1)], read_classifier=read) as gateway:
            try:
                await scenario(gateway)
            finally:
                held.set()

    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await caught_up(gateway)
        promote_classifier(gateway.registry, 2)
        await gateway.until(begun.is_set, "the slow read")
        assert "the classifier" in gateway.catalog.warming
        for number in range(5):
            added = add_examples(gateway.registry, "sql", [f"{TABLE} and {number}"], source="operator")
            await gateway.applied(added.event.serial)
        assert (await asked(gateway, OIL)).route == "oil"
        before = gateway.catalog.snapshot.exemplars_digest
        monkeypatch.setattr(Memory, "build", counted)
        held.set()
        await gateway.catalog.settled()
        assert gateway.catalog.snapshot.exemplars_digest == exemplars_of(gateway.registry).digest != before
        assert gateway.catalog.snapshot.classifier_digest == second.digest
        assert gateway.catalog.warming == []
        assert len(built) == 2  # the one that was under way, and one for all five changes

    asyncio.run(run())
