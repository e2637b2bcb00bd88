"""Two real processes on this machine do the work of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer_base import Files, make_files, write_rows
from tests.trainer_runs import execute
from tests.trainer_worker import methods_of
from trainer.errors import ConfigInvalid
from trainer.machine import Machine
from trainer.training import require_deal

PROCESSES = 2
VALUES = {"dropout": 0.2, "accumulation": 2, "batch_tokens": 128}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both processes have done all that `tests.trainer_worker` does, as a launcher starts them."""
    root = tmp_path_factory.mktemp("processes")
    make_files(root)
    write_rows(root / "past.jsonl", [(f"count {number}", "no no") for number in range(24)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    world = {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer_worker", str(root)],
            env={**os.environ, **meeting, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, "\n".join(said)
    return root


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "adapter/adapter_model.safetensors")


def met(root: Path, rank: int) -> dict[str, str]:
    found: dict[str, str] = json.loads((root / f"met-{rank}.json").read_text(encoding="utf-8"))
    return found


def test_two_processes_equal_one_bit_for_bit_with_dropout_where_each_has_one_micro_batch(ran: Path) -> None:
    """A sum of two gradients is the same in either order, so nothing may differ."""
    torch.set_num_threads(1)
    execute(Files.found(ran).values | VALUES, ran / "one")
    one, two = weights(ran / "one"), weights(ran / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_equal_one_where_each_has_several_micro_batches(ran: Path) -> None:
    """(g1 + g3) + (g2 + g4) is rounded otherwise than ((g1 + g2) + g3) + g4: equal to float32, not bit for bit."""
    execute(Files.found(ran).values | VALUES | {"accumulation": 4}, ran / "one-by-four")
    one, two = weights(ran / "one-by-four"), weights(ran / "two-by-four")
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)


def test_methods_do_in_two_processes_what_they_do_in_one_bit_for_bit(ran: Path) -> None:
    """What a method reads before the first step it reads while the other process waits for it."""
    execute(Files.found(ran).values | VALUES | methods_of(ran), ran / "one-methods")
    one, two = weights(ran / "one-methods"), weights(ran / "two-methods")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_stop_asked_of_one_process_stops_both_with_one_state_from_which_both_go_on(ran: Path) -> None:
    assert met(ran, 0)["stop"] == met(ran, 1)["stop"] == "Interrupted"
    assert met(ran, 0)["stopped at"].startswith("step-")
    resumed, whole = weights(ran / "resumed"), weights(ran / "two")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_fails_in_the_main_process_fails_in_the_others_too(ran: Path) -> None:
    assert (met(ran, 0)["failure"], met(ran, 1)["failure"]) == ("DiskFull", "ProcessLost")


def test_a_process_that_vanishes_is_noticed_and_not_waited_for(ran: Path) -> None:
    assert met(ran, 0)["vanished"] == "ProcessLost"


def test_micro_batches_that_cannot_be_dealt_evenly_are_refused(ran: Path) -> None:
    assert met(ran, 0)["uneven"] == met(ran, 1)["uneven"] == "ConfigInvalid"
    with pytest.raises(ConfigInvalid, match="3 micro-batches a step cannot be dealt evenly to 2 processes"):
        require_deal(3, 2)
    require_deal(4, 2)


def test_one_process_takes_every_micro_batch_in_its_order() -> None:
    assert list(Machine().deal("abc")) == [(0, "a"), (1, "b"), (2, "c")]
