"""Each route of vLLM's HTTP server is open or closed on purpose: a new one fails here until somebody decides."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from adapters.engine.guard import FACTS, OPEN
from tests.vllm_engine import needs_vllm, vllm_python

ALLOWED = {f"{method} {path}" for method, path in OPEN - {FACTS}}

# Why they are closed, by group. Everything that is in neither table is closed too; this one is for the reader.
DOCS = {
    *("GET /docs", "HEAD /docs", "GET /redoc", "HEAD /redoc", "GET /openapi.json", "HEAD /openapi.json"),
    *("GET /docs/oauth2-redirect", "HEAD /docs/oauth2-redirect"),
}
LOADS_FROM_ANY_PATH = {
    *("POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"),
    *("POST /adapters", "DELETE /adapters/{adapter_name}", "POST /invocations", "GET /ping", "POST /ping"),
}
STEERS_THE_ENGINE = {
    *("POST /abort_requests", "POST /inference/v1/abort_requests", "POST /collective_rpc", "GET /server_info"),
    *("POST /pause", "POST /resume", "GET /is_paused", "POST /sleep", "POST /wake_up", "GET /is_sleeping"),
    *("POST /scale_elastic_ep", "POST /is_scaling_elastic_ep", "GET /get_world_size", "GET /load"),
    *("POST /reset_encoder_cache", "POST /reset_mm_cache", "POST /reset_prefix_cache", "GET /kv_event_sources"),
    *("POST /release_kv_cache_memory", "POST /weight_checker", "GET /weight_info", "POST /update_weights"),
    *("POST /init_weight_transfer_engine", "POST /shutdown_weight_transfer_engine", "POST /finish_weight_update"),
    *("POST /start_weight_update", "POST /start_draft_weight_update", "POST /update_weight_version"),
}
STATEFUL = {"GET /v1/responses/{response_id}", "POST /v1/responses/{response_id}/cancel"}
NOT_SERVED_BY_A_GATEWAY = {
    *("POST /v1/chat/completions/batch", "POST /v1/messages", "POST /v1/messages/count_tokens", "POST /detokenize"),
    *("POST /v1/audio/transcriptions", "POST /v1/audio/translations", "websocket /v1/realtime"),
    *("POST /v1/chat/completions/render", "POST /v1/completions/render", "POST /v1/messages/render"),
    *("POST /v1/responses/render", "POST /v1/chat/completions/derender", "POST /v1/completions/derender"),
    *("POST /inference/v1/generate", "POST /generative_scoring", "POST /v1/systemone", "mount /metrics"),
}
CLOSED = DOCS | LOADS_FROM_ANY_PATH | STEERS_THE_ENGINE | STATEFUL | NOT_SERVED_BY_A_GATEWAY


@needs_vllm
def test_every_route_of_vllm_is_in_one_of_the_tables_and_the_guard_stands_before_all_of_them() -> None:
    python = vllm_python()
    assert python is not None
    program = Path(__file__).with_name("engine_routes.py")
    ran = subprocess.run([python, program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["outermost"] == "Guard"
    assert set(found["routes"]) == ALLOWED | CLOSED
    assert "set VLLM_API_KEY" in found["refused"]
