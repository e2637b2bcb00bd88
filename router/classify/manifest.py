"""classifier.json read and checked field by field, trusting nothing in it."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeGuard, get_args

from adapters.errors import InvalidName
from adapters.rows import canonical_json, sha256_json
from adapters.types import parse_route_name

from ..errors import ClassifierInvalid
from .abstain import SCORE_NAMES, ScoreName
from .artifact import FILES, MANIFEST, PRUNED_FILES, SCHEMA
from .classifier import BASE, TEXT_RULE
from .confidence import EXPONENTS, TEMPERATURES, Confidence
from .encoding import EncoderRef, Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MAX_MANIFEST_BYTES = 8 * 1024 * 1024
ENCODER_FIELDS = f"name, digest (sha256), precision ({' or '.join(PRECISIONS)}), dimension and max_tokens"
MAX_NAME_CHARACTERS = 200
MAX_COUNT = 2**40  # rows, weights
MAX_DIMENSION = 2**16
MAX_TOKENS = 2**20
IDF = (1e-3, 1e3)  # a fit's are at least 1; beyond, squares of them end in 0 or infinity
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Manifest:
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
        if not IDF[0] <= self.unseen_idf <= IDF[1]:
            self.problems.append(f"unseen_idf {self.unseen_idf} is outside of {IDF}")
        if not _within(self.temperature, TEMPERATURES):
            self.problems.append(f"temperature {self.temperature} is outside of {TEMPERATURES}")

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
        if not is_count(found, MAX_COUNT):
            self.problems.append(f"{key} is {found!r:.40}, expected a whole number from 1 to {MAX_COUNT}")
            return 1
        return found

    def _confidence(self) -> Confidence:
        found = self._mapping("confidence")
        temperature, exponent = number(found.get("temperature")), number(found.get("exponent"))
        if (
            temperature is None
            or exponent is None
            or not _within(temperature, TEMPERATURES)
            or not _within(exponent, EXPONENTS)
        ):
            self.problems.append(f"confidence is {found!r:.200}, expected a temperature and an exponent")
            return Confidence(1.0, 0.0)
        return Confidence(temperature, exponent)

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


def _within(value: float, bounds: tuple[float, float]) -> bool:
    """With room for rounding: a fit ends on a bound at times."""
    return bounds[0] - 1e-6 <= value <= bounds[1] + 1e-6


def is_count(found: object, most: int) -> TypeGuard[int]:
    """Whether `found` is a whole number from 1 to `most`."""
    return type(found) is int and 1 <= found <= most


def number(found: object) -> float | None:
    """`found` where it is a finite number."""
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        value = float(found)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _encoder_ref(found: Mapping[str, object]) -> EncoderRef:
    """Raises `ValueError`."""
    name, digest, dimension, max_tokens = (found.get(key) for key in ("name", "digest", "dimension", "max_tokens"))
    precision = next((known for known in PRECISIONS if known == found.get("precision")), None)
    if not isinstance(name, str) or len(name) > MAX_NAME_CHARACTERS or precision is None:
        raise ValueError
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError
    if not is_count(dimension, MAX_DIMENSION) or not is_count(max_tokens, MAX_TOKENS):
        raise ValueError
    return EncoderRef(name, digest, precision, dimension, max_tokens)


def read_manifest(folder: Path, digest: str | None) -> Manifest:
    """The manifest in `folder`, the one with `digest` where given. Raises `ClassifierInvalid` with every problem."""
    path = folder / MANIFEST
    try:
        if problem := odd_file(path):
            raise ClassifierInvalid(problem)
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
    manifest = Manifest(value)
    if digest is not None and manifest.digest != digest:
        manifest.problems.append(f"this is classifier {manifest.digest[:16]}, expected {digest[:16]}")
    refuse(manifest.problems)
    return manifest


def odd_file(path: Path) -> str | None:
    """What is wrong with `path` if it is anything but a file: a link leads elsewhere, a pipe never ends."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"{path.name} is a link"
    return None if stat.S_ISREG(mode) else f"{path.name} is no file"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def refuse(problems: Sequence[str]) -> None:
    """Raise `ClassifierInvalid` where there is a problem."""
    if problems:
        raise ClassifierInvalid(f"classifier refused: {'; '.join(problems)}")
