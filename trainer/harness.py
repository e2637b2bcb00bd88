"""Tasks of lm-evaluation-harness as guardrails: its prompts and its scoring, base and adapter on the same documents.

The harness (Gao et al. 2021, doi 10.5281/zenodo.5371628) is optional and imported only here. Its own model class asks
the very model the trainer has in memory, with the base's chat template, as an engine would be asked.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from adapters.evidence import Evaluation, Item, Metric, Score
from adapters.rows import Message, sha256_json

from .comparison import Compared
from .data import Dataset, Encoded
from .errors import HarnessUnusable
from .evaluate import Scored
from .model import LoadedBase

BATCH_ROWS = 16
# Which of the harness's scores is taken, the first that a task has, and what evidence calls it.
_METRICS: Mapping[str, Metric] = {"acc": "choice", "exact_match": "exact_match", "f1": "token_f1"}

Sample = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Suites:
    """Harness tasks, each a name it knows or a YAML file, and how many documents of each are asked (`None`: all)."""

    tasks: tuple[str, ...]
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class _Answered:
    """One document as one model answered it: the sample that the harness logs, and the NLL of the right answer."""

    sample: Sample
    nll: float
    tokens: int


def compare_suites(suites: Suites, model: Any, loaded: LoadedBase) -> list[Compared]:
    """Each task with the adapter that `model` carries and without it, paired by document.

    A task's score is its `acc`, `exact_match` or `f1`. Beside it stands the NLL of the right answer, in nats per token,
    which the checkpoint rule and the promotion gate judge by. Documents carry no routing decisions. Raises
    `HarnessUnusable` where the harness is missing, does not know a task, or scores it by something else.
    """
    lm, names, manager = _open(suites, loaded)
    with model.disable_adapter():
        base = _run(lm, names, manager, suites.limit)
    adapter = _run(lm, names, manager, suites.limit)
    return [_compared(name, base[name], adapter[name]) for name in base]


def _open(suites: Suites, loaded: LoadedBase) -> tuple[Any, list[str], Any]:
    """The harness's view of the model, the names of the tasks, and where it finds them."""
    try:
        models = importlib.import_module("lm_eval.models.huggingface")
        tasks = importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise HarnessUnusable(
            f"--suite needs lm-evaluation-harness, and {error.name!r} is not installed",
            hint="install it with `pip install 'branchline[harness]'`",
        ) from error
    importlib.import_module("logging").getLogger("lm_eval").setLevel("ERROR")
    files = {text: Path(text) for text in suites.tasks if Path(text).is_file()}
    names = [_task_name(files[text]) if text in files else text for text in suites.tasks]
    folders = sorted({str(file.resolve().parent) for file in files.values()})
    manager = tasks.TaskManager(include_path=folders or None, include_defaults=len(files) < len(names))
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        raise HarnessUnusable(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}", hint="give a name it lists, or a YAML file"
        )
    lm = models.HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=BATCH_ROWS)
    return lm, names, manager


def _task_name(file: Path) -> str:
    """The name in a task's YAML; its other values may carry tags that only the harness reads."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        found = {key.value: value.value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise HarnessUnusable(f"cannot read {file.name}: {' '.join(str(error).split())}", hint="see --suite") from error
    name = found.get("task")
    if not isinstance(name, str) or not name:
        raise HarnessUnusable(f"{file.name} names no task", hint="a task's YAML has a line `task: NAME`")
    return name


def _run(lm: Any, names: Sequence[str], manager: Any, limit: int | None) -> dict[str, list[_Answered]]:
    """Every task's documents, each once and in the harness's order, under the first of a task's filters."""
    evaluator = importlib.import_module("lm_eval.evaluator")
    results = evaluator.simple_evaluate(
        lm,
        tasks=list(names),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=False,
        random_seed=None,  # the seeds it would set are the process's own; few-shot examples keep theirs
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    answered: dict[str, list[_Answered]] = {}
    for name, samples in results["samples"].items():
        first: dict[str, Sample] = {}
        for sample in samples:
            first.setdefault(sample["doc_hash"], sample)
        answered[name] = _with_nll(lm, list(first.values()))
    return answered


def _with_nll(lm: Any, samples: Sequence[Sample]) -> list[_Answered]:
    instance = importlib.import_module("lm_eval.api.instance").Instance
    pairs = [(_context(sample), _target(sample)) for sample in samples]
    requests = [instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    logprobs = [logprob for logprob, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    lengths = [max(1, len(lm._encode_pair(*pair)[1])) for pair in pairs]
    return [
        _Answered(sample, -logprob / length, length)
        for sample, logprob, length in zip(samples, logprobs, lengths, strict=True)
    ]


def _context(sample: Sample) -> str:
    return str(sample["arguments"][0][0])


def _target(sample: Sample) -> str:
    """The right answer as the harness would continue the context with it; of several right ones the first."""
    target = sample["target"]
    target = target[0] if isinstance(target, list) else target
    offered = [one[1] for one in sample["arguments"] if isinstance(one[1], str)]
    if isinstance(target, int) and offered:
        return str(offered[target])
    return next((one for one in offered if one.strip() == str(target).strip()), str(target))


def _compared(name: str, base: Sequence[_Answered], adapter: Sequence[_Answered]) -> Compared:
    metric = _metric(name, base[0].sample)
    mine, theirs = [_scored(metric, one) for one in base], [_scored(metric, one) for one in adapter]
    examples = tuple(_example(one.sample) for one in base)
    # What was asked, without the paths a task's own settings hold: the same documents and prompts are the same file.
    asked = [[one.sample[key] for key in ("doc_hash", "prompt_hash", "target_hash")] for one in base]
    digest = sha256_json(["lm-eval", name, metric, asked])
    items = tuple(
        Item(example.row, first.score, second.score)
        for example, first, second in zip(examples, mine, theirs, strict=True)
    )
    evaluation = Evaluation(name, digest, _METRICS[metric], items)
    return Compared(evaluation, Dataset(name, digest, examples, {}), mine, theirs)


def _metric(name: str, sample: Sample) -> str:
    found = next((metric for metric in _METRICS if isinstance(sample.get(metric), Real)), None)
    if found is None:
        raise HarnessUnusable(
            f"task {name} is scored by {', '.join(sample['metrics'])}, expected one of {', '.join(_METRICS)}",
            hint="choose another task",
        )
    return found


def _scored(metric: str, answered: _Answered) -> Scored:
    value = min(1.0, max(0.0, float(answered.sample[metric])))
    said = json.dumps(answered.sample["filtered_resps"], ensure_ascii=False, default=str)
    return Scored(Score(value, answered.nll, answered.tokens), said)


def _example(sample: Sample) -> Encoded:
    """The document as an item to show; its tokens stay with the harness."""
    return Encoded(sample["doc_hash"], (), (), (Message("user", _context(sample)),), _target(sample))
