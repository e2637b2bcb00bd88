"""ONNX files by digest: exported once, checked on every reading, built again where they are not what they were."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapters.files import make_folder, sync, write_atomically

from ...errors import EncoderUnavailable
from ..encoding import Precision
from .layout import Layout, read_layout
from .packing import unpack_encoder

EXPORT_SECONDS = 900.0
_SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


def cached_model(layout: Layout, precision: Precision, cache: Path) -> bytes:
    """The ONNX model of `layout` out of `cache`, exported into it first where needed. Blocks: seconds then.

    `<digest>-<precision>.onnx` lies beside its sha256; a pair that does not match is built again. Of several
    processes one exports, the others wait for it. Needs torch only where the fp32 file is missing.
    Raises `EncoderUnavailable` where the model cannot be exported, or the folder not be written.
    """
    path = cache / f"{layout.digest}-{precision}.onnx"
    if (found := _intact(path)) is not None:
        return found
    try:
        make_folder(cache)
        with _held(cache / f".{layout.digest}.lock"):
            return _built(layout, precision, cache)
    except OSError as error:
        raise EncoderUnavailable(
            f"the exported encoder {layout.name} cannot be kept ({error.strerror})", hint=f"check the folder {cache}"
        ) from error


def tuned_layout(digest: str, cache: Path) -> Layout | None:
    """What `tune_encoder` put into `cache` under this digest, `None` where it did not, or where it is damaged."""
    if not _SHA256.fullmatch(digest):
        return None  # it is a folder's name below
    for folder in sorted((cache / digest).glob("*-tuned")):
        try:
            layout = read_layout(str(folder))
        except (EncoderUnavailable, OSError) as error:
            log.warning("a tuned encoder in the cache cannot be used: %s", error)
            continue
        if layout.digest == digest:
            return layout
        log.warning("the tuned encoder %s (%s) in the cache is damaged", layout.name, digest[:16])
    return None


def keep_packed(digest: str, packed: Path, cache: Path) -> Layout:
    """Put the packed encoder that has this digest into `cache`, as `tune_encoder` would have.

    Raises `EncoderUnavailable` where it cannot be unpacked or is another one.
    """
    make_folder(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as aside:
        folder = unpack_encoder(packed, Path(aside) / "staged")
        layout = read_layout(str(folder))
        if layout.digest != digest:
            raise EncoderUnavailable(f"the stored encoder {digest[:16]} is another one, {layout.digest[:16]}")
        with _held(cache / f".{digest}.lock"):
            if (kept := tuned_layout(digest, cache)) is not None:
                return kept  # another process was faster
            replace_folder(cache / digest, folder.parent, Path(aside))
    return read_layout(str(cache / digest / layout.name))


def replace_folder(target: Path, new: Path, aside: Path) -> None:
    """Rename `new` to `target`; what lies there, which is damaged, goes into `aside`."""
    if target.exists():
        target.rename(aside / "damaged")
    new.rename(target)


def _built(layout: Layout, precision: Precision, cache: Path) -> bytes:
    path = cache / f"{layout.digest}-{precision}.onnx"
    if (found := _intact(path)) is not None:
        return found  # somebody else built it while we waited
    with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as aside:
        new = Path(aside) / path.name
        if precision == "fp32":
            _run(layout, ["fp32", str(layout.folder), layout.pooling, str(new)])
        else:
            _built(layout, "fp32", cache)
            _run(layout, ["int8", str(cache / f"{layout.digest}-fp32.onnx"), str(new)])
        content = new.read_bytes()
        sync(new)
        new.replace(path)
    write_atomically(_checksum(path), hashlib.sha256(content).hexdigest().encode())
    return content


def _intact(path: Path) -> bytes | None:
    """The bytes of `path` if they are those that were written."""
    try:
        content, expected = path.read_bytes(), _checksum(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == expected else None


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Wait for the file `lock` and hold it; it goes with the process, however that ends."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(layout: Layout, arguments: Sequence[str]) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "router.classify.encoder.export", *arguments, str(os.getpid())]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=EXPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EncoderUnavailable(
            f"encoder {layout.name} was not exported to {arguments[0]} within {EXPORT_SECONDS:.0f} s"
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        last = last.replace(str(layout.folder), layout.name)  # a message holds no path
        raise EncoderUnavailable(
            f"encoder {layout.name} could not be exported to {arguments[0]}: {last:.300}",
            hint="exporting takes pip install 'branchline[encoder]'; it may be done on another machine, see the cache",
        )
