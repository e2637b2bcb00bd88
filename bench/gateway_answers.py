"""The fixed bytes that the instant upstream answers with, whole HTTP responses.

`WHOLE` is a chat completion of 240 characters, `STREAM` the same text as `EVENTS` server-sent events, each in its
chunk's frame. `FACTS` holds what gateways ask about an engine, `proof` what Branchline asks before it lets a version
in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from .adapter_folder import BASE

EVENTS = 16
MODEL = BASE.name
_TOKENS = ["The balance of ", "this account is "] * (EVENTS // 2)
_USAGE = {"prompt_tokens": 24, "completion_tokens": EVENTS, "total_tokens": 24 + EVENTS}


def response(content: bytes | str, kind: str = "application/json", status: str = "200 OK") -> bytes:
    """A whole HTTP/1.1 response with its length."""
    body = content.encode() if isinstance(content, str) else content
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _completion(choice: Mapping[str, object], kind: str = "chat.completion", **more: object) -> bytes:
    choices = [{"index": 0, "finish_reason": None, **choice}]
    document = {"id": "chatcmpl-0123456789abcdef", "object": kind, "created": 1, "model": MODEL, "choices": choices}
    return json.dumps({**document, **more}, separators=(",", ":")).encode()


def _whole() -> bytes:
    message = {"role": "assistant", "content": "".join(_TOKENS)}
    return response(_completion({"message": message, "finish_reason": "stop"}, usage=_USAGE))


def _stream() -> list[bytes]:
    deltas: list[dict[str, object]] = [{"delta": {"content": token}} for token in _TOKENS]
    deltas[0] = {"delta": {"role": "assistant", "content": _TOKENS[0]}}
    deltas[-1]["finish_reason"] = "stop"
    events = [b"data: " + _completion(delta, "chat.completion.chunk") + b"\n\n" for delta in deltas]
    pieces = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    kind = "text/event-stream; charset=utf-8"
    pieces[0] = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode() + pieces[0]
    pieces[-1] += b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    return pieces


def _facts() -> dict[str, bytes]:
    documents: dict[str, object] = {
        "/branchline": {"branchline": "0", "started": "once", "max_loras": 1024, "max_cpu_loras": 1024},
        "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "parent": None}]},
        "/get_server_info": {"model_path": MODEL, "served_model_name": MODEL},
        "/get_model_info": {"model_path": MODEL, "is_generation": True},
        "/server_info": {"model_path": MODEL, "served_model_name": MODEL},
        "/version": {"version": "0.32.0"},
    }
    metrics = response("process_start_time_seconds 1.0\n", "text/plain")
    answers = {path: response(json.dumps(document)) for path, document in documents.items()}
    return {"/health": response(b""), "/behave": response(b""), "/metrics": metrics, **answers}


def proof(body: bytes) -> bytes:
    """Log-probabilities that tell every version from the base, in the shape that was asked for."""
    asked = json.loads(body)
    logprob = -0.5 if asked["model"] == MODEL else -1.5
    top = {"token_id:1": logprob, "token_id:2": -3.0}
    if "messages" in asked:
        listed = [{"token": token, "logprob": value} for token, value in top.items()]
        step = {"token": "token_id:1", "logprob": logprob, "top_logprobs": listed}
        message = {"role": "assistant", "content": "x"}
        return response(_completion({"message": message, "logprobs": {"content": [step]}, "finish_reason": "stop"}))
    found = {"tokens": ["token_id:1"], "token_logprobs": [logprob], "top_logprobs": [top]}
    return response(_completion({"text": "x", "logprobs": found, "finish_reason": "stop"}, "text_completion"))


WHOLE: bytes = _whole()
STREAM: Sequence[bytes] = _stream()
FACTS: Mapping[str, bytes] = _facts()
NOTHING: bytes = response('{"error":{"message":"there is no such path"}}', status="404 Not Found")
