"""The safetensors container, read as hostile input: header first, tensors streamed, nothing trusted.

Format: 8 bytes little-endian header length, a JSON header, then the data that its offsets describe.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from .errors import shown

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_DIMENSIONS = 8
_MAX_PROBLEMS = 20
_CHUNK_BYTES = 4 * 1024 * 1024
_DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a header; `start` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What streaming a float tensor found."""

    all_finite: bool
    all_zero: bool


def read_header(path: Path, *, limit: int = MAX_HEADER_BYTES) -> dict[str, TensorEntry]:
    """The entries of a safetensors file by name; raises `ValueError` naming the faults of the container.

    A header over `limit` bytes is not read: parsed, JSON takes up to twenty times its size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"truncated: {size} bytes, a safetensors file has at least 8")
        (length,) = struct.unpack("<Q", prefix)
        if length > limit:
            raise ValueError(f"header claims {length} bytes, the limit is {limit}")
        if 8 + length > size:
            raise ValueError(f"truncated: header claims {length} bytes, the file has {size - 8} after its length")
        header = _parse(file.read(length))
    entries, problems = _entries(header, 8 + length)
    problems += _layout_problems(entries, 8 + length, size) if not problems else []
    if problems:
        raise ValueError("; ".join(problems))
    return {entry.name: entry for entry in entries}


def stream_facts(path: Path, entry: TensorEntry) -> TensorFacts:
    """Read one float tensor in pieces, as bit patterns. Raises `ValueError` for other dtypes."""
    finite, zero = True, True
    with path.open("rb") as file:
        file.seek(entry.start)
        left = entry.end - entry.start
        while left:
            piece = file.read(min(left, _CHUNK_BYTES))
            if not piece:
                raise ValueError(f"{entry.name}: file ended early")
            left -= len(piece)
            piece_finite, piece_zero = _piece_facts(piece, entry.dtype)
            finite, zero = finite and piece_finite, zero and piece_zero
    return TensorFacts(finite, zero)


def _piece_facts(piece: bytes, dtype: str) -> tuple[bool, bool]:
    import numpy as np  # here: it costs every command 80 ms, and only publishing reads tensors

    if dtype not in _BITS:
        raise ValueError(f"dtype {dtype} is not a float type adapters use")
    kind, exponent, magnitude = _BITS[dtype]
    bits = np.frombuffer(piece, dtype=kind)  # not as floats: arithmetic on some that are none makes numpy warn
    return bool(((bits & exponent) != exponent).all()), not bool((bits & magnitude).any())


_BITS = {  # how a number is read, its exponent (all ones: not finite), and all but its sign
    "BF16": ("<u2", 0x7F80, 0x7FFF),
    "F16": ("<u2", 0x7C00, 0x7FFF),
    "F32": ("<u4", 0x7F80_0000, 0x7FFF_FFFF),
}


def _parse(raw: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"header is not valid JSON ({error})") from error
    if not isinstance(value, dict) or not raw.startswith(b"{"):
        raise ValueError("header is not a JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


def _entries(header: Mapping[str, object], data_start: int) -> tuple[list[TensorEntry], list[str]]:
    entries, problems = [], []
    for name, value in header.items():
        if name == "__metadata__":
            if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
                problems.append("__metadata__ is not an object of texts")
            continue
        entry = _entry(name, value, data_start)
        if isinstance(entry, str):
            problems.append(f"{shown(name, 120)}: {entry}")
            if len(problems) >= _MAX_PROBLEMS:
                break
        else:
            entries.append(entry)
    return entries, problems


def _entry(name: str, value: object, data_start: int) -> TensorEntry | str:
    if not isinstance(value, dict):
        return "entry is not an object"
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        return f"unknown dtype {shown(dtype)}"
    if not _is_naturals(shape) or len(shape) > MAX_DIMENSIONS:
        return f"shape {shown(shape)} is not a short list of natural numbers"
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets {shown(offsets)} are not [start, end]"
    if math.prod(shape) * _DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        return f"shape {shape} in {dtype} does not fill its {offsets[1] - offsets[0]} bytes"
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**48 for one in value)


def _layout_problems(entries: list[TensorEntry], data_start: int, size: int) -> list[str]:
    """Tensors must lie side by side from the header's end to the file's end."""
    position, problems = data_start, []
    for entry in sorted(entries, key=lambda one: (one.start, one.end)):
        if entry.start < position:
            problems.append(f"{shown(entry.name, 120)}: overlaps the tensor before it")
        elif entry.start > position:
            problems.append(f"{shown(entry.name, 120)}: {entry.start - position} unused bytes before it")
        if len(problems) >= _MAX_PROBLEMS:
            return problems
        position = max(position, entry.end)
    if position > size:
        problems.append(f"truncated: tensors need {position} bytes, the file has {size}")
    elif position < size:
        problems.append(f"{size - position} bytes after the last tensor")
    return problems
