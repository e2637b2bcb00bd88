"""The commands as people run them: exit codes, one clear line, Ctrl-C, publication."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from adapters.rows import sha256_file
from tests.trainer_base import Files, colour_rows, make_files, write_rows
from tests.trainer_command import Branchline, make_branchline

PROGRAM = "from adapters.main import main; main()"
WITHOUT_TORCH = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {PROGRAM}"
SHORT = ("--lr", "0.02", "--rank", "4", "--alpha", "8", "--checkpoints", "1", "--max-steps", "3", "--epochs", "100")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("task"))


@pytest.fixture
def branchline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Branchline:
    return make_branchline(tmp_path / "home", monkeypatch, capsys)


def test_train_publishes_and_a_second_time_says_at_once_that_it_is_done(
    files: Files, tmp_path: Path, branchline: Branchline, monkeypatch: pytest.MonkeyPatch
) -> None:
    branchline("route", "create", "colour")
    words = ("train", "colour", *files.arguments, *SHORT, "--out", str(tmp_path / "out"), "--publish", "--json")
    first = branchline(*words)
    assert json.loads(first.stdout)["version"] == "colour@1"
    again = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=True)
    assert "already trained" in again.stderr
    assert f"evidence to look at: {tmp_path / 'out' / 'evidence.html'}" in again.stderr
    assert again.stdout == f"{first.stdout}False\n", "the same record, and torch was never imported"
    assert "other settings, base or data" in branchline(*words, "--seed", "1", code=1).stderr
    monkeypatch.setenv("RANK", "1")
    second = branchline(*words)
    assert (second.stdout, second.stderr) == ("", ""), "of several processes only the first says anything"


def test_a_published_version_gets_fresh_evidence_on_other_items(
    files: Files, tmp_path: Path, branchline: Branchline
) -> None:
    branchline("route", "create", "colour")
    branchline("train", "colour", *files.arguments, *SHORT, "--out", str(tmp_path / "out"), "--publish")
    more, fresh = write_rows(tmp_path / "more.jsonl", colour_rows(12, start=3000)), tmp_path / "fresh"
    words = ("--base", str(files.base), "--eval", str(more), "--out", str(fresh))
    assert "target" in branchline("evaluate", "colour@1", *words).stdout
    attached = branchline("adapter", "evidence", "colour@1", str(fresh / "evidence.json"))
    assert "attached to colour@1" in attached.stdout


def test_a_yaml_file_holds_the_same_settings_and_options_overrule_it(
    files: Files, tmp_path: Path, branchline: Branchline
) -> None:
    settings = {**files.values, "base": str(files.base), "out": str(tmp_path / "out"), "max_steps": 50, "lr": 0.01}
    file = tmp_path / "colour.yaml"
    file.write_text(json.dumps(settings, default=str), encoding="utf-8")
    found = branchline("train", str(file), "--max-steps", "2", "--json")
    record = json.loads(found.stdout)
    assert (record["name"], record["steps"], record["settings"]["lr"]) == ("colour", 2, 0.01)


def test_ctrl_c_leaves_a_state_from_which_the_same_command_goes_on_and_finishes(
    files: Files, tmp_path: Path, branchline: Branchline
) -> None:
    out = tmp_path / "out"
    words = ("train", "colour", *files.arguments, *SHORT, "--max-steps", "40", "--out", str(out))
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while process.poll() is None and not (out / "work/run.json").exists():
            time.sleep(0.01)  # a poll until the run has begun, not a guess at how long that takes
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    [state] = (out / "work/states").glob("step-*")
    stopped = int(state.name.removeprefix("step-"))
    assert 0 < stopped < 40
    finished = branchline(*words, "--json")
    assert f"going on from step {stopped}" in finished.stderr
    assert json.loads(finished.stdout)["steps"] == 40


def test_a_run_starts_from_a_published_version(files: Files, tmp_path: Path, branchline: Branchline) -> None:
    branchline("route", "create", "colour")
    words = ("train", "colour", *files.arguments, *SHORT)
    first = branchline(*words, "--out", str(tmp_path / "one"), "--publish", "--json")
    second = branchline(*words, "--out", str(tmp_path / "two"), "--start", "colour@1", "--json")
    assert json.loads(second.stdout)["files"]["start"] == {
        "file": "adapter_model.safetensors",
        "sha256": sha256_file(tmp_path / "one/adapter/adapter_model.safetensors"),
    }
    other = branchline(*words, "--rank", "2", "--out", str(tmp_path / "three"), "--start", "colour@1", code=2)
    assert "set rank to 4" in other.stderr
    assert json.loads(first.stdout)["weights_digest"] != json.loads(second.stdout)["weights_digest"]


def test_a_tracker_gets_losses_rates_norms_speed_and_every_candidates_scores(
    files: Files, tmp_path: Path, branchline: Branchline
) -> None:
    words = ("train", "colour", *files.arguments, *SHORT, "--tracker", "tensorboard", "--out", str(tmp_path / "out"))
    figures = json.loads(branchline(*words, "--json").stdout)
    tracked: Any = EventAccumulator(str(tmp_path / "out/tracker/colour"))
    tracked.Reload()
    of_steps = {"loss", "loss/cross_entropy", "learning_rate", "gradient_norm", "tokens_per_second"}
    of_points = {"selection/exact_match", "selection/nll", "selection/general nll rise"}
    assert set(tracked.Tags()["scalars"]) == of_steps | of_points
    for name in of_steps:
        assert [event.step for event in tracked.Scalars(name)] == list(range(1, figures["steps"] + 1))
    for name in of_points:
        assert [event.step for event in tracked.Scalars(name)] == [figures["steps"]]


BAD: Sequence[tuple[Sequence[str], int, str]] = [
    (("--rank", "0"), 2, "rank: Input should be greater than or equal to 1, found '0'"),
    (("--data", "nowhere.jsonl"), 2, "data: no file 'nowhere.jsonl'"),
    (("--base", "nowhere"), 1, "no base folder 'nowhere'|neither a folder nor in the local hub cache"),
    (("--target", "nonsense"), 1, "no linear layer named nonsense"),
    (("--method", "ewc:weigth=1"), 2, "methods: ewc: unknown key weigth, known are budget, importance"),
    (("--method", "ewc:weight=much"), 2, "methods.ewc.weight: Input should be a valid number"),
    (("--method", "magic"), 2, "unknown method 'magic', known are "),
    (("--dora",), 2, "dora: DoRA rescales the base's weights"),
    (("--start", "nowhere@3"), 1, "no version nowhere@3"),
    (("--tracker", "diary"), 2, "unknown tracker 'diary', known are aim, "),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD)
def test_a_wrong_setting_gives_one_clear_line(
    files: Files, tmp_path: Path, branchline: Branchline, words: Sequence[str], code: int, message: str
) -> None:
    refused(branchline, files, tmp_path, words, code, message)


def test_a_command_that_was_refused_leaves_its_folder_to_the_corrected_one(
    files: Files, tmp_path: Path, branchline: Branchline
) -> None:
    words = ("train", "colour", *files.arguments, *SHORT, "--out", str(tmp_path / "out"))
    assert "--past, or --anchor" in branchline(*words, "--method", "ewc", code=2).stderr
    earlier = write_rows(tmp_path / "earlier.jsonl", colour_rows(12, start=5000))
    told = branchline(*words, "--past", str(earlier)).stderr
    assert "no method is given: rows and adapters of earlier tasks are not read" in told


def test_a_name_that_is_no_folder_and_no_version_and_wrong_settings_point_to_their_own_command(
    files: Files, tmp_path: Path, branchline: Branchline
) -> None:
    words = ("--base", str(files.base), "--eval", str(files.values["eval"]), "--out", str(tmp_path / "fresh"))
    assert "no folder 'colour'" in branchline("evaluate", "colour", *words, code=1).stderr
    told = branchline("evaluate", "colour@1", *words, "--metric", "best", code=2).stderr
    assert "branchline evaluate --help" in told


def test_rows_that_are_no_rows_give_one_clear_line(files: Files, tmp_path: Path, branchline: Branchline) -> None:
    empty, malformed = tmp_path / "empty.jsonl", tmp_path / "malformed.jsonl"
    empty.write_text("", encoding="utf-8")
    malformed.write_text('{"input": "a", "output": "b"}\nnot json\n', encoding="utf-8")
    refused(branchline, files, tmp_path, ("--data", str(empty)), 1, "empty.jsonl holds no rows")
    refused(branchline, files, tmp_path, ("--data", str(malformed)), 1, "malformed.jsonl: line 2: not UTF-8 JSON")


def test_a_base_without_a_chat_template_gives_one_clear_line(
    files: Files, tmp_path: Path, branchline: Branchline
) -> None:
    base = tmp_path / "plain"
    base.mkdir()
    for file in files.base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").unlink()
    refused(branchline, files, tmp_path, ("--base", str(base)), 1, "no chat template")


def refused(
    branchline: Branchline, files: Files, tmp_path: Path, words: Sequence[str], code: int, message: str
) -> None:
    """The last option given counts, so `words` overrule the good arguments before them."""
    out = ("--out", str(tmp_path / "out"))
    found = branchline("train", "colour", *files.arguments, *SHORT, *out, *words, code=code)
    news = [line for line in found.stderr.splitlines() if line and not line.startswith("loading base")]
    assert len(news) == 1, found.stderr
    assert any(part in news[0] for part in message.split("|")), news[0]
    assert found.stdout == ""
