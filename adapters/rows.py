"""JSON Lines in, checked rows out: the one reader of row files for every room.

Rows are UTF-8 JSON objects, one a line, plain or gzip (`.gz`).
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .errors import BadInput, shown

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_LINES = 10_000_000
MAX_UNPACKED_BYTES = 4 * 1024**3  # of a .gz: a thousandth of it is enough to make all of it
_MAX_PROBLEMS = 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation to answer (`prompt`, ends with a user turn) and the answer wanted.

    `choices` are the answers to choose among, `answer` one of them; empty where the row names none.
    """

    prompt: tuple[Message, ...]
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of the prompt alone: rows with the same input share it, whatever their answer."""
        return prompt_digest(self.prompt)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A row of classifier data; `label` is a route, `base` or `oos`."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asked, and the label it carries where it carries one."""

    prompt: tuple[Message, ...]
    label: str | None


def prompt_digest(prompt: Sequence[Message]) -> str:
    """sha256 (hex) of a prompt's roles and contents; a plain text counts as one user turn."""
    return sha256_json([[message.role, message.content] for message in prompt])


def text_digest(text: str) -> str:
    """The digest of `text` as a single user turn."""
    return prompt_digest((Message("user", text),))


def sha256_json(value: object) -> str:
    """sha256 (hex) of `value` as canonical JSON (sorted keys, no spaces, no NaN)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes as they lie on disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_examples(path: Path) -> list[Example]:
    """Rows `{"messages": [...]}` or `{"input", "output"}`, either with `"choices"` or without.

    Raises `BadInput` listing every bad line.
    """
    return _collect(path, _example)


def read_texts(path: Path) -> list[str]:
    """Rows `{"text"}`; training rows are read too, as the text of their last user turn."""
    return _collect(path, _text)


def read_labelled(path: Path) -> list[LabelledText]:
    """Rows `{"text", "label"}`."""
    return _collect(path, _labelled)


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
    """Rows of any kind (`text`, `input`, `messages`) as prompts, for `classifier decide`."""
    return _collect(path, _prompt)


def read_asked(path: Path) -> tuple[list[Asked], int]:
    """Rows of any kind with their label, and how many were left out: rows without text, as a decision log has them."""
    found = _collect(path, _asked)
    asked = [one for one in found if one is not None]
    return asked, len(found) - len(asked)


def last_user_text(prompt: Sequence[Message]) -> str:
    """The text of the last user turn, the empty string where there is none."""
    return next((message.content for message in reversed(prompt) if message.role == "user"), "")


def _collect(path: Path, convert: Callable[[Mapping[str, object]], T]) -> list[T]:
    rows: list[T] = []
    problems: list[str] = []
    for number, line in _lines(path):
        try:
            rows.append(convert(_object(line)))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            if len(problems) == _MAX_PROBLEMS:
                problems.append("further lines not read")
                break
    if problems:
        raise BadInput(f"{path.name}: {'; '.join(problems)}", hint="one JSON object a line, see README, Rows")
    if not rows:
        raise BadInput(f"{path.name} holds no rows", hint="give a file with at least one JSON object")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            size = 0
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                size += len(line)
                if not line:
                    return
                if number > MAX_LINES or (path.suffix == ".gz" and size > MAX_UNPACKED_BYTES):
                    raise BadInput(
                        f"{path.name} holds over {MAX_LINES} lines, or {MAX_UNPACKED_BYTES} bytes once unpacked",
                        hint="split the file",
                    )
                if len(line) > MAX_LINE_BYTES:
                    raise BadInput(
                        f"{path.name}: line {number} is longer than {MAX_LINE_BYTES} bytes", hint="split the row"
                    )
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"cannot read {path.name}: {error}", hint="check the path and the file") from error


def _object(line: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not UTF-8 JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _string(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} must be a non-empty string, found {shown(value)}")
    if not is_unicode(value):
        raise ValueError(f"{key!r} holds half a surrogate pair, which no text does")
    return value


def is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which JSON and file names can smuggle in and nothing can write out."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _example(row: Mapping[str, object]) -> Example:
    if "messages" not in row:
        if "input" not in row or "output" not in row:
            raise ValueError(f"expected 'messages' or 'input' and 'output', found {shown(sorted(row))}")
        answer = _string(row, "output")
        return Example((Message("user", _string(row, "input")),), answer, _choices(row, answer))
    messages = _messages(row["messages"])
    if len(messages) < 2 or messages[-1].role != "assistant" or messages[-2].role != "user":
        raise ValueError("'messages' must end with a user turn and the assistant's answer to it")
    return Example(messages[:-1], messages[-1].content, _choices(row, messages[-1].content))


def _choices(row: Mapping[str, object], answer: str) -> tuple[str, ...]:
    if "choices" not in row:
        return ()
    value = row["choices"]
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise ValueError(f"'choices' must be a list of non-empty strings, found {shown(value)}")
    if not all(is_unicode(one) for one in value):
        raise ValueError("'choices' holds half a surrogate pair, which no text does")
    if len(set(value)) != len(value) or len(value) < 2 or answer not in value:
        raise ValueError("'choices' must be two or more different strings, the answer among them")
    return tuple(value)


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("'messages' must be a non-empty list")
    turns: list[Message] = []
    for turn in value:
        if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
            raise ValueError("each message needs a role: system, user or assistant")
        turns.append(Message(str(turn["role"]), _string(turn, "content")))
    return tuple(turns)


def _prompt(row: Mapping[str, object]) -> tuple[Message, ...]:
    if "messages" in row:
        messages = _messages(row["messages"])
        return messages[:-1] if messages[-1].role == "assistant" else messages
    return (Message("user", _string(row, "text" if "text" in row else "input")),)


def _asked(row: Mapping[str, object]) -> Asked | None:
    if all(row.get(key) in (None, "") for key in ("messages", "text", "input")):
        return None
    return Asked(_prompt(row), None if row.get("label") is None else _string(row, "label"))


def _text(row: Mapping[str, object]) -> str:
    text = last_user_text(_prompt(row))
    if not text:
        raise ValueError("no user turn to take the text from")
    return text


def _labelled(row: Mapping[str, object]) -> LabelledText:
    return LabelledText(_string(row, "text"), _string(row, "label"))
