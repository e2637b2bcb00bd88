"""How a gateway opens what judges: a stored classifier, and the encoder that its settings name."""

from __future__ import annotations

from pathlib import Path

from ..classify.classifier import Classifier
from ..classify.encoder.opening import encoder_cache, find_encoder, open_encoder
from ..classify.encoding import Encoder, EncoderRef
from ..classify.loader import load_classifier
from ..settings import Settings


def open_classifier(folder: Path, digest: str) -> Classifier:
    """Raises what `load_classifier` raises."""
    return load_classifier(folder, digest=digest)


def open_own_encoder(settings: Settings, ref: EncoderRef | None) -> Encoder | None:
    """The encoder a classifier was fitted with, or, asked for none in particular, the one that was given, if any."""
    given, cache = settings.encoder, encoder_cache(settings.home)
    if ref is not None:
        return find_encoder(ref, given.source if given else None, cache, open_store=settings.home.open_store)
    return open_encoder(given.source, precision=given.precision, cache=cache) if given else None
