"""`branchline merge` as people run it: exit codes, publication with parents, the sweep over scales."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.base import find_base
from adapters.home import Home
from adapters.manifests import weights_digest
from tests.adapter_folders import evaluation
from tests.trainer_base import SHAPE, Files, colour_rows, make_files, write_rows
from tests.trainer_command import Branchline, make_branchline
from trainer.config import TrainConfig
from trainer.data import halves, read_evaluation
from trainer.errors import Interrupted
from trainer.folder import RunFolder
from trainer.merging.config import Input, MergeSettings
from trainer.merging.inputs import find_sources
from trainer.merging.run import run_merge
from trainer.merging.sweep import SCALES, ScalePoint, Sweep, read_selecting
from trainer.model import WEIGHTS_FILE, add_lora, load_base, save_adapter
from trainer.task import read_task


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    return make_files(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def folders(files: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the base, with an effect."""
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(files.base, root / name, seed) for seed, name in enumerate(("red", "blue"))}


@pytest.fixture
def branchline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Branchline:
    return make_branchline(tmp_path / "home", monkeypatch, capsys)


def make_adapter(base: Path, folder: Path, seed: int, effect: float = 0.1) -> Path:
    loaded = load_base(find_base(str(base)))
    torch.manual_seed(seed)
    model: Any = add_lora(loaded, SHAPE)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=effect)
    save_adapter(model, folder, loaded.base.id)
    return folder


def test_versions_and_folders_merge_into_a_version_that_names_its_parents(
    files: Files, folders: dict[str, Path], tmp_path: Path, branchline: Branchline
) -> None:
    branchline("route", "create", "colour")
    added = branchline("adapter", "add", "colour", str(folders["red"]), "--base", str(files.base), "--json")
    out = tmp_path / "out"
    words: tuple[str, ...] = (
        "merge",
        "colour@1=0.5",
        f"{folders['blue']}=-0.5",
        "--method",
        "sum",
        "--base",
        str(files.base),
    )
    words = (*words, "--out", str(out), "--publish", "colour", "--json")
    record = json.loads(branchline(*words).stdout)
    assert (record["version"], record["rank"], record["energy_lost"]) == ("colour@2", 8, {"max": 0.0, "mean": 0.0})
    shown = json.loads(branchline("adapter", "show", "colour@2", "--json").stdout)
    assert shown["parents"] == [json.loads(added.stdout)["engine_name"], weights_digest(folders["blue"])]
    assert shown["digest"] == record["weights_digest"] == weights_digest(out / "adapter")
    assert shown["training"]["settings"]["method"] == "sum"
    assert [one["weight"] for one in shown["training"]["inputs"]] == [0.5, -0.5]
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "run.json"]
    for file in (out / "run.json", out / "adapter/adapter_config.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8")
        assert str(files.base.parent) not in file.read_text(encoding="utf-8")
    again = branchline(*words)
    assert "already merged" in again.stderr
    assert json.loads(again.stdout) == record
    assert "other settings, base or data" in branchline(*words, "--rank", "2", code=1).stderr


def test_a_merged_version_is_refused_without_evidence_and_gets_it_like_any_other(
    files: Files, folders: dict[str, Path], tmp_path: Path, branchline: Branchline
) -> None:
    branchline("route", "create", "colour")
    words = ("merge", str(folders["red"]), str(folders["blue"]), "--method", "soup", "--base", str(files.base))
    branchline(*words, "--out", str(tmp_path / "out"), "--publish", "colour")
    assert "no evidence" in branchline("route", "promote", "colour@1", code=1).stderr
    judge = ("--base", str(files.base), "--eval", str(files.eval), "--out", str(tmp_path / "evidence"))
    assert "target" in branchline("evaluate", "colour@1", *judge).stdout
    attached = branchline("adapter", "evidence", "colour@1", str(tmp_path / "evidence/evidence.json"))
    assert "attached to colour@1" in attached.stdout


def test_a_rank_says_what_energy_it_loses(
    files: Files, folders: dict[str, Path], tmp_path: Path, branchline: Branchline
) -> None:
    words = ("merge", *map(str, folders.values()), "--base", str(files.base), "--out", str(tmp_path / "out"))
    said = branchline(*words, "--method", "dare", "--drop", "0.5", "--rank", "4").stdout
    record = json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))
    assert f"{record['energy_lost']['max']:.2%} in the worst layer" in said
    assert 0 < record["energy_lost"]["mean"] < record["energy_lost"]["max"] < 1
    assert record["energy_lost"]["max"] == max(record["energy_lost_by_layer"].values())
    assert record["settings"] == {"drop": 0.5, "method": "dare", "rank": 4, "seed": 0, "sweep": False}


