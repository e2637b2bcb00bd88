"""A home with a classifier in it, made by the commands a user types."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
from pathlib import Path

from adapters.home import Home

from .classifier_data import Rows
from .gateway import BRANCHLINE

FIT_GIB = 12


def fit_home(folder: Path, fitted: Rows, calibration: Rows, coverage: float, arguments: argparse.Namespace) -> Home:
    """Fit on `fitted` and make it the classifier in use, with the encoder that the options name.

    The fit may take `FIT_GIB` of memory. Raises `RuntimeError` with what it said where it failed.
    """
    home = Home.at(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = [BRANCHLINE, "classifier", "fit", "--promote", "--home", str(folder), "--coverage", str(coverage)]
    command += ["--examples", str(_written(folder / "fitted.jsonl", fitted))]
    if calibration:
        command += ["--calibrate-on", str(_written(folder / "calibration.jsonl", calibration))]
    if arguments.encoder:
        command += ["--encoder", arguments.encoder, "--precision", arguments.precision]
        _bring_exported(home, arguments.cache)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (FIT_GIB << 30, FIT_GIB << 30))
    said = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"the fit failed: {said.strip().rpartition(chr(10))[2]}")
    return home


def _bring_exported(home: Home, cache: Path | None) -> None:
    """Spare the fit the export where `--cache` has it."""
    if cache is not None and cache.is_dir():
        from router.classify.encoder.opening import encoder_cache

        shutil.copytree(cache, encoder_cache(home), dirs_exist_ok=True)


def _written(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows))
    return path
