"""The reader of row files: what it reads, and that every error names its line."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import rows
from adapters.errors import BadInput
from adapters.rows import (
    Example,
    LabelledText,
    Message,
    prompt_digest,
    read_examples,
    read_labelled,
    read_prompts,
    read_texts,
    text_digest,
)


def write(folder: Path, *lines: str | bytes, name: str = "rows.jsonl") -> Path:
    raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_texts(path)
    return caught.value.message


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_plain_and_gzip_rows_are_read_with_bom_blank_lines_and_crlf(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, '\ufeff{"text": "grüße"}', "", "  ", '{"text": "two"}\r', name=name)
    assert read_texts(path) == ["grüße", "two"]


def test_the_last_line_needs_no_line_end(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "one"}\n{"text": "two"}')
    assert read_texts(tmp_path / "rows.jsonl") == ["one", "two"]


def test_training_rows_of_both_kinds_are_the_same_example(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write(tmp_path, json.dumps({"messages": turns}), '{"input": "q", "output": "a"}')
    first, second = read_examples(path)
    assert first == second == Example((Message("user", "q"),), "a")
    assert first.digest == text_digest("q") == prompt_digest((Message("user", "q"),))
    assert read_texts(path) == ["q", "q"]
    assert read_prompts(path) == [first.prompt, first.prompt]


def test_labelled_rows_keep_their_label(tmp_path: Path) -> None:
    assert read_labelled(write(tmp_path, '{"text": "t", "label": "oos"}')) == [LabelledText("t", "oos")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"\xff", "not UTF-8 JSON"),
        ("{", "not UTF-8 JSON"),
        ("[" * 100_000, "not UTF-8 JSON"),
        ("[]", "expected a JSON object, found list"),
        ("1" * 5000, "line 2: "),
        ('{"text": 1}', "'text' must be a non-empty string, found 1"),
        ('{"text": "  "}', "'text' must be a non-empty string"),
        ('{"text": "\\ud800"}', "'text' holds half a surrogate pair"),
        ('{"other": "x"}', "'input' must be a non-empty string, found None"),
        ('{"messages": []}', "'messages' must be a non-empty list"),
        ('{"messages": [{"role": [], "content": "x"}]}', "each message needs a role"),
        ('{"messages": [{"role": {}, "content": "x"}]}', "each message needs a role"),
        ('{"messages": ["x"]}', "each message needs a role"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "'content' must be a non-empty string, found [1]"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "no user turn"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, line: str | bytes, expected: str) -> None:
    text = refusal(write(tmp_path, '{"text": "good"}', line))
    assert "rows.jsonl: line 2: " in text
    assert expected in text


def test_training_rows_must_end_with_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path, '{"messages": [{"role": "user", "content": "q"}]}', '{"input": "q"}')
    with pytest.raises(BadInput, match=r"line 1: 'messages' must end .* line 2: expected 'messages' or 'input'"):
        read_examples(path)


def test_all_bad_lines_are_named_up_to_twenty(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, *["{}"] * 30))
    assert all(f"line {number}: " in text for number in range(1, 21))
    assert "line 21" not in text
    assert text.endswith("further lines not read")


def test_an_over_long_line_is_refused_without_being_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 50)
    fits = json.dumps({"text": "x" * 37})  # with its line end exactly 50 bytes
    assert read_texts(write(tmp_path, fits)) == ["x" * 37]
    assert refusal(write(tmp_path, '{"text": "good"}', fits + " ")) == "rows.jsonl: line 2 is longer than 50 bytes"
    assert "line 1 is longer" in refusal(write(tmp_path, "x" * 10_000_000, name="rows.jsonl.gz"))


@pytest.mark.parametrize("content", [b"", b"\n\n \n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert refusal(tmp_path / "rows.jsonl") == "rows.jsonl holds no rows"


def test_a_missing_file_a_folder_and_a_broken_gzip_are_refused(tmp_path: Path) -> None:
    assert "cannot read none.jsonl" in refusal(tmp_path / "none.jsonl")
    assert f"cannot read {tmp_path.name}" in refusal(tmp_path)
    (tmp_path / "x.gz").write_bytes(b"not gzip")
    assert "cannot read x.gz" in refusal(tmp_path / "x.gz")
    whole = gzip.compress(os.urandom(5000))
    for cut in (len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.gz").write_bytes(b'{"text": "a"}'.join([whole[:cut]]))
        assert refusal(tmp_path / "x.gz")
    (tmp_path / "x.gz").write_bytes(whole[:20] + b"\xff" * 50 + whole[70:])
    assert refusal(tmp_path / "x.gz")


@given(content=st.binary(max_size=300), zipped=st.booleans())
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_rows_or_bad_input(content: bytes, zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x.jsonl.gz" if zipped else "x.jsonl")
        path.write_bytes(gzip.compress(content) if zipped and content[:1] != b"!" else content)
        for read in (read_texts, read_examples, read_labelled, read_prompts):
            try:
                assert read(path)
            except BadInput as error:
                assert path.name in error.message  # noqa: PT017  # reading it well is right too


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["user", "assistant", "x", "\ud800", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "messages", "text"]), inner, max_size=3)
    ),
    max_leaves=10,
)
FIELDS = st.sampled_from(["messages", "text", "label", "input", "output"])


@given(st.dictionaries(FIELDS, JSON, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_json_object_is_a_row_with_a_digest_or_bad_input(row: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), json.dumps(row))
        try:
            assert all(prompt_digest(prompt) for prompt in read_prompts(path))
            assert all(example.digest for example in read_examples(path))
        except BadInput as error:
            assert "line 1: " in error.message  # noqa: PT017  # reading it well is right too