def test_an_exact_sum_that_no_engine_would_load_asks_for_a_rank(
    files: Files, folders: dict[str, Path], tmp_path: Path, branchline: Branchline
) -> None:
    """17 adapters of rank 4 need rank 68, engines load 64."""
    many = [str(shutil.copytree(folders["red"], tmp_path / f"adapter-{number}")) for number in range(17)]
    words = ("merge", *many, "--method", "sum", "--base", str(files.base), "--out", str(tmp_path / "out"))
    refused = branchline(*words, code=1)
    assert "the exact sum has rank 68, engines load up to 64" in refused.stderr
    assert "give --rank 64" in refused.stderr
    assert not (tmp_path / "out/adapter").exists()


# -- the sweep ---------------------------------------------------------------------------------------------------------


def test_a_sweep_takes_the_largest_scale_that_keeps_the_guardrail_and_writes_it(
    files: Files, tmp_path: Path, branchline: Branchline
) -> None:
    """The bound is put between the rises that a first sweep, which no scale can fail, finds at 0.6 and 0.7.

    The adapter is random and large: the rise grows with the scale.
    """
    folder = make_adapter(files.base, tmp_path / "large", 0, effect=0.5)
    words: tuple[str, ...] = ("merge", str(folder), "--method", "scale", "--sweep", "--base", str(files.base))
    words = (*words, "--eval", str(files.eval), "--guardrail", str(files.guardrail), "--threads", "1", "--json")
    loose = json.loads(branchline(*words, "--guardrail-bound", "1000", "--out", str(tmp_path / "loose")).stdout)
    assert loose["sweep"]["chosen"] == 1.0
    assert weights_digest(tmp_path / "loose/adapter") == weights_digest(folder)
    rises = {one["scale"]: one["guardrails"][0]["nll_rise_upper_bound"] for one in loose["sweep"]["scales"]}
    assert tuple(rises) == SCALES
    assert rises[0.6] < rises[0.7] < rises[0.8]
    bound = (rises[0.6] + rises[0.7]) / 2
    tight = json.loads(branchline(*words, "--guardrail-bound", str(bound), "--out", str(tmp_path / "tight")).stdout)
    assert tight["sweep"]["chosen"] == tight["inputs"][0]["weight"] == 0.6
    whole, part = (load_file(one / WEIGHTS_FILE) for one in (folder, tmp_path / "tight/adapter"))
    assert all(torch.equal(part[name], whole[name] * (0.6 if "lora_B" in name else 1)) for name in whole)


def test_the_largest_scale_that_keeps_its_guardrails_counts_even_where_a_smaller_one_does_not() -> None:
    """By the rise of every item in nats per token, against a bound of 0.02."""
    rises = {1.0: 0.05, 0.9: 0.01, 0.8: 0.03, 0.7: 0.01}
    points = [ScalePoint(scale, evaluation(), (evaluation(rise=rise),)) for scale, rise in rises.items()]
    assert Sweep(points, 0.02).chosen == 0.9
    assert Sweep(points, 0.005).chosen is None


def test_a_merge_that_is_asked_to_stop_stops_after_a_layer_and_leaves_no_adapter(
    files: Files, folders: dict[str, Path], tmp_path: Path
) -> None:
    class Impatient:
        stop_requested = True

        def say(self, text: str) -> None: ...

        def advance(self, what: str, done: float, total: float, note: str = "") -> None: ...

    base = find_base(str(files.base))
    sources = find_sources(Home.at(tmp_path / "home"), [Input(str(one)) for one in folders.values()], base)
    values = {"base": "tiny", "out": tmp_path / "out", "method": "soup"}
    with pytest.raises(Interrupted, match="after 1 of 14 layers"):
        run_merge(
            MergeSettings.model_validate(values), base, sources, "a" * 64, RunFolder(tmp_path / "out"), Impatient()
        )
    assert not (tmp_path / "out/adapter").exists()


def test_a_sweep_in_which_no_scale_keeps_the_guardrail_says_so_and_writes_no_adapter(
    files: Files, folders: dict[str, Path], tmp_path: Path, branchline: Branchline
) -> None:
    words: tuple[str, ...] = ("merge", str(folders["red"]), "--method", "scale", "--sweep", "--base", str(files.base))
    words = (*words, "--select", str(files.eval), "--guardrail", str(files.guardrail), "--guardrail-bound", "1e-9")
    refused = branchline(*words, "--out", str(tmp_path / "out"), code=1)
    assert "no scale of red down to 0.3 keeps every guardrail" in refused.stderr
    assert not (tmp_path / "out/adapter").exists()
    found = json.loads((tmp_path / "out/sweep.json").read_text(encoding="utf-8"))
    assert found["chosen"] is None
    assert len(found["scales"]) == len(SCALES)


