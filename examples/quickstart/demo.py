"""Four requests through the running gateway: three take a branch, one stays on the base. Then what to try next."""

import json
import subprocess
import time
import urllib.error
import urllib.request

REQUESTS = (
    "ships(weight, owner, color): Show the owner where the color is 'amber'.",
    "Book a table for three under Hollis on Sunday at 8 pm, please.",
    "Lines that start with 'todo' and end with two digits.",
    "Repeat the following: the quiet river runs north",
)
READY_SECONDS = 120


def wait_until_ready(gateway: "subprocess.Popen[bytes]", port: int) -> bool:
    """True once the gateway answers with every route warm; False where it ended first (its own words say why)."""
    deadline = time.monotonic() + READY_SECONDS
    while gateway.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as response:
                if not json.load(response)["warming"]:
                    return gateway.poll() is None
        except (urllib.error.URLError, OSError):
            pass  # not listening yet
        time.sleep(0.2)
    return False


def show_branches(port: int) -> None:
    """Send the requests with `model="auto"` and print where each went and what came back."""
    print('\nfour requests to model "auto":')
    for text in REQUESTS:
        where, answer = _ask(port, text)
        print(f"  {text}\n    {where:<28} {answer}")
    print(NEXT.format(port=port), flush=True)


def _ask(port: int, text: str) -> tuple[str, str]:
    body = {"model": "auto", "temperature": 0, "max_tokens": 60, "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        answer = json.load(response)["choices"][0]["message"]["content"]
        route, version = response.headers.get("x-branchline-route"), response.headers.get("x-branchline-version")
        reason = response.headers["x-branchline-reason"]
    return f"{route}@{version} ({reason})" if version else f"base ({reason})", answer


NEXT = """
The gateway runs on http://127.0.0.1:{port}. In another terminal, in this folder:

  export BRANCHLINE_HOME=$PWD/.branchline/home PATH=$PWD/.venv/bin:$PATH
  curl -i http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "Lines that end with three digits"}}]}}'
  python -m examples.quickstart.client {port}    # the OpenAI client, base_url changed (pip install openai)
  branchline route list
  branchline route disable sql      # the base answers sql requests, at once
  branchline route enable sql
  branchline explain "book a table for two"

Ctrl-C stops it; `make run` starts again in seconds.
"""
