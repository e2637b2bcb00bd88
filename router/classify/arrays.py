"""Arrays out of .npy files whose type and shape are known beforehand, so that no header is ever interpreted.

The format is NumPy's NEP 1, version 1.0: 6 bytes of magic, 2 of version, 2 of the header's length, the header padded
with spaces, the numbers. `numpy.load` evaluates a header, opens zip files, and trusts the shape it finds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.number)

MAGIC = b"\x93NUMPY\x01\x00"
MAX_HEADER_BYTES = 1_000  # ours take 118


def read_array(path: Path, kind: type[Number], shape: tuple[int, ...], problems: list[str]) -> npt.NDArray[Number]:
    """The array in `path`, memory-mapped and finite; a wrong one is described in `problems` and comes back empty.

    Nothing is allocated by `shape` unless the file has as many bytes.
    """
    nothing = np.zeros((0,) * len(shape), dtype=kind)
    dtype = np.dtype(kind).newbyteorder("<")
    wanted = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 2)
            header = file.read(min(int.from_bytes(start[len(MAGIC) :], "little"), MAX_HEADER_BYTES))
            offset = file.tell()
        if not start.startswith(MAGIC) or not header.endswith(b"\n"):
            problems.append(f"{path.name} is no plain array")
            return nothing
        if (found := header.decode("latin-1").rstrip()) != wanted:
            problems.append(f"{path.name} is {found!r:.160}, expected {wanted}")
            return nothing
        size, expected = path.stat().st_size, offset + math.prod(shape) * dtype.itemsize
        if size != expected:
            problems.append(f"{path.name} is an array of {size} bytes, expected {expected}")
            return nothing
        # Not mapped where it is empty: an empty file region cannot be.
        mapped = np.memmap(path, dtype, "r", offset, shape) if math.prod(shape) else np.zeros(shape, dtype)
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        problems.append(f"{path.name} cannot be read as {wanted} ({error!s:.120})")
        return nothing
    array: npt.NDArray[Number] = np.asarray(mapped, dtype=kind)
    if not np.isfinite(array).all():
        problems.append(f"{path.name} holds NaN or Inf")
        return nothing
    return array
