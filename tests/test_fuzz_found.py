"""Inputs that once got past a parser's documented errors, or took time out of all proportion; each has a line here."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters import rows
from adapters.check import CONFIG_FILE, WEIGHTS_FILE, Limits, check_folder
from adapters.database import connect
from adapters.errors import BadAdapter, BadInput, RegistryUnavailable
from router.backends.vllm.answers import error_from
from router.telemetry import MAX_TOKENS, Tail
from tests.adapter_folders import adapter_config, container, make_base
from tests.fuzz_target import INPUT, Target
from tests.fuzz_targets import all_targets
from trainer.config import read_yaml
from trainer.errors import ConfigInvalid

DEEP = b"[" * 100_000
ALIASES = b"a0: &a0 [x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)
)
FOUND: tuple[tuple[str, str, bytes, bool], ...] = (  # target, file, content, whether it is taken
    ("engine error", INPUT, b'{"error": {"message": "m", "code": 1e999}}', True),
    ("engine error", INPUT, json.dumps({"error": {"type": "A" * 70_000, "message": "m"}}).encode(), True),
    ("engine error", INPUT, b'{"error": {"message": "m", "code": ' + b"9" * 4200 + b"}}", True),
    ("engine stream", INPUT, b'data: {"usage": {"prompt_tokens": Infinity}}\n\ndata: [DONE]\n\n', True),
    ("engine stream", INPUT, b'data: {"usage": {"prompt_tokens": ' + b"9" * 3000 + b"}}\n\n", True),
    ("engine stream", INPUT, b'data: {"usage": {"prompt_tokens": ' + b"[" * 3000 + b"}}\n\n", True),
    ("decision log", "decisions.jsonl", b'{"request_id": "r-1", "text": "t"}\n' + DEEP + b"\n", True),
    ("monitor state", "sql.json", DEEP, False),
    ("encoder folder", "config.json", b'{"hidden_size": 8, "pad_token_id": [1]}', False),
    ("encoder folder", "config.json", b'{"hidden_size": 8, "pad_token_id": 1e999}', False),
    ("encoder folder", "config_sentence_transformers.json", b'{"prompts": {}, "default_prompt_name": {}}', False),
    ("train plan", "plan.yaml", DEEP, False),
    ("train plan", "plan.yaml", b"data: " + b"a" * 5000, False),
    ("train plan", "plan.yaml", b"adapters: [3]", False),
    ("train plan", "plan.yaml", b"seed: " + b"9" * 5000, False),
    ("train plan", "plan.yaml", b"seed: !!timestamp 1", False),
    ("train plan", "plan.yaml", b"seed: !!bool x", False),
    ("sequence plan", "plan.yaml", ALIASES + b"arms: *a11\n", False),
    ("merge plan", "plan.yaml", ALIASES + b"density: *a11\n", False),
    ("train plan", "plan.yaml", b"&a {lr: *a}", False),
    ("registry", INPUT, b"postgresql://someone:se/cret@127.0.0.1:1/name", False),
    ("registry", INPUT, b"sqlite:///ROOT/registry.db?timeout=soon", False),
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Target]:
    return {target.name: target for target in all_targets(tmp_path_factory.mktemp("found"))}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("name", "file", "content", "taken"), FOUND)
def test_what_the_fuzzer_found_is_taken_or_refused_now(
    name: str, file: str, content: bytes, taken: bool, targets: Mapping[str, Target], tmp_path: Path
) -> None:
    target = targets[name]
    files = {**target.seeds[0], file: content}
    assert target.accepts(files, tmp_path / "scratch") is taken


def test_a_folder_of_many_modules_and_many_targets_is_checked_in_time_that_grows_with_both_not_their_product(
    tmp_path: Path,
) -> None:
    base = make_base(tmp_path / "base")
    folder = tmp_path / "folder"
    folder.mkdir()
    count = 60_000  # their product would take an hour
    names = [f"base_model.model.m{number}.lora_A.weight" for number in range(count)]
    header = {name: {"dtype": "F32", "shape": [0, 1], "data_offsets": [0, 0]} for name in names}
    (folder / WEIGHTS_FILE).write_bytes(container(header))
    targets = [f"t{number}" for number in range(count)]
    (folder / CONFIG_FILE).write_text(json.dumps(adapter_config(base.id, target_modules=targets)))
    with pytest.raises(BadAdapter, match="target_modules does not name"):
        check_folder(folder, base, limits=Limits())


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "message", ["'msg': '" * 200_000, "/a" * 500_000 + " ", " (value=" * 100_000, "'msg': \"" * 99]
)
def test_what_an_engine_repeats_of_a_clients_words_costs_no_time(message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": 400}}).encode()
    assert len(error_from(400, body, engine_name="tiny", base_id="tiny").message) <= 500


def test_a_count_of_tokens_beyond_reason_is_cut() -> None:
    tail = Tail(stream=False)
    tail.push(b'{"usage": {"prompt_tokens": 1e300, "completion_tokens": 7}}', 0.1)
    assert tail.tokens() == (MAX_TOKENS, 7, False)


def test_a_packed_file_is_read_no_further_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_UNPACKED_BYTES", 1024 * 1024)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 200_000))
    with pytest.raises(BadInput, match="once unpacked"):
        rows.read_texts(path)


def test_a_file_of_empty_lines_is_read_no_further_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_LINES", 1000)
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b"\n" * 1001)
    with pytest.raises(BadInput, match="over 1000 lines"):
        rows.read_texts(path)


def test_a_registry_url_that_cannot_be_read_is_not_quoted() -> None:
    with pytest.raises(RegistryUnavailable) as caught:
        connect("postgresql://someone:se/cret@127.0.0.1:1/name", create=False)
    assert "se" not in str(caught.value).replace("registry", "").split()
    assert "cret" not in str(caught.value)


def test_settings_longer_than_anybody_writes_are_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(ConfigInvalid, match="over 1048576 bytes"):
        read_yaml(path)
