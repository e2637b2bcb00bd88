"""What an engine is started with fits the versions there are, and the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.types import AdapterVersion
from router.backends.vllm.sizing import SPARE_VERSIONS, fitting_cpu_loras, fitting_rank, physical_memory
from tests.tiny_model import make_version

MEGABYTE = 1024**2


def version(*, rank: int = 8, size_bytes: int = MEGABYTE) -> AdapterVersion:
    made = make_version("sql")
    return replace(made, manifest=replace(made.manifest, rank=rank, size_bytes=size_bytes))


@pytest.mark.parametrize(
    ("ranks", "expected"), [([], 16), ([4], 16), ([16, 17], 32), ([64, 8], 64), ([300], 320), ([4096], 512)]
)
def test_the_rank_is_the_smallest_that_every_version_fits_into(ranks: list[int], expected: int) -> None:
    assert fitting_rank([version(rank=rank) for rank in ranks]) == expected


def test_every_version_and_some_new_ones_stay_in_memory() -> None:
    versions = [version() for _ in range(40)]
    assert fitting_cpu_loras(versions, max_loras=4, memory_bytes=1024 * MEGABYTE) == 40 + SPARE_VERSIONS


def test_memory_limits_them_by_the_largest_version() -> None:
    versions = [version(), version(size_bytes=10 * MEGABYTE)] * 100
    assert fitting_cpu_loras(versions, max_loras=4, memory_bytes=1024 * MEGABYTE) == 25


def test_there_are_never_fewer_than_a_batch_takes() -> None:
    versions = [version(size_bytes=physical_memory())]
    assert fitting_cpu_loras(versions, max_loras=4) == 4
