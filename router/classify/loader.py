"""Reads a classifier folder, trusting nothing in it: sizes, digests, shapes, types and values are checked first."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from ..errors import ClassifierInvalid
from .arrays import read_array
from .classifier import Classifier
from .features import Floats, build_features
from .head import Head
from .manifest import IDF, Manifest, odd_file, read_manifest, refuse
from .pruned_head import PrunedHead

MAX_WEIGHT = 1e6  # a fit's are thousands of times smaller; the logits of larger ones may be infinite


def load_classifier(folder: Path, *, digest: str | None = None) -> Classifier:
    """The classifier in `folder`, its weights memory-mapped (processes that load it share them).

    Raises `ClassifierInvalid` listing every problem; also where it is not the one named by `digest`.
    """
    manifest = read_manifest(folder, digest)
    refuse([problem for name, one in manifest.files.items() for problem in _file_problems(folder / name, one)])
    problems: list[str] = []
    words, characters = _vocabulary(folder / "vocabulary.json")
    size, labels = len(words) + len(characters), len(manifest.labels)
    dimension = manifest.encoder.dimension if manifest.encoder else 0
    dense = read_array(folder / "dense.npy", np.float32, (dimension, labels), problems)
    rows = read_array(folder / "rows.npy", np.uint64, (manifest.rows,), problems)
    idf = read_array(folder / "idf.npy", np.float64, (size,), problems)
    head = _head(folder, size, manifest, dense, problems)
    if not (rows[1:] > rows[:-1]).all():
        problems.append("rows.npy is not ascending")
    if not ((idf >= IDF[0]) & (idf <= IDF[1])).all():
        problems.append(f"idf.npy holds numbers outside of {IDF}")
    refuse(problems)
    values = idf.tolist()
    features = build_features(
        dict(zip(words, values[: len(words)], strict=True)),
        dict(zip(characters, values[len(words) :], strict=True)),
        manifest.unseen_idf,
    )
    return Classifier(
        features,
        head,
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


def _head(folder: Path, size: int, manifest: Manifest, dense: Floats, problems: list[str]) -> Head | PrunedHead:
    """`size` features"""
    labels, kept = manifest.labels, manifest.kept
    shape = (size, len(labels)) if kept is None else (kept,)
    weights = read_array(folder / "weights.npy", np.float32, shape, problems)
    for name, array in (("weights.npy", weights), ("dense.npy", dense)):
        if max(array.max(initial=0), -array.min(initial=0)) > MAX_WEIGHT:
            problems.append(f"{name} holds weights beyond ±{MAX_WEIGHT:.0e}")
    if kept is None:
        return Head(labels, weights, dense)
    columns = read_array(folder / "columns.npy", np.int32, (kept,), problems)
    starts = read_array(folder / "starts.npy", np.int64, (size + 1,), problems)
    if not ((columns >= 0) & (columns < len(labels))).all():
        problems.append(f"columns.npy names labels beyond the {len(labels)} there are")
    if len(starts) and (starts[0] != 0 or starts[-1] != kept or not (starts[1:] >= starts[:-1]).all()):
        problems.append(f"starts.npy does not ascend from 0 to {kept}")
    if problems:  # no weight may be looked up by such numbers; the caller refuses with all there is to say
        return Head(labels, np.zeros((0, len(labels)), dtype=np.float32), dense)
    return PrunedHead(labels, starts, columns, weights, dense)


def _file_problems(path: Path, expected: tuple[int, str]) -> list[str]:
    size, sha256 = expected
    try:
        if problem := odd_file(path):
            return [problem]
        if (found := path.stat().st_size) != size:
            return [f"{path.name} has {found} bytes, expected {size}"]
        with path.open("rb") as file:
            matches = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError as error:
        return [f"{path.name} cannot be read ({error.strerror})"]
    return [] if matches else [f"{path.name} does not match its sha256"]


def _vocabulary(path: Path) -> tuple[list[str], list[str]]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
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
