"""The flags that name a sentence encoder: alike in `serve` and in the classifier's commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import click

from ..classify.encoder.opening import SOURCE_VARIABLE
from ..classify.encoding import Precision

DEFAULT_PRECISION: Precision = "int8"

encoder_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--encoder",
    envvar=SOURCE_VARIABLE,
    metavar="DIR|HUB_ID",
    help="Sentence encoder, a folder or a hub id [default: none].",
)


def precision_option(flag: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """How an encoder runs, under the name that the command gives the flag."""
    return click.option(
        flag,
        type=click.Choice(get_args(Precision)),
        default=DEFAULT_PRECISION,
        show_default=True,
        help="How the encoder runs.",
    )
