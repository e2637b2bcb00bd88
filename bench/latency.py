"""What a request costs through the gateway alone: one client, one connection, the echo engine.

python -m bench.latency
"""

from __future__ import annotations

import asyncio
import tempfile
import time

import httpx

from adapters.home import Home

from .gateway import gateway
from .results import Row, write_results
from .spread import row_of_times

REQUESTS = 300
WARM = 20


def main() -> None:
    """Measure whole and streamed answers, and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Home.at(folder)))
    write_results("latency", "One request through the gateway, echo engine", rows, "python -m bench.latency")


async def measure(home: Home) -> list[Row]:
    rows = []
    async with (
        gateway(home, "echo", "toy") as served,
        httpx.AsyncClient(base_url=served.url, timeout=30) as client,
    ):
        for what, stream in (("whole", False), ("streamed", True)):
            body = {"model": "toy", "messages": [{"role": "user", "content": "hello there"}], "stream": stream}
            seconds = []
            for _ in range(WARM + REQUESTS):
                started = time.perf_counter()
                (await client.post("/v1/chat/completions", json=body)).raise_for_status()
                seconds.append(time.perf_counter() - started)
            counted = seconds[WARM:]
            note = f"{len(counted)} requests, one after another on one connection"
            rows += [
                row_of_times(f"{what}, {name}", counted, share, note) for name, share in (("p50", 0.5), ("p99", 0.99))
            ]
    return rows


if __name__ == "__main__":
    main()
