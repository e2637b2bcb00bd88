"""Where the real data lies that benchmarks read."""

import os
import sys
from pathlib import Path


def find_data() -> Path:
    """The folder of data; ends the program where there is none."""
    data = Path(os.environ.get("BRANCHLINE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (data / "suite").is_dir():
        sys.exit(f"no data at {data}: set BRANCHLINE_DATA")
    return data
