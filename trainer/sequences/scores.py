"""Item-level scores of adapters on rows, kept on disk by content: what was scored once is never scored again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.base import Base
from adapters.manifests import weights_digest
from adapters.rows import sha256_json

from ..data import Encoded
from ..folder import write_bytes
from ..model import CONFIG_FILE, LoadedBase, load_adapter, load_base, load_weights
from ..observer import Observer, watch_scoring
from ..prompt_tuning import load_prompt
from .teacher_forced import Forced, ScoringPrecision, mean_kl, score_forced


@dataclass(slots=True)
class Scores:
    """Scores below `folder`, one gzip'd JSON file for an adapter (or the base) on a list of rows:
    `{"weights", "name", "items": [[row, exact, nll], …]}`.
    """

    folder: Path
    base: Base
    precision: ScoringPrecision
    observer: Observer
    _adapter: Path | None = field(default=None, init=False)
    _loaded: LoadedBase | None = field(default=None, init=False)
    _model: Any = field(default=None, init=False)

    def score(self, adapter: Path | None, items: Sequence[Encoded], name: str) -> list[Forced]:
        """The items' scores, in order, by the adapter in that folder or by the base alone."""
        weights = weights_digest(adapter) if adapter else None
        rows = [[item.row, sha256_json(item.completion)] for item in items]
        file = self.folder / f"{sha256_json([self.base.fingerprint, weights, rows, self.precision])[:32]}.json.gz"
        if not file.is_file():
            model, loaded = self._carrying(adapter)
            watch = watch_scoring(self.observer)
            scored = score_forced(
                model, items, loaded.pad_token, self.precision, lambda done: watch(name, done, len(items))
            )
            written = [[item.row, int(one.exact), one.nll] for item, one in zip(items, scored, strict=True)]
            _write_compressed(file, {"weights": weights, "name": name, "items": written})
        found = json.loads(gzip.decompress(file.read_bytes()))["items"]
        return [Forced(bool(exact), nll) for _, exact, nll in found]

    def kl(self, adapter: Path, reference: Path | None, items: Sequence[Encoded]) -> float:
        """KL(p_reference ‖ p_adapter) on `items`, nats per supervised token; without reference that of the base.

        Both adapters have one shape.
        """
        model, loaded = self._carrying(adapter)

        @contextmanager
        def other() -> Iterator[None]:
            if reference is None:
                with model.disable_adapter():
                    yield
                return
            load_weights(model, reference)
            yield
            load_weights(model, adapter)

        return mean_kl(model, other, items, loaded.pad_token)

    def _carrying(self, adapter: Path | None) -> tuple[Any, LoadedBase]:
        """A model with that adapter on it; the last one is kept."""
        if self._loaded is None or adapter != self._adapter:
            self._loaded = load_base(self.base)
            self._model = _load(self._loaded, adapter) if adapter else self._loaded.model
            self._adapter = adapter
        return self._model, self._loaded


def _load(loaded: LoadedBase, adapter: Path) -> Any:
    kind = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))["peft_type"]
    return load_prompt(loaded, adapter) if kind == "PROMPT_TUNING" else load_adapter(loaded, adapter)


def _write_compressed(path: Path, value: object) -> None:
    write_bytes(path, gzip.compress(json.dumps(value, allow_nan=False).encode(), mtime=0))
