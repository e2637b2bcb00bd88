"""What is counted and written down: tokens, and metrics with capped labels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.dispatch import Followed
from router.errors import EngineFailed
from router.telemetry import TAIL_BYTES, Outcome, Tail
from tests.gateway_parts import ScriptedEngine, Stock, client_request, make_stock, running

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
DONE = b"data: [DONE]\n\n"


def tail(*pieces: bytes, stream: bool = True) -> Tail:
    found = Tail(stream=stream)
    for piece in pieces:
        found.push(piece, 0.1)
    return found


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_usage_is_read_from_the_last_event_of_a_stream() -> None:
    assert tail(b"data: {}\n\n", USAGE, DONE).tokens() == (7, 3, False)


def test_usage_is_read_from_a_whole_document_however_long_its_text() -> None:
    document = b'{"choices":["' + b"x" * 50_000 + b'"],"usage":{"prompt_tokens":2,"completion_tokens":9}}'
    assert tail(document, stream=False).tokens() == (2, 9, False)


@pytest.mark.parametrize("piece", [100_000, 4096, 999])
def test_usage_is_read_where_the_prompts_tokens_follow_it(piece: int) -> None:
    usage = b'"usage":{"prompt_tokens":2000,"completion_tokens":9}'
    document = b'{"choices":["' + b"x" * 9000 + b'"],' + usage + b',"prompt_token_ids":[' + b"12345," * 1999 + b"1]}"
    found = Tail(stream=False)
    for start in range(0, len(document), piece):
        found.push(document[start : start + piece], 0.1)
    assert found.tokens() == (2000, 9, False)


def test_usage_cut_at_any_byte_is_put_together() -> None:
    for cut in range(len(USAGE)):
        assert tail(USAGE[:cut], USAGE[cut:], DONE).tokens() == (7, 3, False)


def test_usage_with_details_inside_is_read() -> None:
    usage = b'"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens":6}'
    assert tail(b"data: {" + usage + b"}\n\n").tokens() == (5, 6, False)


def test_without_usage_each_event_between_role_and_end_is_one_token() -> None:
    events = [b"data: {}\n\n"] * 6
    assert tail(*events, DONE).tokens() == (None, 4, True)  # 7 events, of which role, end and [DONE] hold no token


@pytest.mark.parametrize(
    "usage", [b'"usage":null', b'"usage":{}', b'"usage":{"prompt_tokens":"x"}', b'"usage":{"prompt_tokens":[1]}', b""]
)
def test_garbage_for_usage_is_estimated_over(usage: bytes) -> None:
    assert tail(b"data: {" + usage + b"}\n\n").tokens() == (None, 0, True)


def test_negative_usage_of_a_broken_engine_counts_as_none() -> None:
    assert tail(b'data: {"usage":{"prompt_tokens":-5,"completion_tokens":-1}}\n\n').tokens() == (0, 0, False)


def test_text_that_quotes_a_usage_object_is_not_usage() -> None:
    said = json.dumps({"text": '"usage":{"prompt_tokens":999}'}).encode()
    assert tail(b"data: " + said + b"\n\n").tokens()[0] is None


def response_event(kind: str, **more: object) -> bytes:
    return f"event: response.{kind}\ndata: {json.dumps({'type': f'response.{kind}', **more})}\n\n".encode()


RESPONSE_USAGE = {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 3}
DELTAS = [response_event("output_text.delta", delta="x")] * 3


@pytest.mark.parametrize("ending", ["completed", "incomplete", "failed"])
def test_a_response_stream_is_done_with_its_own_last_event_wherever_it_is_cut(ending: str) -> None:
    last = response_event(ending, response={"output": "x" * 2 * TAIL_BYTES, "usage": RESPONSE_USAGE})
    stream = b"".join([response_event("created"), *DELTAS, last])
    for size in (7, 1000, len(stream)):
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert tail(*pieces).done
        assert tail(*pieces).tokens() == (7, 3, False)
        assert not tail(*pieces[:-1]).done


def test_a_response_that_only_speaks_of_the_last_event_is_not_done() -> None:
    said = response_event("output_text.delta", delta="event: response.completed\n")
    assert not tail(response_event("created"), said).done
    assert tail(response_event("created"), *DELTAS).tokens() == (None, 3, True)


def test_only_the_tail_of_an_answer_is_kept() -> None:
    found = tail(*[b"x" * 3000] * 10, DONE)
    assert found.done
    assert len(found._kept) == TAIL_BYTES


# -- what is counted when an answer ends -------------------------------------------------------------------------------


async def pieces(*values: bytes, error: BaseException | None = None) -> AsyncIterator[bytes]:
    for value in values:
        yield value
    if error is not None:
        raise error


def followed(body: AsyncIterator[bytes], outcomes: list[Outcome], *, stream: bool = True) -> Followed:
    return Followed(body, lambda outcome, _tail, _seconds: outcomes.append(outcome), started=0.0, stream=stream)


def test_an_answer_ends_once_with_its_outcome_however_it_ends() -> None:
    async def scenario() -> list[Outcome]:
        outcomes: list[Outcome] = []
        assert [piece async for piece in followed(pieces(USAGE, DONE), outcomes)] == [USAGE, DONE]
        assert [piece async for piece in followed(pieces(b"{}"), outcomes, stream=False)] == [b"{}"]
        completed = response_event("completed", response={})
        assert [piece async for piece in followed(pieces(completed), outcomes)] == [completed]
        with pytest.raises(EngineFailed, match="broke off"):
            assert [piece async for piece in followed(pieces(USAGE), outcomes)]
        with pytest.raises(EngineFailed, match="died"):
            assert [piece async for piece in followed(pieces(error=EngineFailed("died")), outcomes)]
        closed = followed(pieces(USAGE, DONE), outcomes)
        await anext(closed)
        await closed.aclose()
        await closed.aclose()
        followed(pieces(DONE), outcomes)  # dropped before anybody read
        return outcomes

    assert asyncio.run(scenario()) == ["ok", "ok", "ok", "failed", "failed", "cancelled", "cancelled"]


def test_a_wait_that_is_cancelled_ends_the_answer_as_cancelled() -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def scenario() -> list[Outcome]:
        outcomes: list[Outcome] = []
        answer = followed(never(), outcomes)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(answer), 0.01)
        return outcomes

    assert asyncio.run(scenario()) == ["cancelled"]


# -- metrics -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=1)


def test_the_metrics_page_has_these_names_and_labels_and_no_others(stock: Stock, tmp_path: Path) -> None:
    async def scenario() -> str:
        async with running(stock.copy(tmp_path / "home"), stock.base, live=[("sql", 1)]) as gateway:
            for model in ("sql", "auto"):
                answer = await gateway.dispatcher.answer(client_request(model), "r-1")
                assert [piece async for piece in answer.reply.body]
            gateway.telemetry.refused("model_not_found")
            return gateway.telemetry.render(gateway.catalog).decode()

    families = {family.name: family for family in text_string_to_metric_families(asyncio.run(scenario()))}
    labels = {
        name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for name, family in families.items()
        if not name.endswith("_created")  # the client library's own
    }
    assert labels == {
        "branchline_requests": {"route", "stage", "reason", "outcome"},
        "branchline_errors": {"code"},
        "branchline_request_seconds": {"route"},
        "branchline_first_byte_seconds": {"route"},
        "branchline_tokens": {"route", "kind", "estimated"},
        "branchline_registry_serial": set(),
        "branchline_registry_stale_seconds": set(),
        "branchline_route_as_wanted": {"route"},
        "branchline_adapter_loads": {"route", "outcome"},
        "branchline_adapter_load_seconds": set(),
        "branchline_engine_up": {"engine"},
        "branchline_engine_outstanding": {"engine"},
        "branchline_engine_resident": {"engine"},
        "branchline_engine_restarts": {"engine"},
    }
    wanted = {sample.labels["route"]: sample.value for sample in families["branchline_route_as_wanted"].samples}
    assert wanted == {"sql": 1.0, "regex": 1.0}
    routes = {sample.labels["route"] for sample in families["branchline_requests"].samples}
    assert routes == {"sql", "base"}


def test_loads_are_counted_by_route_and_how_they_went_and_engines_are_shown(stock: Stock, tmp_path: Path) -> None:
    async def scenario() -> str:
        engine = ScriptedEngine(stock.base)
        engine.script.faults = {"regex@1": "changes nothing"}
        engine.script.unapplied = {"regex@1"}
        live = [("sql", 1), ("regex", 1)]
        async with running(stock.copy(tmp_path / "home"), stock.base, live=live, engine=engine) as gateway:
            return gateway.telemetry.render(gateway.catalog).decode()

    page = asyncio.run(scenario())
    assert 'branchline_adapter_loads_total{outcome="applied",route="sql"} 1.0' in page
    assert 'branchline_adapter_loads_total{outcome="not_applied",route="regex"} 1.0' in page
    assert "branchline_adapter_load_seconds_count 2.0" in page
    assert 'branchline_engine_up{engine="echo"} 1.0' in page
    assert 'branchline_engine_resident{engine="echo"} 1.0' in page
    assert 'branchline_engine_restarts_total{engine="echo"} 0.0' in page
