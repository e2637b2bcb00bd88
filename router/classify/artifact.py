"""The classifier on disk: a folder without pickle. `loader.py` reads it back.

    weights.npy      float32 (features, labels); where the head is pruned: (weights kept,), and beside it
    columns.npy      int32 (weights kept,): the label of each, feature by feature
    starts.npy       int64 (features + 1,): where each feature's weights begin
    dense.npy        float32 (dimension of the encoder, labels); no rows without an encoder
    idf.npy          float64 (features,)
    vocabulary.json  {"words": [...], "characters": [...]}: terms by column
    rows.npy         uint64 (rows,), ascending: 64 bits of the sha256 of each row it was fitted on
    classifier.json  everything else, and size and sha256 of the files above; written last

The digest is the sha256 of classifier.json's canonical content without its field `digest`. The terms of the
vocabulary stem from the examples; whole examples are not stored.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adapters.errors import AlreadyExists
from adapters.files import sync
from adapters.rows import canonical_json, sha256_json

from .classifier import Classifier
from .head import Head
from .pruned_head import PrunedHead

SCHEMA = 3
MANIFEST = "classifier.json"
FILES = ("weights.npy", "dense.npy", "idf.npy", "vocabulary.json", "rows.npy")
PRUNED_FILES = (*FILES, "columns.npy", "starts.npy")


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write `folder` whole or not at all; the same classifier again changes nothing.

    Raises `AlreadyExists` where `folder` holds anything else, `OSError` where it cannot be written.
    """
    files = _encode(classifier)
    body = _body(classifier, files)
    manifest = canonical_json({**body, "digest": sha256_json(body)}).encode()
    if folder.exists():
        if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == manifest:
            return
        raise AlreadyExists(f"{folder.name} exists and is not this classifier", hint="name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    staged.mkdir()
    try:
        for name, content in [*files.items(), (MANIFEST, manifest)]:
            (staged / name).write_bytes(content)
            sync(staged / name)
        sync(staged)
        staged.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def digest_of(classifier: Classifier) -> str:
    """The digest `classifier` has on disk, whatever its field `digest` says."""
    return sha256_json(_body(classifier, _encode(classifier)))


def _encode(classifier: Classifier) -> dict[str, bytes]:
    features = classifier.features
    # ASCII JSON: a term may hold half a surrogate pair, which UTF-8 cannot carry.
    vocabulary = json.dumps({"words": list(features.words), "characters": list(features.characters)})
    return {
        **_encode_weights(classifier.head),
        "dense.npy": _npy(classifier.head.dense),
        "idf.npy": _npy(features.idf[1:-1]),
        "vocabulary.json": vocabulary.encode(),
        "rows.npy": _npy(classifier.rows),
    }


def _encode_weights(head: Head | PrunedHead) -> dict[str, bytes]:
    if isinstance(head, Head):
        return {"weights.npy": _npy(head.weights)}
    return {"weights.npy": _npy(head.values), "columns.npy": _npy(head.columns), "starts.npy": _npy(head.starts)}


def _body(classifier: Classifier, files: Mapping[str, bytes]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "text_rule": classifier.text_rule,
        "labels": list(classifier.head.labels),
        "kept": None if isinstance(classifier.head, Head) else len(classifier.head.values),
        "rows": len(classifier.rows),
        "encoder": asdict(classifier.encoder) if classifier.encoder else None,
        "unseen_idf": float(classifier.features.idf[-1]),
        "temperature": classifier.temperature,
        "confidence": asdict(classifier.confidence),
        "score": classifier.score_name,
        "threshold": classifier.threshold,
        "own_thresholds": dict(classifier.own_thresholds),
        "summary": dict(classifier.summary),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }


def _npy(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
