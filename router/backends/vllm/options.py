"""How a managed engine is started: checked values, and which of vLLM's own flags may be passed through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigInvalid
from .sizing import RANKS

DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")  # vllm/config/model.py, ModelDType

_OURS = "Branchline sets it"
_LOOPBACK = "the engine listens on loopback only, on a port that Branchline picks"
_KEY = "Branchline gives the engine a random key by environment; a key on the command line is visible to every user"
_TEMPLATE = "adapters were trained with the base's own tokenizer and chat template"
_PARALLEL = "one engine has one API server and one copy of the weights; for more, run more engines (--engine)"
_RESERVED = {
    "--model": _OURS,
    "--served-model-name": _OURS,
    "--host": _LOOPBACK,
    "--port": _LOOPBACK,
    "--uds": _LOOPBACK,
    "--root-path": _LOOPBACK,
    "--grpc": _LOOPBACK,
    "--grpc-port": _LOOPBACK,
    "--ssl-keyfile": _LOOPBACK,
    "--ssl-certfile": _LOOPBACK,
    "--api-key": _KEY,
    "--middleware": "Branchline's guard has to be the outermost middleware",
    "--enable-lora": _OURS,
    "--no-enable-lora": "without LoRA no route has an adapter",
    "--lora-modules": "adapters come from the registry: use `branchline adapter add`",
    "--lora-target-modules": "an adapter would be applied only in part, without an error",
    "--max-loras": "use --max-loras of `branchline serve`",
    "--max-lora-rank": "use --max-lora-rank of `branchline serve`",
    "--max-cpu-loras": "use --max-cpu-loras of `branchline serve`",
    "--dtype": "use --dtype of `branchline serve`",
    "--max-model-len": "use --max-model-len of `branchline serve`",
    "--tensor-parallel-size": "use --tensor-parallel-size of `branchline serve`",
    "-tp": "use --tensor-parallel-size of `branchline serve`",
    "--chat-template": _TEMPLATE,
    "--tokenizer": _TEMPLATE,
    "--tokens-only": "it closes the OpenAI endpoints",
    "--headless": "it starts no API server",
    "--config": "a file of flags could hold any of those that Branchline sets",
    "--disable-log-stats": "by its counters a busy engine is told from one that hangs",
    "--api-server-count": _PARALLEL,
    "-asc": _PARALLEL,
    "--data-parallel-size": _PARALLEL,
    "-dp": _PARALLEL,
}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """A managed engine. Raises `ConfigInvalid` naming every problem.

    `python` is the Python whose environment holds vLLM and Branchline. `max_loras` versions can decode together in
    one batch, `max_cpu_loras` are kept in memory. `max_model_len` is the context in tokens, `None` the base's own.
    `arguments` are further vLLM flags, passed on as they are, but for those that would undo what Branchline relies on.
    """

    python: str
    max_loras: int = 4
    max_lora_rank: int = 16
    max_cpu_loras: int = 32
    dtype: str = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [*_wrong_numbers(self), *_refused_flags(self.arguments)]
        if not self.python.strip():
            problems.insert(0, "python is empty, expected the path of a Python that has vLLM")
        if self.dtype not in DTYPES:
            problems.append(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if problems:
            raise ConfigInvalid("; ".join(problems))


def _wrong_numbers(options: EngineOptions) -> list[str]:
    problems = []
    if options.max_loras < 1:
        problems.append(f"max_loras is {options.max_loras}, expected 1 or more")
    if options.max_lora_rank not in RANKS:
        ranks = ", ".join(map(str, RANKS))
        problems.append(f"max_lora_rank is {options.max_lora_rank}, but vLLM takes only {ranks}")
    if options.max_cpu_loras < options.max_loras:
        problems.append(f"max_cpu_loras is {options.max_cpu_loras}, expected max_loras ({options.max_loras}) or more")
    if options.max_model_len is not None and options.max_model_len < 1:
        problems.append(f"max_model_len is {options.max_model_len}, expected 1 or more tokens")
    if options.tensor_parallel_size < 1:
        problems.append(f"tensor_parallel_size is {options.tensor_parallel_size}, expected 1 or more")
    return problems


def _refused_flags(arguments: Sequence[str]) -> list[str]:
    problems = []
    for word in arguments:
        if "\0" in word:
            problems.append("an engine flag holds a NUL character")
        elif reserved := _reserved(word):
            problems.append(f"the engine flag {reserved} cannot be passed through: {_RESERVED[reserved]}")
    return list(dict.fromkeys(problems))


def _reserved(word: str) -> str | None:
    """The flag of ours that `word` is: vLLM takes underscores, `--flag=value`, `--flag.key` and abbreviations."""
    flag = word.partition("=")[0].partition(".")[0].replace("_", "-")
    if not flag.startswith("-") or flag in ("-", "--"):
        return None
    if flag in _RESERVED:
        return flag
    return next((reserved for reserved in _RESERVED if reserved.startswith(flag)), None)
