"""Whole sequences on a tiny real base: what R holds, what is shared, resumed, routed and refused."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pytest
import torch
import yaml
from click.testing import CliRunner

from adapters.main import cli
from adapters.rows import text_digest
from tests.sequence_rows import ANSWERS, ARMS, make_plan, prepare, routes_of, run_all, texts, write_decisions
from tests.trainer_base import write_rows
from tests.trainer_runs import Watcher
from trainer.errors import ConfigInvalid, DecisionsInvalid, Interrupted, LeakFound
from trainer.folder import read_json, write_text
from trainer.sequences.config import SequenceConfig, read_sequence
from trainer.sequences.report import summarise_sequence
from trainer.sequences.run import SequenceRun, oracle_adapter, routed_adapter
from trainer.sequences.stage import acting_methods


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    torch.set_num_threads(1)
    return make_plan(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def finished(plan: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> SequenceRun:
    run = prepare(plan, tmp_path_factory.mktemp("sequence"))
    run_all(run, (0, 1))
    return run


def row(run: SequenceRun, arm: str, stage: int, seed: int = 0) -> Any:
    found = read_json(run.folder.row(arm, seed, stage))
    assert found is not None
    return found


def test_isolated_adapters_keep_what_one_shared_adapter_forgets_and_replay_keeps_some(finished: SequenceRun) -> None:
    found: Any = summarise_sequence(finished.config, finished.folder)
    kept = {name: arm["summary"]["oracle"]["exact"].get("retention") for name, arm in found["arms"].items()}
    assert kept["isolated"]["mean"] == 1.0
    assert kept["sequential"]["mean"] < 0.5
    assert kept["sequential"]["mean"] < kept["replay"]["mean"] < 1.0
    learned = found["arms"]["sequential"]["summary"]["oracle"]["exact"]["learned"]
    assert learned["mean"] > 0.9
    assert learned["seeds"] == 2


def test_joint_training_has_one_row_with_every_task_and_the_tokens_of_all(finished: SequenceRun) -> None:
    assert read_json(finished.folder.row("joint", 0, 2)) is None
    joint = row(finished, "joint", 3)
    assert fmean(joint["oracle"]["exact"]) > 0.8
    alone = row(finished, "sequential", 1)["training"]["tokens"]
    assert joint["training"]["tokens"] == pytest.approx(3 * alone, rel=0.05)


def test_arms_that_agree_so_far_share_their_stages(finished: SequenceRun) -> None:
    # Per seed 3 of sequential and 2 more of isolated, whose first stage is sequential's; once 2 of replay, 1 of joint.
    assert len(list(finished.folder.stages.iterdir())) == 2 * (3 + 2) + 2 + 1
    first = {row(finished, arm, 1)["stages"][0] for arm in ("sequential", "isolated", "replay")}
    assert len(first) == 1
    assert len({row(finished, arm, 2)["stages"][1] for arm in ("sequential", "isolated", "replay")}) == 3


def test_on_a_first_task_only_methods_that_act_without_a_past_count(plan: dict[str, object]) -> None:
    methods = ["replay", "ewc:weight=3", "si:weight=7", "kl:weight=2"]
    config = read_sequence({**plan, "arms": [{"name": "all", "mode": "shared", "methods": methods}]})
    settings = config.training(config.arms[0], config.tasks[:1], 0, Path("out"))
    first = acting_methods(settings, first=True).methods
    assert [(one.method, one.weight) for one in first if one.method in ("si", "kl")] == [("si", 1.0), ("kl", 2.0)]
    assert len(first) == 2
    assert acting_methods(settings, first=False) == settings


def test_each_row_of_the_routed_column_is_answered_by_the_adapter_it_was_sent_to(finished: SequenceRun) -> None:
    """Of red's 16 rows 4 go to the base and 4 to blue's adapter, which answers wrongly: 8 of 16 are right."""
    red = finished.data.tasks[0].judged.examples
    for stage in (1, 2, 3):
        found = row(finished, "isolated", stage)["routed"]
        folders = {
            colour: finished.folder.stages / row(finished, "isolated", number)["stages"][-1][:20] / "adapter"
            for number, colour in enumerate(list(ANSWERS)[:stage], start=1)
        }
        answers = [
            finished.scores.score(folders.get(route or ""), [item], "by hand")[0]
            for item, route in zip(red, routes_of("red", stage), strict=True)
        ]
        assert found["exact"][0] == fmean(one.exact for one in answers) == 0.5
        assert found["nll"][0] == pytest.approx(fmean(one.nll for one in answers), rel=1e-4)
    assert row(finished, "isolated", 3)["routed"]["exact"][1] == 0.75
    assert row(finished, "isolated", 1)["routed"]["exact"][1] == 0.0


def test_rows_sent_to_any_learned_task_reach_the_one_shared_adapter(finished: SequenceRun) -> None:
    oracle, routed = (row(finished, "sequential", 2)[way]["nll"][0] for way in ("oracle", "routed"))
    base: Any = read_json(finished.folder.base)
    shared = [one.nll for one in finished.scores.score(_last(finished, 2), finished.data.tasks[0].judged.examples, "")]
    own = [one.nll for one in finished.scores.score(None, finished.data.tasks[0].judged.examples, "")]
    assert oracle == pytest.approx(fmean(shared))
    assert base["oracle"]["nll"][0] == pytest.approx(fmean(own))
    assert routed == pytest.approx(fmean([*own[:4], *shared[4:]]))


def test_a_guardrail_is_reported_with_the_adapter_forced_on_and_routed(
    plan: dict[str, object], finished: SequenceRun, tmp_path: Path
) -> None:
    """Of 8 rows 2 are sent to red and 6 to the base: routed, only those 2 can rise. One without decisions has none."""
    asked = [f"repeat {number}" for number in range(8)]
    shutil.copytree(finished.folder.stages, tmp_path / "out/stages")
    files = [
        write_rows(tmp_path / "known.jsonl", [(one, "1") for one in asked]),
        write_rows(tmp_path / "unknown.jsonl", [("elsewhere", "1")]),
    ]
    decisions = write_decisions(tmp_path / "decisions.jsonl", 3)
    sent = [{"row": text_digest(one), "route": "red" if at < 2 else None} for at, one in enumerate(asked)]
    lines = [json.dumps({**one, "score": 0.5, "classifier": "stage 3"}) + "\n" for one in sent]
    decisions.write_text(decisions.read_text() + "".join(lines), encoding="utf-8")
    arms = [{"name": "isolated", "mode": "isolated", "seeds": [0]}]
    named = {"arms": arms, "guardrails": [str(file) for file in files], "decisions": [str(decisions)]}
    run = prepare({**plan, **named}, tmp_path / "out")
    run_all(run, (0,))
    last = row(run, "isolated", 3)
    red, green = (tmp_path / "out/stages" / last["stages"][at][:20] / "adapter" for at in (0, 2))
    rows = run.data.guardrails[0].examples
    rises = {}
    for name, adapter in (("red", red), ("green", green)):
        pairs = zip(run.scores.score(adapter, rows, ""), run.scores.score(None, rows, ""), strict=True)
        rises[name] = [after.nll - before.nll for after, before in pairs]
    assert last["guardrail_rise"]["known"] == pytest.approx(fmean(rises["green"]))
    assert last["guardrail_rise_routed"] == {"known": pytest.approx(sum(rises["red"][:2]) / 8), "unknown": None}
    assert rises["red"][0] != 0


def _last(run: SequenceRun, stage: int) -> Path:
    identity: str = row(run, "sequential", stage)["stages"][-1]
    return run.folder.stages / identity[:20] / "adapter"


def test_what_answers_a_task_with_perfect_routing_and_with_decisions() -> None:
    first, second = Path("first"), Path("second")
    assert oracle_adapter("isolated", [first, second], 1) == second
    assert oracle_adapter("isolated", [first, second], 2) is None
    assert oracle_adapter("shared", [second, second], 2) == second
    names = ["red", "blue", "green"]
    assert routed_adapter([first, second], "blue", names) == second
    assert routed_adapter([first, second], "green", names) is None
    assert routed_adapter([first, second], "elsewhere", names) is None
    assert routed_adapter([first, second], None, names) is None


def test_an_interrupted_sequence_goes_on_to_the_same_matrix(
    plan: dict[str, object], finished: SequenceRun, tmp_path: Path
) -> None:
    arms = [arm for arm in finished.config.arms if arm.name == "replay"]
    run, interruptions = prepare(plan, tmp_path, Watcher(patience=20)), 0
    for _ in range(100):
        try:
            run.run(arms, (0,), lambda: None)
            break
        except Interrupted:
            interruptions += 1
            run = prepare(plan, tmp_path, Watcher(patience=20))
    assert interruptions > 3
    for stage in (1, 2, 3):
        mine, theirs = (row(one, "replay", stage) for one in (run, finished))
        for key in ("oracle", "routed", "anchor_kl", "stages"):
            assert mine[key] == theirs[key]


def test_a_finished_sequence_trains_and_scores_nothing_again(plan: dict[str, object], finished: SequenceRun) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.out.rglob("*") if path.is_file()}
    watcher = Watcher()
    run_all(prepare(plan, finished.folder.out, watcher), (0, 1))
    assert watcher.heard == []
    assert {path: path.stat().st_mtime_ns for path in finished.folder.out.rglob("*") if path.is_file()} == before


def test_rows_of_another_plan_are_in_no_report(plan: dict[str, object], finished: SequenceRun, tmp_path: Path) -> None:
    """What agrees stays: of the changed arm's two stages the first, and every other arm."""
    out = tmp_path / "out"
    shutil.copytree(finished.folder.out, out)
    arms = [{**arm, "methods": ["replay:share=0.2"]} if arm["name"] == "replay" else arm for arm in ARMS]
    run = prepare({**plan, "arms": arms}, out)
    run.run([], (0,), lambda: None)
    found: Any = summarise_sequence(run.config, run.folder)
    assert [name for name, arm in found["arms"].items() if not arm["finished"]] == ["replay"]
    assert len(found["arms"]["replay"]["seeds"]["0"]["stages"]) == 1


