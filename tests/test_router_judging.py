"""A gateway's judge: exemplars are in force as the registry has them, and what cannot be built replaces nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import router.following.judging
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
from router.classify.features import Floats
from router.classify.fit import fit_classifier
from router.classify.judge import LONG, Judge
from router.classify.loader import load_classifier
from router.classify.memory import Memory
from router.daemon_thread import WORK
from router.decision_log import DecisionLog
from router.errors import EncoderUnavailable
from router.following.judge_building import BATCH_TEXTS, no_encoder
from router.following.judging import MAX_BUILDS
from router.types import Decision, Scores
from tests.classifier_rows import Meanings, routes_rows
from tests.gateway_parts import DEADLINE, Gateway, Stock, classifier_versions, client_request, make_stock, running

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
    monkeypatch.setattr(router.following.judging, "RETRY_SECONDS", 0.02)


def with_gateway(home: Home, stock: Stock, scenario: Scenario, **options: Any) -> None:
    async def run() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("oil", 1)], **options) as gateway:
            await scenario(gateway)

    asyncio.run(run())


async def asked(gateway: Gateway, text: str) -> Decision:
    answer = await gateway.dispatcher.answer(client_request("auto", text), "r-1")
    async for _ in answer.reply.body:
        pass
    return answer.decision


class Slow:
    """An encoder to which all texts are alike; it keeps what each batch was, and waits in it while it is `held`."""

    ref = EncoderRef("slow", "1" * 64, "fp32", 2, 128)

    def __init__(self, held: threading.Event | None = None) -> None:
        self.held = held
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> Floats:
        self.batches.append(list(texts))
        if self.held is not None:
            assert self.held.wait(DEADLINE)
        return np.tile(np.array([1, 0], dtype=np.float32), (len(texts), 1))


def publish_encoded(gateway: Gateway, folder: Path) -> int:
    """The number of a classifier that was fitted with `Meanings`."""
    fitted = fit_classifier(routes_rows(10), encoder=Meanings())
    save_classifier(fitted, folder / "encoded")
    return publish_classifier(
        gateway.registry, gateway.store, folder / "encoded", digest=fitted.digest, summary=fitted.summary
    ).number


def labels(gateway: Gateway) -> set[str]:
    return {entry.label for entry in gateway.catalog.judge.memory.entries}


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
        promote_classifier(gateway.registry, publish_encoded(gateway, tmp_path))
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


def test_beside_a_classifier_that_names_no_encoder_memory_reads_with_the_gateways_own_as_after_a_restart(
    home: Home, stock: Stock, tmp_path: Path
) -> None:
    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        promote_classifier(gateway.registry, publish_encoded(gateway, tmp_path))
        await gateway.until(lambda: gateway.catalog.classifier is not None, "the classifier with an encoder")
        assert gateway.catalog.judge.memory.encoder == Meanings.ref
        promote_classifier(gateway.registry, 1)
        await gateway.until(lambda: gateway.catalog.classifier.encoder is None, "the one without")  # type: ignore[union-attr]  # there is one
        assert gateway.catalog.judge.memory.encoder == Slow.ref

    with_gateway(home, stock, scenario, find_encoder=lambda ref: Meanings() if ref else Slow())


def test_a_stopped_gateway_has_stopped_the_encoders_it_replaced_too(home: Home, stock: Stock, tmp_path: Path) -> None:
    judges: list[Judge] = []

    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await caught_up(gateway)
        judges.append(gateway.catalog.judge)
        promote_classifier(gateway.registry, publish_encoded(gateway, tmp_path))
        await gateway.until(lambda: gateway.catalog.classifier is not None, "the classifier")
        judges.append(gateway.catalog.judge)
        assert judges[0].encoder is not judges[1].encoder

    with_gateway(home, stock, scenario, find_encoder=lambda ref: Meanings() if ref else Slow())
    for judge in judges:
        with pytest.raises(EncoderUnavailable, match="stopped"):
            asyncio.run(judge.encoder.encode([OIL]))  # type: ignore[union-attr]  # both have one


def test_a_gateway_does_not_wait_at_its_end_for_an_encoder_that_is_being_opened(home: Home, stock: Stock) -> None:
    begun, held, ended = threading.Event(), threading.Event(), threading.Event()

    def find(_: EncoderRef | None) -> Encoder | None:
        begun.set()
        held.wait(5)
        ended.set()
        return None

    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        await gateway.until(begun.is_set, "the opening")

    with_gateway(home, stock, scenario, find_encoder=find)
    assert not ended.is_set()
    held.set()


def test_a_stopped_gateway_encodes_no_further_batch(home: Home, stock: Stock) -> None:
    encoder = Slow(held=threading.Event())

    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [f"{OIL} {number}" for number in range(200)], source="operator")
        await gateway.until(lambda: bool(encoder.batches), "the first batch")

    with_gateway(home, stock, scenario, find_encoder=lambda _: encoder)
    assert encoder.held is not None
    encoder.held.set()
    for thread in threading.enumerate():
        if thread.name == WORK:
            thread.join(DEADLINE)
    assert [len(batch) for batch in encoder.batches] == [BATCH_TEXTS]


def test_builds_that_were_overtaken_do_not_pile_up_and_what_is_wanted_last_is_in_force(
    home: Home, stock: Stock
) -> None:
    first, second = classifier_versions(home)
    held, reads = threading.Event(), list[str]()

    def read(folder: Path, digest: str) -> Classifier:
        reads.append(digest)
        held.wait()
        return load_classifier(folder, digest=digest)

    async def scenario(gateway: Gateway) -> None:
        try:
            for change in (1, 2, 1, 2, 1, 2):
                await gateway.applied(promote_classifier(gateway.registry, change).serial)
            await gateway.until(lambda: len(reads) == MAX_BUILDS, "the reads")
        finally:
            held.set()
        await gateway.until(lambda: gateway.catalog.snapshot.classifier_digest == second.digest, "the second")
        await gateway.catalog.settled()
        assert gateway.catalog.snapshot.classifier_digest == second.digest
        assert reads == [first.digest, second.digest, second.digest]

    with_gateway(home, stock, scenario, read_classifier=read)


def test_what_is_forgotten_leaves_the_memory_in_force_while_a_build_runs_and_does_not_come_back_with_it(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, seen = Slow(), list[set[str]]()

    def noted(classifier: Classifier | None, memory: Memory, *encoders: Any) -> Judge:
        seen.append({entry.label for entry in memory.entries})
        return Judge(classifier, memory, *encoders)

    async def scenario(gateway: Gateway) -> None:
        add_examples(gateway.registry, "oil", [OIL], source="operator")
        add_examples(gateway.registry, "sql", [TABLE], source="operator")
        await caught_up(gateway)
        encoder.held = threading.Event()
        try:
            add_examples(gateway.registry, "sql", ["which users are over 30"], source="operator")
            await gateway.until(lambda: len(encoder.batches) == 2, "the build that takes long")
            forget_texts(gateway.registry, "oil")
            await gateway.until(lambda: labels(gateway) == {"sql"}, "memory without them")
            assert set(gateway.catalog.judge.memory.terms) == {text_digest(TABLE)}
            assert gateway.catalog.snapshot.exemplars_digest != exemplars_of(gateway.registry).digest
            assert gateway.catalog.warming == ["the exemplars"]
            monkeypatch.setattr(router.following.judging, "Judge", noted)
        finally:
            encoder.held.set()
        await caught_up(gateway)
        await gateway.catalog.settled()
        assert seen
        assert all(found == {"sql"} for found in seen)
        assert len(gateway.catalog.judge.memory.entries) == 2

    with_gateway(home, stock, scenario, find_encoder=lambda _: encoder)


def test_a_correction_acts_while_a_classifier_is_brought_in_and_stays_when_it_is_there(
    home: Home, stock: Stock, tmp_path: Path
) -> None:
    held, looking = threading.Event(), threading.Event()

    def find(ref: EncoderRef | None) -> Encoder | None:
        """The classifier's own encoder takes long: it is exported."""
        if ref is None:
            return None
        looking.set()
        assert held.wait(DEADLINE)
        return Meanings()

    async def scenario(gateway: Gateway) -> None:
        promote_classifier(gateway.registry, publish_encoded(gateway, tmp_path))
        await asyncio.to_thread(looking.wait, DEADLINE)
        try:
            add_examples(gateway.registry, "oil", [OIL], source="correction:operator")
            await gateway.until(lambda: labels(gateway) == {"oil"}, "the correction")
            assert (await asked(gateway, OIL)).route == "oil"
            assert gateway.catalog.warming == ["the classifier"]
            many = [f"{OIL} {number}" for number in range(router.following.judging.MOST_NEW + 1)]
            add_examples(gateway.registry, "sql", many, source="operator")
            forget_texts(gateway.registry, "oil")
            await gateway.until(lambda: labels(gateway) == set(), "memory without it, and without so many new ones")
            add_examples(gateway.registry, "oil", [OIL], source="correction:operator")
        finally:
            held.set()
        await gateway.until(lambda: gateway.catalog.classifier is not None, "the classifier")
        await caught_up(gateway)
        assert {"oil", "sql"} <= labels(gateway)

    with_gateway(home, stock, scenario, find_encoder=find)


def test_long_texts_are_judged_beside_the_event_loop_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, threads = fit_classifier(routes_rows(10)), list[str]()
    judge, judged = Judge(classifier, Memory.build(())), Judge.judge

    def noted(self: Judge, *turns: Any) -> Scores:
        threads.append(threading.current_thread().name)
        return judged(self, *turns)

    monkeypatch.setattr(Judge, "judge", noted)
    short, long = [TABLE], [TABLE, "x" * (LONG - len(TABLE) + 1)]
    found = [asyncio.run(judge.decide(turns)) for turns in (short, long)]
    assert threads == [threading.main_thread().name, "long-texts_0"]
    assert found[0] == found[1] == judged(judge, short)


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
        await caught_up(gateway)  # beside the build, by the classifier in force
        assert gateway.catalog.warming == ["the classifier"]
        monkeypatch.setattr(Memory, "build", counted)
        held.set()
        await gateway.catalog.settled()
        assert gateway.catalog.snapshot.exemplars_digest == exemplars_of(gateway.registry).digest
        assert gateway.catalog.snapshot.classifier_digest == second.digest
        assert gateway.catalog.warming == []
        assert len(built) == 2  # the one that was under way, and one for all five changes

    asyncio.run(run())
