"""The commands as people run them: exit codes, one clear line, Ctrl-C, publication."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.trainer_base import Files, colour_rows, make_files, write_rows

ENTRY = (sys.executable, "-c", "from adapters.main import main; main()")
SHORT = ("--lr", "0.02", "--rank", "4", "--alpha", "8", "--checkpoints", "1", "--max-steps", "3", "--epochs", "100")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("task"))


def branchline(*words: str, home: Path, succeeds: bool | None = True) -> subprocess.CompletedProcess[str]:
    found = subprocess.run([*ENTRY, *words], capture_output=True, text=True, env=environment(home), check=False)
    if succeeds is not None:
        assert (found.returncode == 0) == succeeds, found.stderr
    return found


def environment(home: Path) -> Mapping[str, str]:
    return {**os.environ, "BRANCHLINE_HOME": str(home), "OMP_NUM_THREADS": "1"}


def test_train_publishes_and_a_second_time_says_it_is_done_without_loading_torch(files: Files, tmp_path: Path) -> None:
    branchline("route", "create", "colour", home=tmp_path)
    out = tmp_path / "out"
    words = ("train", "colour", *files.arguments, *SHORT, "--out", str(out), "--publish", "--json")
    first = json.loads(branchline(*words, home=tmp_path).stdout)
    assert first["version"] == "colour@1"
    assert first["steps"] == 3
    code = "import sys; from adapters.main import cli; cli(sys.argv[1:], standalone_mode=False); assert 'torch' not in sys.modules"
    again = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment(tmp_path), check=True
    )
    assert "already trained" in again.stderr
    assert json.loads(again.stdout) == first
    other = branchline(*words, "--seed", "1", home=tmp_path, succeeds=False)
    assert (other.returncode, "other settings, base or data" in other.stderr) == (1, True)

    more = write_rows(tmp_path / "more.jsonl", colour_rows(12, start=3000))
    evaluated = branchline(
        *("evaluate", "colour@1", "--base", str(files.base), "--eval", str(more), "--out", str(tmp_path / "fresh")),
        home=tmp_path,
    )
    assert "target" in evaluated.stdout
    attached = branchline("adapter", "evidence", "colour@1", str(tmp_path / "fresh/evidence.json"), home=tmp_path)
    assert "attached to colour@1" in attached.stdout


def test_a_yaml_file_holds_the_same_settings_and_options_overrule_it(files: Files, tmp_path: Path) -> None:
    settings = {**files.values, "base": str(files.base), "out": str(tmp_path / "out"), "max_steps": 50, "lr": 0.01}
    file = tmp_path / "colour.yaml"
    file.write_text(json.dumps(settings, default=str).replace('"guardrails"', '"guardrails"'), encoding="utf-8")
    found = branchline("train", str(file), "--max-steps", "2", "--json", home=tmp_path)
    record = json.loads(found.stdout)
    assert (record["name"], record["steps"], record["settings"]["lr"]) == ("colour", 2, 0.01)


def test_ctrl_c_leaves_a_state_from_which_the_same_command_goes_on_and_finishes(files: Files, tmp_path: Path) -> None:
    words = ("train", "colour", *files.arguments, *SHORT[:-4], "--max-steps", "60", "--epochs", "200")
    words = (*words, "--out", str(tmp_path / "out"))
    with subprocess.Popen([*ENTRY, *words], stderr=subprocess.PIPE, text=True, env=environment(tmp_path)) as process:
        assert process.stderr is not None
        assert "loading base" in process.stderr.readline()
        while process.poll() is None and not (tmp_path / "out/work/base-").parent.is_dir():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out/run.json").exists()
    finished = branchline(*words, "--json", home=tmp_path)
    assert json.loads(finished.stdout)["steps"] == 60


BAD: Sequence[tuple[Sequence[str], int, str]] = [
    (("--rank", "0"), 2, "rank: Input should be greater than or equal to 1, found '0'"),
    (("--data", "nowhere.jsonl"), 2, "data: no file 'nowhere.jsonl'"),
    (("--base", "nowhere"), 1, "no base folder 'nowhere'|neither a folder nor in the local hub cache"),
    (("--target", "nonsense"), 1, "no linear layer named nonsense"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD)
def test_a_wrong_setting_gives_one_clear_line(
    files: Files, tmp_path: Path, words: Sequence[str], code: int, message: str
) -> None:
    refused(files, tmp_path, words, code, message)


def test_rows_that_are_no_rows_give_one_clear_line(files: Files, tmp_path: Path) -> None:
    empty, malformed = tmp_path / "empty.jsonl", tmp_path / "malformed.jsonl"
    empty.write_text("", encoding="utf-8")
    malformed.write_text('{"input": "a", "output": "b"}\nnot json\n', encoding="utf-8")
    refused(files, tmp_path, ("--data", str(empty)), 1, "empty.jsonl holds no rows")
    refused(files, tmp_path, ("--data", str(malformed)), 1, "malformed.jsonl: line 2: not UTF-8 JSON")


def test_a_base_without_a_chat_template_gives_one_clear_line(files: Files, tmp_path: Path) -> None:
    base = tmp_path / "plain"
    base.mkdir()
    for file in files.base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").unlink()
    refused(files, tmp_path, ("--base", str(base)), 1, "no chat template")


def refused(files: Files, tmp_path: Path, words: Sequence[str], code: int, message: str) -> None:
    """The last option given counts, so `words` overrule the good arguments before them."""
    out = ("--out", str(tmp_path / "out"))
    found = branchline("train", "colour", *files.arguments, *SHORT, *out, *words, home=tmp_path, succeeds=False)
    news = [line for line in found.stderr.splitlines() if line and not line.startswith("loading base")]
    assert found.returncode == code
    assert len(news) == 1, found.stderr
    assert any(part in news[0] for part in message.split("|")), news[0]
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
