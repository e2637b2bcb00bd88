"""Start-up of the command line: wall time of `branchline route list` as a whole process, on a registry of 100 routes.

python -m bench.startup
"""

import statistics
import subprocess
import sys
import tempfile
import time

from adapters.home import Home
from adapters.registry import Registry

from .gateway import BRANCHLINE
from .results import Row, write_results

RUNS = 30


def main() -> None:
    """Time the command and, beside it, the bare interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry.open(Home.at(folder).registry_url)
        for number in range(100):
            registry.create_route(f"route-{number}")
        registry.close()
        listed = time_command([BRANCHLINE, "route", "list", "--home", folder])
    bare = time_command([sys.executable, "-c", "pass"])
    rows = [
        Row("`branchline route list`, median", statistics.median(listed) * 1000, "ms", "target: under 300"),
        Row("`branchline route list`, slowest of 30", max(listed) * 1000, "ms"),
        Row("bare interpreter, median", statistics.median(bare) * 1000, "ms"),
    ]
    write_results("startup", "Start-up of the command line", rows, "python -m bench.startup")


def time_command(command: list[str]) -> list[float]:
    """Seconds of each of `RUNS` runs, after one that is not counted."""
    seconds = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


if __name__ == "__main__":
    main()
