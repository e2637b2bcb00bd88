"""Reads a classifier folder, trusting nothing in it: sizes, digests, shapes, types and values are checked first."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ClassifierInvalid
from .centroids import PrunedHead
from .classifier import Classifier
from .features import Floats, build_features
from .head import Head
from .manifest import Manifest, read_manifest, refuse

Number = TypeVar("Number", bound=np.number)
MAX_HEADER_BYTES = 1_000  # of an .npy file; ours take 128


def load_classifier(folder: Path, *, digest: str | None = None) -> Classifier:
    """The classifier in `folder`, its weights memory-mapped (processes that load it share them).

    Raises `ClassifierInvalid` listing every problem; also where it is not the one named by `digest`.
    """
    manifest = read_manifest(folder, digest)
    problems = [problem for name, one in manifest.files.items() for problem in _file_problems(folder / name, one)]
    refuse(problems)
    vocabulary = _vocabulary(folder / "vocabulary.json")
    size, labels = sum(map(len, vocabulary)), len(manifest.labels)
    weights = _weights(folder, size, manifest, problems)
    dimension = manifest.encoder.dimension if manifest.encoder else 0
    dense = _array(folder / "dense.npy", np.float32, (dimension, labels), problems)
    rows = _array(folder / "rows.npy", np.uint64, (manifest.rows,), problems)
    if not (rows[1:] > rows[:-1]).all():
        problems.append("rows.npy is not ascending")
    idf = _array(folder / "idf.npy", np.float64, (size,), problems)
    refuse(problems)
    values = idf.tolist()
    words, characters = vocabulary
    features = build_features(
        dict(zip(words, values[: len(words)], strict=True)),
        dict(zip(characters, values[len(words) :], strict=True)),
        manifest.unseen_idf,
    )
    return Classifier(
        features,
        weights(dense),
        manifest.temperature,
        manifest.confidence,
        manifest.score,
        manifest.threshold,
        manifest.own_thresholds,
        manifest.summary,
        rows,
        manifest.digest,
        manifest.encoder,
    )


def _weights(folder: Path, size: int, manifest: Manifest, problems: list[str]) -> Callable[[Floats], Head | PrunedHead]:
    """The head, once it is told its dense weights; `size` features."""
    labels = manifest.labels
    if manifest.kept is None:
        weights = _array(folder / "weights.npy", np.float32, (size, len(labels)), problems)
        return partial(Head, labels, weights)
    values = _array(folder / "weights.npy", np.float32, (manifest.kept,), problems)
    columns = _array(folder / "columns.npy", np.int32, (manifest.kept,), problems)
    starts = _array(folder / "starts.npy", np.int64, (size + 1,), problems)
    if len(columns) and not 0 <= columns.min() <= columns.max() < len(labels):
        problems.append(f"columns.npy names labels beyond the {len(labels)} there are")
    if starts[0] != 0 or starts[-1] != manifest.kept or not (starts[1:] >= starts[:-1]).all():
        problems.append(f"starts.npy does not ascend from 0 to {manifest.kept}")
    return partial(PrunedHead, labels, starts, columns, values)


def _file_problems(path: Path, expected: tuple[int, str]) -> list[str]:
    size, sha256 = expected
    try:
        if path.is_symlink():
            return [f"{path.name} is a link"]
        found = path.stat().st_size
        if found != size:
            return [f"{path.name} has {found} bytes, expected {size}"]
        with path.open("rb") as file:
            matches = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError as error:
        return [f"{path.name} cannot be read ({error.strerror})"]
    return [] if matches else [f"{path.name} does not match its sha256"]


def _vocabulary(path: Path) -> tuple[list[str], list[str]]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ClassifierInvalid(f"{path.name} is not valid JSON ({error!s:.120})") from error
    blocks: list[list[str]] = []
    for key in ("words", "characters"):
        terms = value.get(key) if isinstance(value, dict) else None
        if not isinstance(terms, list) or not all(isinstance(term, str) for term in terms):
            raise ClassifierInvalid(f"{path.name}: {key!r} is not a list of strings")
        if len(set(terms)) != len(terms):
            raise ClassifierInvalid(f"{path.name}: {key!r} repeats a term")
        blocks.append(terms)
    return blocks[0], blocks[1]


def _array(path: Path, kind: type[Number], shape: tuple[int, ...], problems: list[str]) -> npt.NDArray[Number]:
    """The array in `path`; a wrong one is described in `problems`."""
    try:
        # Not mapped where it is empty: an empty file region cannot be.
        mode: Literal["r"] | None = "r" if math.prod(shape) else None
        array: npt.NDArray[Number] = np.asarray(
            np.load(path, mmap_mode=mode, allow_pickle=False, max_header_size=MAX_HEADER_BYTES)
        )
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError) as error:
        problems.append(f"{path.name} is no plain array ({error!s:.120})")
        return np.zeros(shape, dtype=kind)
    if array.dtype != kind or array.shape != shape:
        problems.append(f"{path.name} is {array.dtype} {array.shape}, expected {np.dtype(kind)} {shape}")
        return np.zeros(shape, dtype=kind)
    if not np.isfinite(array).all():
        problems.append(f"{path.name} holds NaN or Inf")
    return array