def test_another_answer_to_an_anchor_makes_another_stage_where_a_method_looks_back(
    plan: dict[str, object], tmp_path: Path
) -> None:
    """Anchors have the same prompts; the answers are read by methods too."""
    identities = []
    for answer in ("yes", "never"):
        dev = write_rows(tmp_path / f"{answer}.jsonl", [(text, answer) for text in texts("red", "dev")])
        tasks: Any = [dict(task) for task in cast("list[dict[str, str]]", plan["tasks"])]
        tasks[0]["dev"] = str(dev)
        run = prepare({**plan, "tasks": tasks}, tmp_path / "out")
        [replay] = [arm for arm in run.config.arms if arm.name == "replay"]
        first = run._plan(replay, 0, 1, [])
        identities.append((first.identity, run._plan(replay, 0, 2, [first]).identity))
    (one, two), (other, another) = identities
    assert one == other
    assert two != another


def test_each_stage_moves_the_answers_on_earlier_tasks_anchors(finished: SequenceRun) -> None:
    assert row(finished, "sequential", 1)["anchor_kl"] == {}
    moved = row(finished, "sequential", 3)["anchor_kl"]
    assert list(moved) == ["red", "blue"]
    assert all(value > 0 for value in moved.values())
    assert row(finished, "isolated", 3)["anchor_kl"] is None


