"""vLLM's log, line by line: what it is doing, and why it ended. Pure; recognises the words of 0.32."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence

MAX_CHARACTERS = 400

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROCESS = re.compile(r"^(?:\((?:\w|[-.])+ pid=\d+\)\s?)+")
_HEADER = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]+\] ?")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*(?P<error>[A-Z]\w*(?:Error|Exception|Exit|Interrupt)(?:: .+)?)$")
_USAGE = re.compile(r"^[\w.-]+: error: (?P<message>.+)$")
_WORKER = re.compile(r"Worker failed with error '(?P<message>.+)', please check the stack trace")
_CORE_DIED = re.compile(r"engine core exited unexpectedly|Engine core proc \S+ died unexpectedly")
# With the header that vLLM's own code writes: warnings of other files repeat what clients sent.
_CORE_DIES = re.compile(r"\w+ [\d-]+ [\d:]+ \[(?:\S*/)?core_client\.py:\d+\] \[shutdown\] MPClient: engine core exited")
_DIED = re.compile(r"^Worker proc (?P<name>\S+) died unexpectedly")
_CONSEQUENCES = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "EngineDeadError",
    "EngineCore encountered an issue",
    "KeyboardInterrupt",
    "CancelledError",
    "SystemExit",
    "cancelled",
)

_HINTS = (
    ("max_model_len", "lower --max-model-len"),
    ("VLLM_CPU_KVCACHE_SPACE", "lower VLLM_CPU_KVCACHE_SPACE"),
    ("No available memory for the cache blocks", "raise --gpu-memory-utilization, or lower --max-model-len"),
    ("memory", "free memory, or ask for less: --max-model-len, --max-loras, --gpu-memory-utilization"),
    ("unrecognized arguments", "mend the flags after --"),
)

_PHASES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^\W*version (\d\S*)$"), lambda found: f"vLLM {found[1]} starts"),
    (re.compile(r"^Initializing a V1 LLM engine"), lambda _: "starting the engine process"),
    (re.compile(r"^Starting to load model"), lambda _: "loading the base"),
    (re.compile(r"^Loading \w+ checkpoint shards:\s+(\d+)%"), lambda found: f"loading weights: {found[1]} %"),
    (re.compile(r"KV cache size: ([\d,]+) tokens"), lambda found: f"KV cache: {found[1]} tokens"),
    (re.compile(r"^(?:Compiling a graph|Start compiling|Dynamo bytecode transform)"), lambda _: "compiling"),
    (re.compile(r"^Warming up model"), lambda _: "warming up"),
    (re.compile(r"^Capturing CUDA graphs?[^:]*:\s+(\d+)%"), lambda found: f"capturing graphs: {found[1]} %"),
    (re.compile(r"^Starting vLLM (?:API )?server"), lambda _: "engine is up, trying a first request"),
)


def progress(line: str) -> str | None:
    """What a line of vLLM's log says of its start, in a few words; `None` for the many that say nothing of it."""
    text = bare(line)
    for pattern, words in _PHASES:
        if found := pattern.search(text):
            return words(found)
    return None


def last_words(lines: Sequence[str], status: int | None = None) -> str:
    """Why an engine ended, in one line: the root error in the tail of its log, else what its exit `status` means.

    `status` is the exit code, negative for a signal. Tracebacks, and errors that only follow from others, are left out.
    """
    texts = [bare(line) for line in lines]
    death = _death(texts)
    if status == -signal.SIGKILL and not death:  # it had no time for a word: older errors are not the reason
        return "killed by signal 9, most likely because memory ran out"
    reason = next(filter(None, (_error(texts, at) for at in reversed(range(len(texts))))), None)
    return _shorten(reason or death or _ending(status))


def is_dead(line: str) -> bool:
    """Whether this line says that the engine's core has died: vLLM itself notices only at its next look, 5 s later."""
    return _CORE_DIES.match(_undecorated(line)) is not None


def advice(words: str) -> str:
    """What to do about an engine's last words, empty where that is not known."""
    return next((advice for sign, advice in _HINTS if sign in words), "")


def bare(line: str) -> str:
    """A log line without colours, process names and the log's own header."""
    return _HEADER.sub("", _undecorated(line)).strip()


def _undecorated(line: str) -> str:
    return _PROCESS.sub("", _ANSI.sub("", line))


def _error(texts: Sequence[str], at: int) -> str | None:
    text = texts[at]
    if usage := _USAGE.match(text):
        return usage["message"]
    found = _EXCEPTION.match(text)
    if not found or any(words in text for words in _CONSEQUENCES):
        return None
    if "validation error" in text:  # pydantic says what is wrong on the following lines
        details = [line for line in texts[at + 1 : at + 4] if line and not line.startswith("For further information")]
        return next((line for line in details if line.startswith("Value error, ")), text).removeprefix("Value error, ")
    worker = _WORKER.search(text)
    return worker["message"] if worker else found["error"]


def _death(texts: Sequence[str]) -> str | None:
    """A child of the engine that ended without a word: nearly always the kernel, which ran out of memory."""
    for text in texts:
        if found := _DIED.match(text):
            return f"{found['name']} was killed, most likely because memory ran out"
    if any(map(_CORE_DIED.search, texts)):
        return "EngineCore was killed, most likely because memory ran out"
    return None


def _ending(status: int | None) -> str:
    if status is None:
        return "the engine's log says nothing"
    return f"killed by signal {-status}" if status < 0 else f"exit code {status}, no error in its log"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
