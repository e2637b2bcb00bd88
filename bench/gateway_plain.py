"""The proxy that anybody would write first: FastAPI and httpx, nothing else. Something to compare with.

    python -m bench.gateway_plain --upstream URL --port PORT

It parses the body, as whoever routes by `model` must, and streams answers through. No key, no limit, no metric.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse


def create_app(upstream: str) -> FastAPI:
    """A proxy for chat completions in front of `upstream`."""
    client = httpx.AsyncClient(base_url=upstream, timeout=60, limits=httpx.Limits(max_connections=None))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        asked = client.build_request("POST", "/v1/chat/completions", json=body)
        if not body.get("stream"):
            answer = await client.send(asked)
            return Response(answer.content, answer.status_code, media_type=answer.headers["content-type"])
        streamed = await client.send(asked, stream=True)

        async def pieces() -> AsyncIterator[bytes]:
            try:
                async for piece in streamed.aiter_raw():
                    yield piece
            finally:
                await streamed.aclose()

        return StreamingResponse(pieces(), streamed.status_code, media_type=streamed.headers["content-type"])

    return app


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(create_app(arguments.upstream), port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
