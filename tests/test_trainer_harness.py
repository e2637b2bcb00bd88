"""Tasks of lm-evaluation-harness as guardrails: local documents, a tiny base, no hub."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from adapters.evidence import parse_evidence
from tests.trainer_base import lora_model, make_files
from trainer.cli import evaluate
from trainer.comparison import Compared
from trainer.errors import HarnessUnusable
from trainer.harness import Suites, compare_suites
from trainer.model import save_adapter

DOCUMENTS = 12
CHOICES = ("red", "blue and green", "pink")
NLL_TOLERANCE = 1e-4  # nats per token, float32 against float32 in another order of additions

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{answer}
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("harness")


@pytest.fixture(scope="module")
def model(root: Path) -> Any:
    """The tiny base with an adapter that says something else."""
    return lora_model(make_files(root).base, effect=0.3)


@pytest.fixture(scope="module")
def harness(root: Path) -> Iterator[None]:
    """The harness, with a data set cache of its own."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install 'branchline[harness]'")
    datasets: Any = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        yield


@pytest.fixture(scope="module")
def chosen(harness: None, model: Any, root: Path) -> Compared:
    """Base and adapter on a task of choices."""
    (found,) = compare(model, write_task(root))
    return found


def write_task(root: Path, *, kind: str = "multiple_choice", metric: str = "acc", repeat: bool = False) -> Path:
    """A task's YAML and its documents: DOCUMENTS questions whose right choice goes round, the last one twice."""
    name = f"colours_{kind}_{metric}"
    documents = [{"question": f"colour {n}?", "choices": CHOICES, "gold": n % 3} for n in range(DOCUMENTS)]
    documents += documents[-1:] if repeat else []
    rows = root / f"{name}.jsonl"
    rows.write_text("".join(json.dumps(one) + "\n" for one in documents), encoding="utf-8")
    chosen = 'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"'
    answer = chosen if kind == "multiple_choice" else 'doc_to_target: "{{choices[gold]}}"'
    file = root / f"{name}.yaml"
    file.write_text(TASK.format(name=name, rows=rows, kind=kind, answer=answer, metric=metric), encoding="utf-8")
    return file


def compare(model: Any, *files: Path | str, limit: int | None = None) -> list[Compared]:
    loaded, lora = model
    return compare_suites(Suites(tuple(str(file) for file in files), limit), lora, loaded)


