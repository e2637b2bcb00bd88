"""Opening an encoder: by what the user calls it, or again by what a classifier was fitted with."""

from __future__ import annotations

from pathlib import Path

from adapters.home import Home

from ...errors import EncoderUnavailable
from ..encoding import EncoderRef, Precision
from .cache import cached_model, tuned_layout
from .layout import Layout, read_layout
from .onnx_encoder import OnnxEncoder, build_encoder

SOURCE_VARIABLE = "BRANCHLINE_ENCODER"


def encoder_cache(home: Home) -> Path:
    """Where a home keeps exported encoders."""
    return home.folder / "encoders"


def open_encoder(source: str, *, precision: Precision, cache: Path, threads: int = 1) -> OnnxEncoder:
    """The encoder that `source` names, a folder or a hub id; `threads` of one inference.

    The first opening exports it into `cache`, which takes torch and seconds. Blocks.
    Raises `EncoderUnavailable` saying what is missing or wrong.
    """
    return open_layout(read_layout(source), precision, cache, threads)


def find_encoder(ref: EncoderRef, source: str | None, cache: Path, *, threads: int = 1) -> OnnxEncoder:
    """The encoder a classifier was fitted with: tuned for it and kept whole in `cache`, else found in `source`.

    It has the same files and the precision that the classifier names.
    Raises `EncoderUnavailable` where no source is given, or another encoder.
    """
    if (tuned := tuned_layout(ref.digest, cache)) is not None and tuned.max_tokens == ref.max_tokens:
        return open_layout(tuned, ref.precision, cache, threads)
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
    return open_layout(layout, ref.precision, cache, threads)


def open_layout(layout: Layout, precision: Precision, cache: Path, threads: int = 1) -> OnnxEncoder:
    """Raises what `open_encoder` raises."""
    return build_encoder(layout, precision, cached_model(layout, precision, cache), threads)
