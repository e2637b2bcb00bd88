"""Settings: all problems at once, and what makes two runs the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config import AssessConfig, TrainConfig, read_config, read_yaml
from trainer.errors import ConfigInvalid


@pytest.fixture
def values(tmp_path: Path) -> dict[str, object]:
    for name in ("data.jsonl", "eval.jsonl", "general.jsonl"):
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    files = {"data": tmp_path / "data.jsonl", "eval": tmp_path / "eval.jsonl"}
    return {"name": "sql", "base": "some-base", "out": tmp_path / "out", **files}


def problems(values: dict[str, object]) -> tuple[str, ...]:
    with pytest.raises(ConfigInvalid) as caught:
        read_config(TrainConfig, values)
    return caught.value.problems


def test_every_problem_is_reported_at_once(values: dict[str, object]) -> None:
    found = problems({**values, "rank": 0, "lr": "fast", "name": "auto", "schedule": "steep", "data": "nowhere.jsonl"})
    text = "\n".join(found)
    assert len(found) == 5
    for part in ("rank: ", "found 0", "lr: ", "'fast'", "'auto' is reserved", "steep", "data: no file 'nowhere.jsonl'"):
        assert part in text


def test_unknown_keys_are_refused_with_the_known_ones(values: dict[str, object]) -> None:
    [problem] = problems({**values, "learning_rate": 0.1})
    assert problem.startswith("unknown key 'learning_rate', known are ")
    assert " lr, " in problem


def test_missing_settings_are_named() -> None:
    assert problems({"name": "sql"}) == ("base is missing", "eval is missing", "out is missing", "data is missing")


def test_two_guardrails_of_one_name_are_refused(values: dict[str, object], tmp_path: Path) -> None:
    [problem] = problems({**values, "guardrails": [tmp_path / "data.jsonl", tmp_path / "data.jsonl"]})
    assert "two files of one name" in problem


def test_text_from_the_command_line_and_values_from_yaml_mean_the_same(values: dict[str, object]) -> None:
    typed = {"rank": 8, "lr": 0.001, "targets": ["q_proj"], "max_steps": 5}
    text = {"rank": "8", "lr": "1e-3", "targets": "q_proj", "max_steps": "5"}
    assert read_config(TrainConfig, {**values, **typed}) == read_config(TrainConfig, {**values, **text})


def test_a_yaml_file_is_read_and_anything_but_a_mapping_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: sql\nrank: 4\n", encoding="utf-8")
    assert read_yaml(file) == {"name": "sql", "rank": 4}
    for text in ("- a\n- b\n", "a: [", ""):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigInvalid):
            read_yaml(file)
    with pytest.raises(ConfigInvalid, match=r"cannot read none\.yaml"):
        read_yaml(tmp_path / "none.yaml")


def test_the_identity_is_of_settings_base_and_content_and_not_of_places(values: dict[str, object]) -> None:
    digests = {"data": "a" * 64}
    config = read_config(TrainConfig, values)
    identity = config.identity("f" * 64, digests)
    elsewhere = read_config(TrainConfig, {**values, "out": "elsewhere", "base": "./some-base", "threads": 3})
    assert elsewhere.identity("f" * 64, digests) == identity
    assert read_config(TrainConfig, {**values, "seed": 1}).identity("f" * 64, digests) != identity
    assert config.identity("e" * 64, digests) != identity
    assert config.identity("f" * 64, {"data": "b" * 64}) != identity


def test_evaluation_settings_are_checked_the_same_way(values: dict[str, object]) -> None:
    with pytest.raises(ConfigInvalid, match="part: "):
        read_config(AssessConfig, {key: values[key] for key in ("base", "eval", "out")} | {"part": "some"})