def test_an_arm_that_diverges_is_noted_and_the_others_go_on(
    plan: dict[str, object], finished: SequenceRun, tmp_path: Path
) -> None:
    wild = {"name": "wild", "mode": "shared", "settings": {"alpha": 10**38}}  # the first gradient overflows
    calm = {"name": "base", "mode": "base"}
    run = prepare({**plan, "arms": [wild, calm]}, tmp_path)
    run_all(run, (0,))
    found: Any = summarise_sequence(run.config, run.folder)
    assert "diverged" in found["arms"]["wild"]["seeds"]["0"]["failed"]
    assert found["arms"]["wild"]["finished"] == 0
    assert found["arms"]["base"]["finished"] == 2


def test_an_arm_whose_mask_leaves_no_token_is_noted_and_the_others_go_on(
    plan: dict[str, object], tmp_path: Path
) -> None:
    strict = {"name": "strict", "mode": "shared", "methods": ["masking:threshold=1.000001"]}
    run = prepare({**plan, "arms": [strict, {"name": "base", "mode": "base"}]}, tmp_path)
    run_all(run, (0,))
    found: Any = summarise_sequence(run.config, run.folder)
    assert "every token's perplexity" in found["arms"]["strict"]["seeds"]["0"]["failed"]
    assert found["arms"]["base"]["finished"] == 2


def test_an_arm_may_tune_a_prompt_in_place_of_an_adapter(plan: dict[str, object], tmp_path: Path) -> None:
    tasks: Any = plan["tasks"]
    arm = {"name": "prompt", "mode": "shared", "prompt_tokens": 4, "settings": {"lr": 0.1}}
    run = prepare({**plan, "tasks": tasks[:1], "arms": [arm], "decisions": []}, tmp_path)
    run_all(run, (0,))
    base: Any = read_json(run.folder.base)
    assert row(run, "prompt", 1)["oracle"]["nll"][0] < 0.8 * base["oracle"]["nll"][0]


def test_a_method_on_the_update_is_refused_where_a_prompt_is_tuned(plan: dict[str, object]) -> None:
    arm = {"name": "prompt", "mode": "isolated", "prompt_tokens": 4, "methods": ["kl", "ewc", "si"]}
    with pytest.raises(ConfigInvalid, match="a tuned prompt has no ΔW for ewc, si"):
        read_sequence({**plan, "arms": [arm]})


def test_decisions_that_lack_judged_rows_are_refused(plan: dict[str, object], tmp_path: Path) -> None:
    short = write_decisions(tmp_path / "short.jsonl", 3, skip=2)
    with pytest.raises(DecisionsInvalid, match="2 of 16 rows of red eval"):
        prepare({**plan, "decisions": [str(short)]}, tmp_path / "out")


