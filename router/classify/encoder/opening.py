"""Opening an encoder: by what the user calls it, or again by what a classifier was fitted with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from adapters.home import Home
from adapters.store import Store

from ...errors import EncoderUnavailable
from ..encoding import EncoderRef, Precision
from .cache import cached_model, keep_packed, tuned_layout
from .layout import Layout, read_layout
from .onnx_encoder import OnnxEncoder, build_encoder
from .packing import PACKED, pack_encoder

SOURCE_VARIABLE = "BRANCHLINE_ENCODER"
OpenStore = Callable[[], Store]
_MEND = "publish the classifier again where its encoder is"


def encoder_cache(home: Home) -> Path:
    """Where a home keeps exported encoders."""
    return home.folder / "encoders"


def open_encoder(source: str, *, precision: Precision, cache: Path, threads: int = 1) -> OnnxEncoder:
    """The encoder that `source` names, a folder or a hub id; `threads` of one inference.

    The first opening exports it into `cache`, which takes torch and seconds. Blocks.
    Raises `EncoderUnavailable` saying what is missing or wrong.
    """
    return open_layout(read_layout(source), precision, cache, threads)


def store_tuned(ref: EncoderRef | None, cache: Path, store: Store) -> None:
    """Where a classifier's encoder was tuned for it, put it into the store, for every gateway that reads from there."""
    tuned = None if ref is None else tuned_layout(ref.digest, cache)
    if tuned is not None:
        with tempfile.TemporaryDirectory() as scratch:
            pack_encoder(tuned.folder, Path(scratch) / PACKED)
            with store.staged(Path(scratch), [PACKED]) as staged:
                store.publish_encoder(staged, tuned.digest)


def find_encoder(
    ref: EncoderRef, source: str | None, cache: Path, *, open_store: OpenStore | None = None, threads: int = 1
) -> OnnxEncoder:
    """The encoder a classifier was fitted with: tuned for it and kept whole in `cache`, else found in `source`, else
    the tuned one that the store has, which goes into `cache`.

    It has the same files and the precision that the classifier names.
    Raises `EncoderUnavailable` where it is in none of them, and what the store raises.
    """
    if (tuned := tuned_layout(ref.digest, cache)) is not None and tuned.max_tokens == ref.max_tokens:
        return open_layout(tuned, ref.precision, cache, threads)
    try:
        return open_layout(_given(ref, source), ref.precision, cache, threads)
    except EncoderUnavailable:
        stored = _stored(ref, cache, open_store()) if open_store is not None else None
        if stored is None:
            raise
    return open_layout(stored, ref.precision, cache, threads)


def _stored(ref: EncoderRef, cache: Path, store: Store) -> Layout | None:
    """The store's encoder; a copy of it here that is damaged is fetched once more."""
    for again in (False, True):
        folder = store.encoder_folder(ref.digest, again=again)
        if folder is None:
            return None
        try:
            return keep_packed(ref.digest, folder / PACKED, cache)
        except (EncoderUnavailable, OSError) as error:
            if again:
                raise EncoderUnavailable(f"the stored encoder {ref.name} is damaged", hint=_MEND) from error
    return None


def _given(ref: EncoderRef, source: str | None) -> Layout:
    wanted = f"{ref.name} ({ref.digest[:16]}, {ref.precision})"
    if source is None:
        raise EncoderUnavailable(
            f"the classifier was fitted with the encoder {wanted}, and no encoder is given",
            hint=f"name it by --encoder or {SOURCE_VARIABLE}",
        )
    layout = read_layout(source)
    if layout.digest != ref.digest or layout.max_tokens != ref.max_tokens:
        raise EncoderUnavailable(
            f"the classifier was fitted with the encoder {wanted},"
            f" the one given is {layout.name} ({layout.digest[:16]})",
            hint="give the same encoder, or fit the classifier again with this one",
        )
    return layout


def open_layout(layout: Layout, precision: Precision, cache: Path, threads: int = 1) -> OnnxEncoder:
    """Raises what `open_encoder` raises."""
    return build_encoder(layout, precision, cached_model(layout, precision, cache), threads)
