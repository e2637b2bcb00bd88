"""The trainer on a GPU, in a process of its own: all other tests compute on the CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_worker import arms

ROOT = Path(__file__).parents[1]


@cache
def has_gpu() -> bool:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    return "GPU" in listed


pytestmark = [pytest.mark.skipif(not has_gpu(), reason="no GPU here (nvidia-smi -L)"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("gpu")
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    subprocess.run([sys.executable, "-m", "tests.gpu_worker", str(folder)], cwd=ROOT, env=environment, check=True)
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_it_computes_on_the_gpu(found: Any) -> None:
    assert found["device"].startswith("cuda")


@pytest.mark.parametrize("length", ["64", "192"])
def test_rows_that_begin_with_padding_have_gradients_in_bf16_as_in_float32(found: Any, length: str) -> None:
    plain, rounded = found["gradients"][length]["no"], found["gradients"][length]["bf16"]
    assert any(norm > 0 for norm in plain)
    assert all(math.isfinite(norm) for norm in [*plain, *rounded])
    assert rounded == pytest.approx(plain, rel=0.1, abs=0.05 * max(plain))


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_every_method_trains_a_sequence(found: Any, precision: str) -> None:
    trained = found["sequence"][precision]
    assert set(trained) == {str(arm["name"]) for arm in arms()} - {"base"}
    failed = {name: arm["failed"] for name, arm in trained.items() if arm["failed"]}
    assert not failed
    for name, arm in trained.items():
        first, last = arm["nll"][0], arm["nll"][-1]
        assert all(math.isfinite(value) for value in last), name
        if name != "prompt":
            assert last[-1] < 0.8 * first[-1], f"{name} did not learn its last task: {first} to {last}"


def test_bf16_and_fp16_learn_a_first_task_as_float32_does(found: Any) -> None:
    learned = {precision: trained["plain"]["nll"][1][0] for precision, trained in found["sequence"].items()}
    assert learned["bf16"] == pytest.approx(learned["no"], rel=0.2)
    assert learned["fp16"] == pytest.approx(learned["no"], rel=0.2)


def test_an_interrupted_run_goes_on_where_it_was(found: Any) -> None:
    """Nearly: sums on a GPU have no fixed order."""
    assert found["resumed"]["apart"] < 0.02 * found["resumed"]["largest"]