def test_a_row_that_judges_one_task_may_not_stand_in_the_data_of_another(
    plan: dict[str, object], tmp_path: Path
) -> None:
    tasks: Any = json.loads(json.dumps(plan["tasks"]))
    tasks[2]["data"] = str(write_rows(tmp_path / "leak.jsonl", [("red 2003?", "maybe"), ("green 1?", "maybe")]))
    with pytest.raises(LeakFound, match="red eval also stand in green data"):
        prepare({**plan, "tasks": tasks}, tmp_path / "out")


def test_a_judged_row_may_not_be_an_anchor_either(plan: dict[str, object], tmp_path: Path) -> None:
    tasks: Any = json.loads(json.dumps(plan["tasks"]))
    tasks[1]["dev"] = str(write_rows(tmp_path / "leak.jsonl", [("red 2003?", "no"), ("blue 1000?", "no")]))
    with pytest.raises(LeakFound, match="red eval also stand in blue dev"):
        prepare({**plan, "tasks": tasks}, tmp_path / "out")


def test_on_the_dev_split_half_is_scored_and_the_other_half_are_anchors(
    plan: dict[str, object], tmp_path: Path
) -> None:
    run = prepare({**plan, "split": "dev", "decisions": []}, tmp_path)
    for task in run.data.tasks:
        assert len(task.judged.rows) + len(task.anchors.rows) == 12
        assert not set(task.judged.rows) & set(task.anchors.rows)


def test_a_wrong_file_lists_every_problem() -> None:
    values = {
        "base": "tiny",
        "tasks": [{"name": "Red", "data": "none.jsonl", "eval": "none.jsonl"}],
        "arms": [{"name": "one", "mode": "sideways", "settings": {"lrr": 1, "seed": 3}}],
        "arm": 1,
    }
    with pytest.raises(ConfigInvalid) as caught:
        read_sequence(values)
    problems = "\n".join(caught.value.problems)
    for part in ("tasks.0.name", "tasks.0.dev is missing", "arms.0.mode", "unknown key 'arm'", "'lrr'", "sets 'seed'"):
        assert part in problems


def test_settings_of_an_arm_and_missing_files_are_problems_too(plan: dict[str, object]) -> None:
    arms = [{"name": "wide", "mode": "shared", "settings": {"rank": 0}}, {"name": "wide", "mode": "shared"}]
    with pytest.raises(ConfigInvalid, match="wide stands there twice"):
        read_sequence({**plan, "arms": arms})
    with pytest.raises(ConfigInvalid, match="arm wide: rank"):
        read_sequence({**plan, "arms": arms[:1]})
    with pytest.raises(ConfigInvalid, match="guardrails: no file"):
        read_sequence({**plan, "guardrails": ["none.jsonl"]})
    with pytest.raises(ConfigInvalid, match=r"2 files, expected 1 or one per task \(3\)"):
        read_sequence({**plan, "decisions": ["a", "b"]})


def test_the_command_reports_what_is_there_and_refuses_arms_that_are_not(
    plan: dict[str, object], finished: SequenceRun, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(plan), encoding="utf-8")
    shutil.copytree(finished.folder.out, out)
    shared = ["sequence", str(file), "--out", str(out), "--home", str(tmp_path / "home")]
    found = json.loads(CliRunner().invoke(cli, [*shared, "--report", "--json"]).stdout)
    matrix = found["arms"]["sequential"]["seeds"]["0"]["R"]["oracle"]["exact"]
    assert matrix[1:] == [row(finished, "sequential", stage)["oracle"]["exact"] for stage in (1, 2, 3)]
    assert json.loads((out / "sequence.json").read_text(encoding="utf-8")) == found
    refused = CliRunner().invoke(cli, [*shared, "--arm", "sequental"])
    assert refused.exit_code == 2
    assert "no such arm" in refused.stderr


def test_without_seeds_of_its_own_an_arm_has_the_sequences(plan: dict[str, object]) -> None:
    arms = [{"name": "few", "mode": "shared", "seeds": [7]}, {"name": "all", "mode": "shared"}]
    config: SequenceConfig = read_sequence({**plan, "arms": arms})
    assert [config.seeds_of(arm) for arm in config.arms] == [(7,), (0, 1)]


def _write_often(path: str, text: str) -> None:
    for _ in range(300):
        write_text(Path(path), text)


def test_two_processes_may_write_the_same_file_of_a_sequence(tmp_path: Path) -> None:
    shared = tmp_path / "sequence.json"
    start = multiprocessing.get_context("spawn")
    writers = [start.Process(target=_write_often, args=(str(shared), letter * 4096)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert shared.read_text() in ("a" * 4096, "b" * 4096)
    assert list(tmp_path.iterdir()) == [shared]
