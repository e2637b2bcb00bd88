"""Reads a classifier folder, trusting nothing in it: sizes, digests, shapes, types and values are checked first."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from adapters.errors import InvalidName
from adapters.rows import canonical_json, sha256_json
from adapters.types import parse_route_name

from ..errors import ClassifierInvalid
from .abstain import SCORE_NAMES, ScoreName
from .artifact import FILES, MANIFEST, PRUNED_FILES, SCHEMA
from .centroids import PrunedHead
from .classifier import BASE, TEXT_RULE, Classifier
from .confidence import Confidence
from .encoding import EncoderRef, Precision
from .features import Floats, build_features
from .head import Head

Number = TypeVar("Number", bound=np.number)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MAX_MANIFEST_BYTES = 8 * 1024 * 1024
ENCODER_FIELDS = f"name, digest, precision ({' or '.join(PRECISIONS)}), dimension and max_tokens"
MAX_NAME_CHARACTERS = 200
MAX_HEADER_BYTES = 1_000  # of an .npy file; ours take 128


def load_classifier(folder: Path, *, digest: str | None = None) -> Classifier:
    """The classifier in `folder`, its weights memory-mapped (processes that load it share them).

    Raises `ClassifierInvalid` listing every problem; also where it is not the one named by `digest`.
    """
    manifest = _manifest(folder, digest)
    problems = [problem for name, one in manifest.files.items() for problem in _file_problems(folder / name, one)]
    _raise(problems)
    vocabulary = _vocabulary(folder / "vocabulary.json")
    size, labels = sum(map(len, vocabulary)), len(manifest.labels)
    weights = _weights(folder, size, manifest, problems)
    dimension = manifest.encoder.dimension if manifest.encoder else 0
    dense = _array(folder / "dense.npy", np.float32, (dimension, labels), problems)
    rows = _array(folder / "rows.npy", np.uint64, (manifest.rows,), problems)
    if not (rows[1:] > rows[:-1]).all():
        problems.append("rows.npy is not ascending")
    idf = _array(folder / "idf.npy", np.float64, (size,), problems)
    _raise(problems)
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


def _weights(
    folder: Path, size: int, manifest: _Manifest, problems: list[str]
) -> Callable[[Floats], Head | PrunedHead]:
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


class _Manifest:
    """classifier.json, field by field; every problem is collected in `problems`."""

    def __init__(self, value: Mapping[str, object]) -> None:
        self.problems: list[str] = []
        self._value = value
        self.digest = str(value.get("digest"))
        body = {key: item for key, item in value.items() if key != "digest"}
        if self.digest != sha256_json(body):
            self.problems.append(f"{MANIFEST} does not match its digest")
        if value.get("schema") != SCHEMA:
            self.problems.append(f"schema is {value.get('schema')!r:.20}, this version reads {SCHEMA}")
        if value.get("text_rule") != TEXT_RULE:
            self.problems.append(f"text_rule is {value.get('text_rule')!r:.80}, this version follows {TEXT_RULE!r}")
        self.labels = self._labels()
        self.rows = self._count("rows")
        self.kept = None if value.get("kept") is None else self._count("kept")
        self.encoder = self._encoder()
        self.unseen_idf = self._number("unseen_idf")
        self.temperature = self._number("temperature")
        self.confidence = self._confidence()
        self.own_thresholds = self._own_thresholds()
        self.threshold = self._number("threshold")
        self.score = self._score()
        self.summary = self._mapping("summary")
        self.files = self._files()
        if not self.temperature > 0:
            self.problems.append(f"temperature {self.temperature} is not positive")

    def _labels(self) -> tuple[str, ...]:
        found = self._value.get("labels")
        labels = tuple(str(label) for label in found) if isinstance(found, list) else ()
        routes = [label for label in labels if label != BASE]
        if list(labels) != sorted(set(labels)) or not routes:
            self.problems.append("labels are not a sorted list of distinct names with a route among them")
        for route in routes:
            try:
                parse_route_name(route)
            except InvalidName as error:
                self.problems.append(f"labels: {error.message:.120}")
        return labels

    def _number(self, key: str) -> float:
        found = number(self._value.get(key))
        if found is None:
            self.problems.append(f"{key} is {self._value.get(key)!r:.40}, expected a finite number")
            return 1.0
        return found

    def _count(self, key: str) -> int:
        found = self._value.get(key)
        if type(found) is not int or found < 1:
            self.problems.append(f"{key} is {found!r:.40}, expected a positive whole number")
            return 1
        return found

    def _confidence(self) -> Confidence:
        found = self._mapping("confidence")
        values = [number(found.get(key)) for key in ("temperature", "exponent")]
        if values[0] is None or values[1] is None or values[0] <= 0 or values[1] < 0:
            self.problems.append(f"confidence is {found!r:.200}, expected temperature over 0 and exponent from 0")
            return Confidence(1.0, 0.0)
        return Confidence(values[0], values[1])

    def _own_thresholds(self) -> dict[str, float]:
        found = {route: number(value) for route, value in self._mapping("own_thresholds").items()}
        if not set(found) <= set(self.labels) - {BASE} or None in found.values():
            self.problems.append("own_thresholds are not finite numbers by route")
        return {route: value for route, value in found.items() if value is not None}

    def _score(self) -> ScoreName:
        for name in SCORE_NAMES:
            if name == self._value.get("score"):
                return name
        self.problems.append(f"score is {self._value.get('score')!r:.40}, expected one of {', '.join(SCORE_NAMES)}")
        return SCORE_NAMES[0]

    def _encoder(self) -> EncoderRef | None:
        found = self._value.get("encoder")
        if found is None:
            return None
        try:
            return _encoder_ref(found if isinstance(found, dict) else {})
        except ValueError:
            self.problems.append(f"encoder is {found!r:.200}, expected {ENCODER_FIELDS}")
            return None

    def _mapping(self, key: str) -> dict[str, object]:
        found = self._value.get(key)
        if not isinstance(found, dict):
            self.problems.append(f"{key} is not an object")
            return {}
        return found

    def _files(self) -> dict[str, tuple[int, str]]:
        found = self._mapping("files")
        expected = FILES if self.kept is None else PRUNED_FILES
        if set(found) != set(expected):
            self.problems.append(f"files are {sorted(found)!r:.200}, expected {sorted(expected)}")
        files: dict[str, tuple[int, str]] = {}
        for name in expected:
            entry = found.get(name)
            size, sha256 = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
            if not isinstance(size, int) or not isinstance(sha256, str):
                self.problems.append(f"files: {name} lacks bytes or sha256")
            files[name] = (size if isinstance(size, int) else 0, str(sha256))
        return files


def number(found: object) -> float | None:
    """`found` where it is a finite number."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def _encoder_ref(found: Mapping[str, object]) -> EncoderRef:
    """Raises `ValueError`."""
    name, digest, dimension, max_tokens = (found.get(key) for key in ("name", "digest", "dimension", "max_tokens"))
    precision = next((known for known in PRECISIONS if known == found.get("precision")), None)
    if not isinstance(name, str) or not isinstance(digest, str) or precision is None:
        raise ValueError
    if not isinstance(dimension, int) or not isinstance(max_tokens, int) or min(dimension, max_tokens) < 1:
        raise ValueError
    if max(len(name), len(digest)) > MAX_NAME_CHARACTERS or isinstance(dimension, bool) or isinstance(max_tokens, bool):
        raise ValueError
    return EncoderRef(name, digest, precision, dimension, max_tokens)


def _manifest(folder: Path, digest: str | None) -> _Manifest:
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise ClassifierInvalid(f"{MANIFEST} is a link")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ClassifierInvalid(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
        value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        canonical_json(value).encode()
    except OSError as error:
        raise ClassifierInvalid(f"no classifier there: {MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ClassifierInvalid(f"{MANIFEST} is not valid JSON ({error!s:.120})") from error
    if not isinstance(value, dict):
        raise ClassifierInvalid(f"{MANIFEST} is not a JSON object")
    manifest = _Manifest(value)
    if digest is not None and manifest.digest != digest:
        manifest.problems.append(f"this is classifier {manifest.digest[:16]}, expected {digest[:16]}")
    _raise(manifest.problems)
    return manifest


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


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


def _raise(problems: list[str]) -> None:
    if problems:
        raise ClassifierInvalid(f"classifier refused: {'; '.join(problems)}")
