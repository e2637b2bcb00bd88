"""Fuzz targets of the data plane: requests, feedback, headers, what engines say, classifier and encoder folders."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from adapters.rows import sha256_json
from router.auth import Gatekeeper
from router.backends.prompt import parse_messages, parse_prompts, parse_tokenize
from router.backends.vllm.answers import error_from, first_event_error
from router.classify.artifact import MANIFEST, save_classifier
from router.classify.encoder.layout import read_layout
from router.classify.fit import fit_classifier
from router.classify.loader import load_classifier
from router.errors import ClassifierInvalid, EncoderUnavailable, Forbidden, InvalidRequest, RouterError, error_object
from router.http.feedback import parse_proposal
from router.sampling import Sampling
from router.telemetry import Tail, Telemetry
from router.types import Decision, Endpoint
from router.wire import MAX_DEPTH, ClientRequest, parse_object, parse_request
from tests.classifier_rows import base_rows, routes_rows
from tests.fuzz_mutations import Files
from tests.fuzz_target import Target, of_bytes, written

USER = {"role": "user", "content": "select all users"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "x"}}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BODIES: dict[Endpoint, list[dict[str, object]]] = {
    "chat/completions": [
        {"model": "auto", "messages": [{"role": "system", "content": "s"}, USER], "max_tokens": 5, "stop": ["x"]},
        {
            "model": "sql@1",
            "messages": [PARTS],
            "stream": True,
            "tools": [TOOL],
            "stream_options": {"include_usage": True},
        },
    ],
    "completions": [
        {"model": "auto", "prompt": "select", "temperature": 0.5, "top_p": 1, "seed": 3, "logit_bias": {}},
        {"model": "tiny", "prompt": [[1, 2], [3]], "n": 1, "stream": False},
    ],
    "responses": [
        {"model": "auto", "input": "select", "store": False},
        {
            "model": "auto",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"type": "reasoning"}],
        },
    ],
    "tokenize": [{"model": "auto", "messages": [USER]}, {"model": "auto", "prompt": "select"}],
}
_READERS: dict[Endpoint, Callable[[Mapping[str, object]], object]] = {
    "chat/completions": parse_messages,
    "completions": parse_prompts,
    "tokenize": parse_tokenize,
}


def router_targets(root: Path) -> list[Target]:
    """`root` is a folder to make classifiers in."""
    requests = [*map(_request, BODIES), *map(_in_process, _READERS)]
    return [_two_readers(), *requests, _feedback(), _headers(), *_engine_words(), _classifier(root), _encoder()]


def _request(endpoint: Endpoint) -> Target:
    """Routing's reading of a body."""
    seeds = [json.dumps(body).encode() for body in BODIES[endpoint]]
    return of_bytes(f"{endpoint} body", lambda raw: _sound(parse_request(raw, endpoint)), (InvalidRequest,), *seeds)


def _in_process(endpoint: Endpoint) -> Target:
    """What an engine in this process reads of a body that routing took."""

    def read(raw: bytes) -> None:
        body = parse_request(raw, endpoint).body
        _READERS[endpoint](body)
        if endpoint != "tokenize":
            Sampling.parse(body, endpoint).budget(3, 4096)

    seeds = [json.dumps(body).encode() for body in BODIES[endpoint] if not {"tools", "n"} & set(body)]
    return of_bytes(f"{endpoint} in process", read, (InvalidRequest,), *seeds)


def _two_readers() -> Target:
    """A body is taken exactly where a strict parser would take it, and read as that reads it: never in another way."""

    def read(raw: bytes) -> object:
        try:
            wanted, refused = _strict(raw), False
        except (ValueError, RecursionError):
            wanted, refused = None, True
        try:
            found = parse_object(raw)
        except InvalidRequest:
            assert refused
            raise
        assert not refused
        assert repr(found) == repr(wanted)  # tells 1 from 1.0 and True
        return found

    tricky = (
        b'{"a": ":", "b:": {"c": [":x:", {"d": 1.5e3, "\\u003a": -0.0}]}, "e": 18446744073709551615}',
        b'{"model": "auto", "x": ["a:b", 9007199254740993, 1e22, "\\u00e9\\ud83d\\ude00"], "y": {}}',
    )
    seeds = [json.dumps(body).encode() for bodies in BODIES.values() for body in bodies]
    return of_bytes("two readers", read, (InvalidRequest,), *tricky, *seeds)


