"""The options that the classifier's benchmarks share, and where their tables go."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .classifier_arms import Remembered
from .results import Row, write_results


def parser_of(documentation: str | None) -> argparse.ArgumentParser:
    """A parser with the options that the functions here read."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("dev", "test"), default="dev", help="dev prints, test writes the table")
    parser.add_argument("--encoder", metavar="SOURCE", help="folder or hub id [default: words and letters alone]")
    parser.add_argument(
        "--precision", choices=("fp32", "int8"), default="int8", help="of the encoder [default: int8, as the commands]"
    )
    parser.add_argument("--cache", type=Path, help="the exported encoder is kept here [default: a temporary folder]")
    return parser


def encoder_of(arguments: argparse.Namespace) -> Remembered | None:
    """The encoder that the options name."""
    if arguments.encoder is None:
        return None
    from router.classify.encoder.opening import open_encoder

    return Remembered(open_encoder(arguments.encoder, precision=arguments.precision, cache=cache_of(arguments)))


def cache_of(arguments: argparse.Namespace) -> Path:
    """Where exported encoders are kept."""
    return arguments.cache or Path(tempfile.mkdtemp(prefix="branchline-encoder-"))


def publish(name: str, title: str, rows: Iterable[Row], arguments: argparse.Namespace) -> None:
    """Say each row as it comes; of `test` write the results too."""
    kept: list[Row] = []
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.4g}"
        print(f"{row.what}: {value} {row.unit}  ({row.note})", flush=True)
        kept.append(row)
    if arguments.split == "test":
        write_results(name, title, kept, _command())


def _command() -> str:
    """What was typed, without the places of this machine."""
    module = Path(sys.argv[0]).stem
    typed = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return " ".join([f"python -m bench.{module}", *typed])
