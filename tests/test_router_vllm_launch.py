"""How a managed engine is started, and what its log means: pure parts of the vLLM backend."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

from router.backends.vllm.launch import command, engine_environment
from router.backends.vllm.log import EngineLog
from router.backends.vllm.options import EngineOptions
from router.backends.vllm.words import MAX_CHARACTERS, advice, bare, is_dead, last_words, progress
from router.errors import ConfigInvalid

CORE = "(EngineCore pid=10622) ERROR 11-23 05:22:17 [core.py:1510] "


def options(*arguments: str) -> EngineOptions:
    return EngineOptions("python", arguments=arguments)


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        EngineOptions(" ", 0, 17, -1, "int4", 0, 0, ("--api_key=x",))
    message = refused.value.message
    for word in ("python", "max_loras", "max_cpu_loras", "dtype", "max_model_len", "tensor_parallel_size", "--api-key"):
        assert word in message
    assert "max_lora_rank is 17, but vLLM takes only 1, 8, 16, 32, 64, 128, 256, 320, 512" in message
    assert "x" not in message.partition("--api-key")[2].split("cannot")[0]


@pytest.mark.parametrize(
    "flag",
    [
        *("--api-key", "--api_key", "--host=0.0.0.0", "--hos", "--port", "--uds", "--model", "--served-model-name"),
        *("--middleware", "--enable-lora", "--no-enable-lora", "--lora-modules", "--max-loras", "--max-cpu-loras"),
        *("--max-lora-rank", "--root-path", "--api-server-count", "-asc", "-as", "--data-parallel-size", "-dp"),
        *(
            "--disable-log-stats",
            "--config",
            "--config.a",
            "--tensor-parallel-size",
            "-tp",
            "-tp=2",
            "--lora-target-modules",
        ),
    ],
)
def test_a_flag_that_would_undo_what_branchline_relies_on_is_refused_however_it_is_written(flag: str) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be passed through"):
        options(flag, "1")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gpu-memory-utilization", "0.85"),
        ("--model-impl=transformers", "--tokenizer-mode", "auto"),
        ("--seed", "-1", "-O3", "--max-num-seqs", "8"),
        ("--enable-prefix-caching", "--no-enable-log-requests"),
    ],
)
def test_other_flags_pass_through_at_the_end_of_the_command(arguments: tuple[str, ...]) -> None:
    words = command(Path("/models/llama"), "llama", 4321, options(*arguments))
    assert tuple(words[-len(arguments) :]) == arguments


def test_the_command_has_the_guard_loopback_and_lora() -> None:
    words = command(Path("/models/llama"), "llama", 4321, EngineOptions("/opt/python", 2, 32, 9, "float16", 512, 4))
    assert words[:3] == ["/opt/python", "-m", "vllm.entrypoints.launchers.api_server.entry"]
    given = dict(itertools.pairwise(words))
    assert "--enable-lora" in words
    assert given["--middleware"] == "adapters.engine.guard.Guard"
    assert (given["--model"], given["--served-model-name"]) == ("/models/llama", "llama")
    assert (given["--host"], given["--port"]) == ("127.0.0.1", "4321")
    assert (given["--max-loras"], given["--max-lora-rank"], given["--max-cpu-loras"]) == ("2", "32", "9")
    assert (given["--dtype"], given["--max-model-len"], given["--tensor-parallel-size"]) == ("float16", "512", "4")
    assert "--max-model-len" not in command(Path("/m"), "m", 1, options())


def test_the_engine_gets_no_secret_of_the_gateway_and_everything_else() -> None:
    outside = {
        **{"BRANCHLINE_API_KEY": "a", "BRANCHLINE_ENGINE_API_KEY": "b", "BRANCHLINE_REGISTRY": "postgresql://u:c@h/d"},
        **{"PYTHONPATH": "/src", "CUDA_VISIBLE_DEVICES": "1", "VLLM_API_KEY": "old", "BRANCHLINE_STORE": "old"},
        "VLLM_LORA_RESOLVER_CACHE_DIR": "/anything",
    }
    inside = engine_environment(outside, "new", "s3://store")
    assert inside == {
        **{"PYTHONPATH": "/src", "CUDA_VISIBLE_DEVICES": "1", "VLLM_API_KEY": "new", "BRANCHLINE_STORE": "s3://store"},
        **{"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
        **{"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", "VLLM_MAX_N_SEQUENCES": "128"},
    }
    more = {"VLLM_MAX_N_SEQUENCES": "1000"}
    assert engine_environment(more, "new", "store")["VLLM_MAX_N_SEQUENCES"] == "1000"


@pytest.mark.parametrize(
    ("given", "wanted"), [("mine", "mine,branchline"), ("", "branchline"), ("branchline,mine", "branchline,mine")]
)
def test_a_list_of_vllm_plugins_gets_ours(given: str, wanted: str) -> None:
    assert engine_environment({"VLLM_PLUGINS": given}, "key", "store")["VLLM_PLUGINS"] == wanted


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("(APIServer pid=1) INFO 11-23 05:25:59 [api_utils.py:347]  ▄▄ ▄█ █  version 0.32.0", "vLLM 0.32.0 starts"),
        (
            "(EngineCore pid=2) INFO 11-23 05:26:05 [core.py:133] Initializing a V1 LLM engine (v0",
            "starting the engine",
        ),
        (
            "(Worker pid=3) INFO 11-23 05:26:13 [cpu_model_runner.py:68] Starting to load model /m...",
            "loading the base",
        ),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?]", "loading weights: 50 %"),
        (
            "\x1b[36m(EngineCore pid=2)\x1b[0;0m INFO 11-23 05:26:14 [kv.py:2] GPU KV cache size: 174,720 tokens",
            "KV cache",
        ),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  20%|██", "capturing graphs: 20 %"),
        (
            "(APIServer pid=1) INFO 11-23 05:26:18 [entry.py:140] Starting vLLM server on http://127.0.0.1:1",
            "engine is up",
        ),
    ],
)
def test_the_lines_that_mean_a_phase_become_a_few_words(line: str, words: str) -> None:
    assert (progress(line) or "").startswith(words)


def test_most_lines_say_nothing_of_the_start() -> None:
    assert progress("(APIServer pid=1) INFO 11-23 05:25:59 [model.py:2152] Using max model len 1024") is None
    assert progress("") is None


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["Traceback (most recent call last):", "OSError: [Errno 98] Address already in use"], "OSError: [Errno 98]"),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, User-specified max_model_len (9) is greater than the derived max_model_len (4).",
                "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
            ],
            "User-specified max_model_len (9) is greater",
        ),
        (
            [
                f"{CORE}RuntimeError: Worker failed with error 'Available memory (1 GiB) is less than requested.', "
                "please check the stack trace above for the root cause",
                "(EngineCore pid=1) ERROR 11-23 05:22:19 [x.py:315] Worker proc VllmWorker-0 died unexpectedly (exit",
                "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
                "UserWarning: resource_tracker: There appear to be 1 leaked shared_memory objects",
            ],
            "Available memory (1 GiB) is less than requested.",
        ),
        ([f"{CORE}safetensors._rust.SafetensorError: incomplete metadata"], "SafetensorError: incomplete metadata"),
        ([f"{CORE}torch.OutOfMemoryError: CUDA out of memory. Tried"], "OutOfMemoryError: CUDA out of memory."),
        (["usage: entry.py [-h]", "entry.py: error: unrecognized arguments: --x"], "unrecognized arguments: --x"),
        ([f"{CORE}Worker proc VllmWorker-1 died unexpectedly (exit code: -9)"], "VllmWorker-1 was killed, most likely"),
        (
            ["(APIServer pid=1) WARNING 1-2 3:4:5 [c.py:8] [shutdown] MPClient: engine core exited unexpectedly"],
            "EngineC",
        ),
        (["all is well"], "exit code 1, no error in its log"),
    ],
)
def test_last_words_are_the_root_error_in_one_line(lines: list[str], wanted: str) -> None:
    words = last_words(["noise", *lines, ""], 1)
    assert words.startswith(wanted)
    assert "\n" not in words


def test_an_engine_killed_from_outside_is_not_blamed_on_an_older_error() -> None:
    assert "signal 9" in last_words(["ValueError: some request was wrong"], -signal.SIGKILL)
    assert last_words([], -signal.SIGSEGV) == "killed by signal 11"
    assert last_words([]) == "the engine's log says nothing"
    assert len(last_words([f"ValueError: {'long ' * 1000}"], 1)) == MAX_CHARACTERS


def test_advice_is_given_where_there_is_some() -> None:
    assert "--max-model-len" in advice("CUDA out of memory")
    assert advice("OSError: anything") == ""


def test_the_death_of_the_engine_core_is_heard_in_the_log() -> None:
    assert is_dead(
        "(APIServer pid=1) WARNING 11-23 06:05:01 [core_client.py:817] [shutdown] MPClient: engine core exited "
        "unexpectedly; starting cleanup"
    )
    assert not is_dead("(APIServer pid=1) INFO 1-2 3:4:5 [c.py:8] [shutdown] MPClient: complete")


def test_a_client_cannot_write_the_death_of_the_engine_core_into_the_log() -> None:
    forged = "[core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly"
    header = "(APIServer pid=1) WARNING 11-23 06:05:01 [utils.py:380] "
    # What vLLM writes for a reasoning item of /v1/responses, whose id is the client's own.
    assert not is_dead(f"{header}Using summary text as reasoning content for item {forged}")
    assert not is_dead(f"{header}WARNING 11-23 06:05:01 {forged}")  # a second line of it has the header too


def test_a_log_line_without_its_decoration() -> None:
    assert bare("\x1b[1m(Worker_TP0 pid=3) (x pid=4) ERROR 11-23 05:22:17 [core.py:1510] said\x1b[0m ") == "said"


def test_the_log_is_private_limited_in_size_and_keeps_one_older_file(tmp_path: Path) -> None:
    path = tmp_path / "log" / "engine.log"
    log = EngineLog(path, max_bytes=100)
    log.rotate()
    for number in range(40):
        log.write(f"line {number}")
    log.close()
    log.close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["engine.log", "engine.log.1"]
    assert all(file.stat().st_size <= 120 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert "line 39" in "".join(file.read_text() for file in files)


def test_a_log_that_cannot_be_written_does_not_stop_the_engine(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = EngineLog(tmp_path / "file" / "engine.log")
    log.rotate()
    log.write("anything")
    log.close()
    nowhere = EngineLog(None)
    nowhere.rotate()
    nowhere.write("anything")
