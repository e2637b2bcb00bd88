"""A programmable stand-in for vLLM: the same launcher's name, a real process with a child, a real socket.

For what Branchline itself does around an engine. Each start takes the next word of its plan:
`up`, `dies` (with an error), `taken` (its port), `silent`, `refuses` (answers 500), `dies-later` (on `GET /die`).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

MARKER = "BRANCHLINE_STAND_IN"
_METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
_LAUNCHER = """
import http.server, os, pathlib, subprocess, sys, time

plan = pathlib.Path(os.environ["BRANCHLINE_STAND_IN"])
act, *rest = plan.read_text().split() or ["up"]
plan.write_text(" ".join(rest))
with plan.with_name("starts").open("a") as starts:
    starts.write(act + "\\n")
port = int(sys.argv[sys.argv.index("--port") + 1])
key = os.environ["VLLM_API_KEY"]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("(APIServer pid=1) INFO 11-23 05:25:59 [api_utils.py:347]   version 0.32.0", flush=True)
print("the key is", key, flush=True)
if act == "silent":
    time.sleep(600)
if act in ("dies", "taken"):
    child.kill()
    print("Traceback (most recent call last):")
    raise OSError(98, "Address already in use") if act == "taken" else ValueError("no such weights")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("RuntimeError: it broke", flush=True)
            os._exit(3)
        self.answer(200)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(500 if act == "refuses" else 200)

    def answer(self, status):
        self.send_response(status if self.headers["authorization"] == "Bearer " + key else 401)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@dataclass(frozen=True, slots=True)
class StandIn:
    """An environment in which `sys.executable` has a stand-in for vLLM; `environ` is what a gateway there has."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BRANCHLINE_")}
        path = os.pathsep.join([str(self.folder), str(Path(__file__).parents[1])])
        return {**kept, "PYTHONPATH": path, MARKER: str(self.folder / "plan")}

    @property
    def python(self) -> str:
        return sys.executable

    @property
    def starts(self) -> list[str]:
        """What each start so far did."""
        return (self.folder / "starts").read_text().split()


def stand_in(
    folder: Path, *plan: str, version: str = "0.32.0", branchline: str = "0.1.0", plugin: bool = True
) -> StandIn:
    """Write a stand-in into `folder`; starts beyond the plan come up."""
    launcher = folder / "vllm" / "entrypoints" / "launchers" / "api_server" / "entry.py"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(_LAUNCHER)
    (folder / "plan").write_text(" ".join(plan))
    for name, number in (("vllm", version), ("branchline", branchline)):
        described = folder / f"{name}-{number}.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(_METADATA.format(name=name, version=number))
        if name == "branchline":
            entry = "[vllm.general_plugins]\nbranchline = adapters.engine.resolver:register\n" if plugin else "\n"
            (described / "entry_points.txt").write_text(entry)
    return StandIn(folder)