def _strict(raw: bytes) -> object:
    """The standard library's reading; raises `ValueError` for what it alone would take."""

    def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    def finite(text: str) -> float:
        if math.isinf(float(text)):
            raise ValueError("infinite")
        return float(text)

    def refuse(_name: str) -> object:
        raise ValueError("no JSON")

    value = json.loads(raw.decode(), object_pairs_hook=distinct, parse_float=finite, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode()
    if not isinstance(value, dict) or _depth(value) > MAX_DEPTH + 1:  # the body itself is not counted
        raise ValueError("no object, or too deep")
    return value


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _sound(request: ClientRequest) -> None:
    """What was taken can be sent on: one model, text that has bytes, numbers that JSON knows."""
    assert request.model
    assert all(text.strip() for text in request.texts)
    json.dumps(dict(request.body), ensure_ascii=False, allow_nan=False).encode()


def _feedback() -> Target:
    bodies = ({"route": "sql", "text": "select", "user": "u-1"}, {"route": "base", "request_id": "req-1"})
    seeds = [json.dumps(body).encode() for body in bodies]
    return of_bytes("/v1/feedback body", parse_proposal, (InvalidRequest,), *seeds)


def _headers() -> Target:
    keepers = (Gatekeeper(None, loopback=True), Gatekeeper(None, loopback=False))

    def parse(raw: bytes) -> None:
        lines = raw.decode("latin-1").split("\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        for keeper in keepers:
            keeper.require_own_site(headers)

    seeds = (b"host: localhost:8000\norigin: http://localhost:8000", b"host: [::1]:80", b"host: 127.0.0.1")
    return of_bytes("Host and Origin", parse, (Forbidden,), *seeds)


def _engine_words() -> list[Target]:
    """Never refused: whatever an engine says becomes one of our errors, or is passed over."""
    said = [
        {"error": {"message": "no such model", "type": "NotFoundError", "param": "model", "code": 404}},
        {"object": "error", "message": "[{'type': 'x', 'loc': 'body', 'msg': 'too long', 'input': 1}]", "code": 400},
        {"detail": "Not Found"},
    ]

    def errors(raw: bytes) -> None:
        found: list[RouterError] = [
            error_from(status, raw, engine_name="sql@1.0123456789abcdef", base_id="tiny")
            for status in (400, 404, 500, 503)
        ]
        found.append(first_event_error(b"data: " + raw, engine_name="tiny", base_id="tiny"))
        for error in found:
            json.dumps(error_object(error)).encode()
            assert len(error.message) < 2000

    usage = {"usage": {"prompt_tokens": 5, "completion_tokens": 3, "details": {"cached": 1}}}
    event = b"data: " + json.dumps({"choices": [{"delta": {"content": "a"}}], **usage}).encode()
    return [
        of_bytes("engine error", errors, (), *(json.dumps(one).encode() for one in said)),
        of_bytes(
            "engine stream", _followed, (), event + b"\n\ndata: [DONE]\n\n", b"event: response.completed\ndata: {}\n\n"
        ),
    ]


def _followed(raw: bytes) -> None:
    for stream in (True, False):
        tail = Tail(stream=stream)
        for start in range(0, len(raw), 1000):
            tail.push(raw[start : start + 1000], 0.1)
        assert tail.done in (True, False)
        decision = Decision("tiny", "base", "base_requested")
        Telemetry().finished(decision, "r-1", "ok", tail, 0.1)


def _classifier(root: Path) -> Target:
    """The manifest is sealed again after each change, so that the digests let it through to the checks behind them."""
    folders = []
    for number, rows in enumerate((routes_rows(6), routes_rows(6, seed=1) + base_rows())):
        save_classifier(fit_classifier(rows), root / f"classifier-{number}")
        folders.append({file.name: file.read_bytes() for file in (root / f"classifier-{number}").iterdir()})

    def load(files: Files, scratch: Path) -> object:
        return load_classifier(written(_sealed(files), scratch)).scores("select all users")

    return Target("classifier folder", load, (ClassifierInvalid,), tuple(folders))


def _sealed(files: Files) -> Files:
    """`files` with sizes and digests that fit."""
    try:
        body = json.loads(files[MANIFEST])
        for name, entry in body["files"].items():
            content = files.get(name, b"")
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        body.pop("digest", None)
        return {**files, MANIFEST: json.dumps({**body, "digest": sha256_json(body)}).encode()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return files


def _encoder() -> Target:
    files = {
        "config.json": {"hidden_size": 8, "max_position_embeddings": 64, "pad_token_id": 0},
        "tokenizer.json": {"model": {}},
        "tokenizer_config.json": {"model_max_length": 1e30},
        "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
        "modules.json": [{"type": "sentence_transformers.models.Transformer", "path": ""}],
    }
    seed = {name: json.dumps(value).encode() for name, value in files.items() if name != "modules.json"}
    seed |= {"model.safetensors": b"weights"}
    return Target(
        "encoder folder",
        lambda given, scratch: read_layout(str(written(given, scratch))),
        (EncoderUnavailable,),
        (seed,),
    )