def logprobs(model: Any, question: str) -> list[tuple[float, int]]:
    """Brute force: (log p in nats, tokens) of each choice in a pass of its own, the end of the turn not counted."""
    loaded, lora = model
    context = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    found = []
    for choice in CHOICES:
        prompt = loaded.tokenizer(context)["input_ids"]
        whole = loaded.tokenizer(context + choice)["input_ids"]
        with torch.no_grad():
            said = lora(input_ids=torch.tensor([whole])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        picked = said.gather(1, torch.tensor(whole[len(prompt) :])[:, None])
        found.append((float(picked.sum()), len(picked)))
    return found


def test_choices_and_nll_are_those_of_a_pass_per_choice_for_base_and_adapter(model: Any, chosen: Compared) -> None:
    found = chosen.evaluation
    assert (found.name, found.metric, len(found.items)) == ("colours_multiple_choice_acc", "choice", DOCUMENTS)
    for number, item in enumerate(found.items):
        right = number % 3
        adapter = logprobs(model, f"colour {number}?")
        with model[1].disable_adapter():
            base = logprobs(model, f"colour {number}?")
        for said, score in ((base, item.base), (adapter, item.adapter)):
            best = max(range(3), key=lambda choice: said[choice][0])
            assert score.score == float(best == right)
            assert score.tokens == said[right][1]
            assert score.nll == pytest.approx(-said[right][0] / said[right][1], abs=NLL_TOLERANCE)
    assert len({one.nll for item in found.items for one in (item.base, item.adapter)}) > DOCUMENTS


@pytest.mark.usefixtures("harness")
def test_generated_answers_are_scored_and_their_nll_is_that_of_the_right_answer(model: Any, root: Path) -> None:
    (found,) = compare(model, write_task(root, kind="generate_until", metric="exact_match"))
    assert found.evaluation.metric == "exact_match"
    assert [example.answer for example in found.dataset.examples] == [CHOICES[n % 3] for n in range(DOCUMENTS)]
    for number, item in enumerate(found.evaluation.items):
        total, tokens = logprobs(model, f"colour {number}?")[number % 3]
        assert item.adapter.nll == pytest.approx(-total / tokens, abs=NLL_TOLERANCE)
    assert len({one.output for one in found.adapter}) > 1, "the model must say different things"
    assert [one.output for one in found.adapter] != [one.output for one in found.base]


def test_the_same_documents_are_the_same_file_wherever_they_lie_and_each_counts_once(
    model: Any, chosen: Compared, tmp_path: Path
) -> None:
    """A limit makes it another file. Nothing is drawn from torch's own generator on the way."""
    before = torch.get_rng_state()
    (moved,) = compare(model, write_task(tmp_path, repeat=True))
    (fewer,) = compare(model, write_task(tmp_path), limit=5)
    assert torch.equal(before, torch.get_rng_state())
    assert moved.evaluation == chosen.evaluation
    assert len(fewer.evaluation.items) == 5
    assert fewer.evaluation.file_digest != chosen.evaluation.file_digest


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(("text", "said"), [("{", "cannot read"), ("dataset_path: json", "names no task")])
def test_a_file_that_is_no_task_is_refused(model: Any, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "task.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(HarnessUnusable, match=f"^task.yaml {said}|^{said} task.yaml"):
        compare(model, tmp_path / "task.yaml")


@pytest.mark.usefixtures("harness")
def test_a_task_with_another_score_is_refused_with_what_it_has(model: Any, tmp_path: Path) -> None:
    with pytest.raises(HarnessUnusable, match="scored by acc_norm, expected one of acc, exact_match, f1"):
        compare(model, write_task(tmp_path, metric="acc_norm"), limit=2)


@pytest.mark.usefixtures("harness")
def test_a_name_the_harness_does_not_know_is_refused(model: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the harness's own thousands of tasks, which take seconds to list."""
    tasks = importlib.import_module("lm_eval.tasks")
    manager = tasks.TaskManager
    monkeypatch.setattr(tasks, "TaskManager", lambda include_path, include_defaults: manager(None, include_path, False))
    with pytest.raises(HarnessUnusable, match="knows no task nonsense"):
        compare(model, "nonsense", write_task(root))


def test_without_the_harness_the_message_says_how_to_install_it(
    model: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(HarnessUnusable, match=r"pip install 'branchline\[harness\]'"):
        compare(model, write_task(root))


@pytest.mark.usefixtures("harness")
def test_evaluate_takes_suites_as_guardrails_into_the_evidence(model: Any, root: Path, tmp_path: Path) -> None:
    save_adapter(model[1], tmp_path / "colour", "tiny")
    files = ("--base", str(root / "tiny"), "--eval", str(root / "eval.jsonl"), "--out", str(tmp_path / "out"))
    words: Sequence[str] = (str(tmp_path / "colour"), *files, "--suite", str(write_task(root)), "--suite-limit", "11")
    done = CliRunner().invoke(evaluate, [*words, "--home", str(tmp_path / "home"), "--json"])
    assert done.exit_code == 0, done.stderr
    evidence = parse_evidence((tmp_path / "out" / "evidence.json").read_bytes())
    (suite,) = evidence.guardrails
    assert (suite.name, suite.metric, len(suite.items)) == ("colours_multiple_choice_acc", "choice", 11)
    (shown,) = json.loads(done.stdout)["result"]["guardrails"]
    assert shown["items"] == 11
    assert "colour 0?" in (tmp_path / "out" / "evidence.html").read_text(encoding="utf-8")
