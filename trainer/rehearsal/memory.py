"""Which rows of earlier tasks are remembered: quotas, and an order of every task's rows by priority.

A task keeps the first rows of its own order, as many as its quota. When a further task comes, quotas fall and every
task gives up the end of its order: nothing is ever evicted because it is old.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

NOISY_SHARE = 0.02
_STARTS = 1  # k-means++ starts: with k in the hundreds one start is as good as several and costs a fraction
_ROUNDS = 50


def quotas(capacity: int, tasks: int) -> list[int]:
    """Rows that each of `tasks` may keep: ⌊capacity / tasks⌋, and one more for the first capacity mod tasks.

    They sum to `capacity`. What a task with fewer rows leaves of its quota stays unused: no quota depends on the data.
    """
    each, over = divmod(capacity, tasks)
    return [each + (index < over) for index in range(tasks)]


def first_quota(capacity: int, index: int) -> int:
    """The quota of task `index` (from 0) when it was the newest: the largest it ever has."""
    return quotas(capacity, index + 1)[index]


def shuffled(keys: Sequence[str], seed: int) -> list[int]:
    """Indices in a random order that depends on each row's key and the seed, not on the order of the rows."""

    def draw(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{keys[index]}".encode()).digest()

    return sorted(range(len(keys)), key=lambda index: (draw(index), index))


def hardest(losses: Sequence[float], random_order: Sequence[int]) -> list[int]:
    """By turns the hardest row left and the next of `random_order`, so that half of every prefix is random.

    `losses` are mean nats per token. The top 2 % are likely mislabelled: they come last of all, hardest last.
    """
    ranked = sorted(range(len(losses)), key=lambda index: (-losses[index], index))
    noisy = ranked[: int(NOISY_SHARE * len(ranked))]
    clean = [index for index in random_order if index not in set(noisy)]
    turns = (one for pair in zip(ranked[len(noisy) :], clean, strict=True) for one in pair)
    return [*_once(turns), *reversed(noisy)]


def diverse(embeddings: NDArray[np.float32], count: int, random_order: Sequence[int], seed: int) -> list[int]:
    """k-means representatives, then the other rows in `random_order`.

    `embeddings` (rows, features) are L2-normalised here; k = `count` (at most the distinct rows), one k-means++ start,
    fixed seed. Of each cluster the row nearest its centroid, ties by index. Representatives are ordered farthest
    first from the largest cluster's on, so that a prefix of a diverse selection is diverse too.
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    clusters = min(count, len(np.unique(unit.round(5), axis=0)))
    found = KMeans(clusters, random_state=seed % 2**32, n_init=_STARTS, max_iter=_ROUNDS).fit(unit)
    distances = np.linalg.norm(unit - found.cluster_centers_[found.labels_], axis=1)
    order = np.lexsort((distances, found.labels_))
    labels, first, sizes = np.unique(found.labels_[order], return_index=True, return_counts=True)
    representatives = order[first][np.lexsort((labels, -sizes))]
    return _once([*(int(index) for index in _farthest_first(unit, representatives)), *random_order])


def _farthest_first(unit: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """`rows` from the first on, each the farthest from those before it."""
    points = unit[rows]
    nearest = np.full(len(rows), np.inf)
    chosen = [0]
    for _ in range(len(rows) - 1):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return rows[chosen]


def _once(indices: Iterable[int]) -> list[int]:
    """Each index where it first stands."""
    return list(dict.fromkeys(indices))
