"""Files that are not what was published: a corrupted version or classifier is never served, the one before it stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from adapters.check import WEIGHTS_FILE
from adapters.classifiers import classifier_version, promote_classifier, rollback_classifier

from .fault_clients import load
from .fault_engine_cases import judged
from .fault_ground import PINNED, Count, Ground, publish_new_classifier, until

Damage = Callable[[Path, Path], None]


async def version_corrupted(ground: Ground) -> Count:
    """A bit of the weights has changed since publication."""
    return await _damaged(ground, 11, _flip)


async def version_missing(ground: Ground) -> Count:
    """Its folder is gone."""
    return await _damaged(ground, 12, lambda folder, _: shutil.rmtree(folder))


async def version_swapped(ground: Ground) -> Count:
    """Another version's weights lie in its place: well-formed, and wrong."""
    return await _damaged(ground, 13, _swap)


async def classifier_corrupted(ground: Ground) -> Count:
    """A bit of the classifier's weights has changed: the one in force goes on deciding, visibly."""
    before = ground.ready()["problems"]["classifier"]
    number = publish_new_classifier(ground, "second", promote=False)
    with ground.registry() as registry:
        digest = classifier_version(registry, number).digest
    folder = ground.home.open_store().classifier_folder(digest)
    _flip_largest(folder)
    async with load(ground.urls, PINNED) as ran:
        await ran.more(ground.answers // 2)
        with ground.registry() as registry:
            promote_classifier(registry, number)
        await until(lambda: bool(ground.ready()["problems"]["classifier"]), "that the problem is seen")
        during = await ran.more(ground.answers)
        with ground.registry() as registry:
            rollback_classifier(registry)
        await until(lambda: not ground.ready()["problems"]["classifier"], "that it is gone")
    lost = [
        f"auto was answered by {one.stage}" for one in during if one.question.model == "auto" and one.stage != "live"
    ]
    counted = judged(ran.answers, cut=False)
    return replace(counted, broken=[*counted.broken, *lost, *([str(before)] if before else [])])


async def _damaged(ground: Ground, seed: int, damage: Damage) -> Count:
    """Promote a version whose files are damaged: it is a problem that is seen, and never an answer."""
    with ground.registry() as registry:
        (live,) = [state.live for state in registry.routes() if state.name == "sql"]
    number = ground.publish(seed)
    damage(ground.stored(number), ground.stored(1))
    async with load(ground.urls, PINNED) as ran:
        await ran.more(ground.answers // 2)
        with ground.registry() as registry:
            registry.promote("sql", number, forced="fault")
        await until(lambda: "sql" in ground.ready()["problems"]["routes"], "that the problem is seen")
        await ran.more(ground.answers)
        with ground.registry() as registry:
            registry.rollback("sql")
        await until(lambda: "sql" not in ground.ready()["problems"]["routes"], "that it is gone")
    named = [one for one in ran.answers if one.question.model == "sql"]
    wrong = [f"{one.version or one.stage} answered for sql" for one in named if one.version != f"sql@{live}"]
    counted = judged(ran.answers, cut=False)
    return replace(counted, broken=[*counted.broken, *wrong])


def _flip(folder: Path, _other: Path) -> None:
    _flip_a_bit(folder / WEIGHTS_FILE)


def _swap(folder: Path, other: Path) -> None:
    content = (other / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).chmod(0o600)
    (folder / WEIGHTS_FILE).write_bytes(content)


def _flip_largest(folder: Path) -> None:
    _flip_a_bit(max(folder.glob("*.npy"), key=lambda path: path.stat().st_size))


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
