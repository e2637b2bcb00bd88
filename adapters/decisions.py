"""The decision log as files: one JSON object a line, its last key `text` where texts are kept.

A log without texts is the one file it is named by. With texts there is a file for each day (UTC) beside that:
`decisions.2026-01-31.jsonl` for `decisions.jsonl`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from pathlib import Path

from .errors import BadInput, NotFound
from .rows import Asked, Message

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TEXT = b', "text": '
_PIECE_BYTES = 1024 * 1024
_MAX_FACTS_BYTES = 4096  # what stands before the text in a line


def day_file(path: Path, day: date) -> Path:
    return path.with_name(f"{path.stem}.{day.isoformat()}{path.suffix}")


def day_files(path: Path) -> dict[date, Path]:
    """The day files of a log, oldest first. Raises `OSError`."""
    shape = re.compile(re.escape(path.stem) + r"\.(\d{4}-\d{2}-\d{2})" + re.escape(path.suffix))
    found: dict[date, Path] = {}
    for file in path.parent.iterdir():
        match = shape.fullmatch(file.name)
        if match is not None and (day := _date(match[1])) is not None:
            found[day] = file
    return dict(sorted(found.items()))


def log_files(path: Path) -> list[Path]:
    """What there is of a log, oldest first: its own file, then its days. Raises `BadInput` where there is none."""
    try:
        found = [*([path] if path.is_file() else []), *day_files(path).values()]
    except OSError as error:
        raise BadInput(f"cannot read {path.parent}: {error.strerror}", hint="check the path") from error
    if not found:
        raise BadInput(f"there is no decision log {path}", hint="give the file that `serve --decision-log` was given")
    return found


def require_writable(path: Path) -> None:
    """Raise `BadInput` unless there is a log, and each of its files can be blanked."""
    for file in log_files(path):
        try:
            file.open("r+b").close()
        except OSError as error:
            raise BadInput(f"cannot blank {file.name}: {error.strerror}", hint="check its permissions") from error


def read_decisions(path: Path) -> Iterator[Mapping[str, object]]:
    """All decisions of a log, oldest first; lines that a full disk cut short are left out. Raises `BadInput`."""
    for file in log_files(path):
        try:
            with file.open("rb") as lines:
                yield from (decision for line in lines if (decision := _parse(line)) is not None)
        except OSError as error:
            raise BadInput(f"cannot read {file.name}: {error.strerror}", hint="check its permissions") from error


def read_logged(path: Path) -> tuple[list[Asked], int]:
    """The texts of a log as rows, and how many decisions were left out that hold none. Raises `BadInput`."""
    found = [decision.get("text") for decision in read_decisions(path)]
    asked = [Asked((Message("user", text),), None) for text in found if isinstance(text, str) and text.strip()]
    return asked, len(found) - len(asked)


def find_text(path: Path, request_id: str, *, max_bytes: int | None = None) -> str:
    """The text of a request, the newest where several carry the id. Looks at the newest `max_bytes` of the log.

    Raises `NotFound` where there is no such request or its text was not kept, and `BadInput`.
    """
    left = max_bytes
    if REQUEST_ID.fullmatch(request_id):
        for file in reversed(log_files(path)):
            try:
                line, read = _last_line_with(file, f'"request_id": "{request_id}"'.encode(), left)
            except OSError as error:
                raise BadInput(f"cannot read {file.name}: {error.strerror}", hint="check its permissions") from error
            if line is not None:
                return _text_of(line, request_id)
            left = None if left is None else left - read
            if left is not None and left <= 0:
                break
    raise NotFound(
        f"no request {request_id!r:.140} in the decision log", hint="it may be too old; give the text itself"
    )


def blank_texts(path: Path, chosen: Callable[[Mapping[str, object]], bool], *, holding: bytes = b"") -> int:
    """Overwrite the texts of chosen decisions in place, also while a gateway appends; how many. Raises `BadInput`.

    Lines without the bytes `holding` are not even parsed.
    """
    return sum(_blank_file(file, chosen, holding) for file in log_files(path))


def blank_route(path: Path, route: str, *, before: datetime) -> int:
    """Overwrite the texts that were routed to `route` before a moment; how many. Raises `BadInput`."""
    until = before.timestamp() + 0.001  # events tell their time in whole milliseconds

    def chosen(decision: Mapping[str, object]) -> bool:
        time = decision.get("time")
        return decision.get("route") == route and isinstance(time, float) and time < until

    return blank_texts(path, chosen, holding=f'"route": "{route}"'.encode())


def _blank_file(file: Path, chosen: Callable[[Mapping[str, object]], bool], holding: bytes) -> int:
    blanked, position = 0, 0
    try:
        with file.open("r+b") as lines:
            for line in lines:
                decision = _parse(line) if holding in line else None
                if decision is not None and isinstance(decision.get("text"), str) and chosen(decision):
                    start = line.index(_TEXT) + len(_TEXT)
                    end = line.rindex(b"}")
                    os.pwrite(lines.fileno(), b'""'.ljust(end - start), position + start)
                    blanked += decision["text"] != ""
                position += len(line)
            os.fsync(lines.fileno())
    except OSError as error:
        raise BadInput(f"cannot blank {file.name}: {error.strerror}", hint="check its permissions") from error
    return blanked


def _parse(line: bytes) -> Mapping[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text_of(line: bytes, request_id: str) -> str:
    decision = _parse(line) or {}
    text = decision.get("text")
    if not isinstance(text, str) or not text:
        raise NotFound(
            f"the decision log has no text of request {request_id!r}",
            hint="not switched on (`serve --decision-log-text`), too long, or forgotten; give the text itself",
        )
    return text


def _last_line_with(file: Path, needle: bytes, max_bytes: int | None) -> tuple[bytes | None, int]:
    """The last line that holds `needle` (text is escaped, so it cannot), and how many bytes were looked at."""
    with file.open("rb") as content:
        size = end = content.seek(0, os.SEEK_END)
        first = 0 if max_bytes is None else max(0, size - max_bytes)
        after = b""
        while end > first:
            start = max(first, end - _PIECE_BYTES)
            content.seek(start)
            piece = content.read(end - start) + after
            at = piece.rfind(needle)
            if at >= 0:
                return _line_around(file, start + at), size - start
            after, end = piece[: len(needle) - 1], start
        return None, size - first


def _line_around(file: Path, position: int) -> bytes:
    with file.open("rb") as content:
        before = max(0, position - _MAX_FACTS_BYTES)
        content.seek(before)
        content.seek(before + content.read(position - before).rfind(b"\n") + 1)
        return content.readline()


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
