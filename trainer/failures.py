"""Memory and disks that end, said in one line each. Libraries report both in many ways."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from .errors import DiskFull, OutOfMemory

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MEMORY_WORDS = ("out of memory", "can't allocate memory")
_DISK_WORDS = ("no space left on device", "file too large", "quota exceeded")
_KEPT = "the last saved state is kept and the same command goes on from there"


@contextlib.contextmanager
def told_clearly() -> Iterator[None]:
    """Raise `OutOfMemory` and `DiskFull` in place of what torch, safetensors and the system raise for them."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _disk_full(error) from error
    except (RuntimeError, SafetensorError) as error:
        text = str(error).lower()
        if any(words in text for words in _MEMORY_WORDS):
            raise _out_of_memory(error) from error
        if any(words in text for words in _DISK_WORDS):
            raise _disk_full(error) from error
        raise


def _out_of_memory(error: BaseException) -> OutOfMemory:
    return OutOfMemory(
        f"out of memory: {_first_line(error)}",
        hint=f"set gradient_checkpointing: {_KEPT}; or begin anew with a smaller batch_tokens and accumulation raised "
        "to match",
    )


def _disk_full(error: BaseException) -> DiskFull:
    return DiskFull(f"a file of the run cannot be written: {_first_line(error)}", hint=f"make room: {_KEPT}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