def test_a_sweep_reads_the_rows_that_train_chooses_with_and_none_of_its_evidence(files: Files, tmp_path: Path) -> None:
    loaded = load_base(find_base(str(files.base)))
    task = read_task(TrainConfig.model_validate({**files.values, "out": tmp_path}), loaded)
    values = {"base": "tiny", "out": tmp_path, "method": "scale", "sweep": True, "guardrails": [files.guardrail]}
    settings = MergeSettings.model_validate({**values, "eval": files.eval})
    found = read_selecting(settings, loaded)
    assert [one.rows for one in found.datasets] == [one.rows for one in task.selecting.datasets]
    select = write_rows(tmp_path / "select.jsonl", colour_rows(12, start=2000))
    found = read_selecting(MergeSettings.model_validate({**values, "select": select}), loaded)
    assert len(found.target.examples) == 12
    [guardrail] = found.guardrails
    whole = read_evaluation(files.guardrail, "general", loaded.tokenizer, loaded.end_tokens, 256)
    assert guardrail.rows == halves(whole)[0].rows


# -- refusals ----------------------------------------------------------------------------------------------------------

WRONG: Sequence[tuple[Sequence[str], Sequence[str]]] = [
    (("red", "--method", "scale"), ["scale takes either a weight, INPUT=WEIGHT, or --sweep"]),
    (("red=1", "blue=2", "--method", "scale"), ["scale takes 1 input, found 2"]),
    (("red", "--method", "sum"), ["sum takes 2 inputs or more, found 1"]),
    (("red", "red", "--method", "soup"), ["an input is given twice"]),
    (("red=2", "blue", "--method", "soup"), ["soup is the plain mean and takes no weights"]),
    (
        ("red=much", "blue=1e9", "--method", "ties", "--density", "2", "--eval", "nowhere.jsonl"),
        ["the weight is 'much'", "the weight is '1e9'", "density: ", "eval: no file"],
    ),
    (("red", "blue", "--method", "sum", "--drop", "0.5"), ["drop: not read by --method sum"]),
    (("red", "--method", "scale", "--sweep"), ["--sweep needs --select", "--sweep needs --guardrail"]),
    (("red", "blue", "--method", "mean"), ["method: Input should be"]),
]


@pytest.mark.parametrize(("words", "problems"), WRONG)
def test_wrong_usage_gives_every_problem_in_one_line(
    folders: dict[str, Path],
    files: Files,
    tmp_path: Path,
    branchline: Branchline,
    words: Sequence[str],
    problems: list[str],
) -> None:
    named = [str(folders[word]) if word in folders else word for word in words]
    refused = branchline("merge", *named, "--base", str(files.base), "--out", str(tmp_path / "out"), code=2)
    [line] = refused.stderr.splitlines()
    assert [one for one in problems if one not in line] == []
    assert not (tmp_path / "out").exists()


def test_inputs_that_cannot_be_merged_give_every_problem_of_every_one(
    files: Files, folders: dict[str, Path], tmp_path: Path, branchline: Branchline
) -> None:
    config = json.loads((folders["red"] / "adapter_config.json").read_text(encoding="utf-8"))
    changes = {"dora": {"use_dora": True, "bias": "all"}, "patterned": {"alpha_pattern": {"q_proj": 2}}}
    changes["foreign"] = {"base_model_name_or_path": "another"}
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS_FILE).write_bytes((folders["red"] / WEIGHTS_FILE).read_bytes())
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config | change), encoding="utf-8")
    words = [str(tmp_path / name) for name in changes]
    words += ["nowhere", "colour@7", "--method", "soup", "--base", str(files.base), "--out", str(tmp_path / "out")]
    [line] = branchline("merge", *words, code=1).stderr.splitlines()
    for problem in (
        "dora: use_dora: DoRA is not plain LoRA",
        "dora: bias is 'all'",
        "patterned: alpha_pattern scales modules apart",
        "foreign: adapter_config.json names base 'another'",
        "nowhere: ",
        "colour@7: ",
    ):
        assert problem in line
    assert not RunFolder(tmp_path / "out").out.exists()


def test_a_version_of_another_base_is_refused_by_its_fingerprint(
    files: Files, folders: dict[str, Path], tmp_path: Path, branchline: Branchline
) -> None:
    """The other base has the same name: only the fingerprint tells them apart."""
    other = tmp_path / "other/tiny"
    other.mkdir(parents=True)
    for file in files.base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    branchline("route", "create", "colour")
    branchline("adapter", "add", "colour", str(folders["red"]), "--base", str(files.base))
    words = ("merge", "colour@1=0.5", "--method", "scale", "--base", str(other), "--out", str(tmp_path / "out"))
    assert "colour@1: belongs to base tiny (" in branchline(*words, code=1).stderr
