"""One merge from its inputs to its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import fmean

import torch

from adapters.base import Base
from adapters.manifests import weights_digest
from adapters.rows import sha256_file

from ..errors import Interrupted, NoScaleKeeps
from ..folder import RunFolder, write_json
from ..observer import Observer
from .config import MergeSettings
from .folders import read_adapter
from .inputs import Source
from .merge import Weighted, merge_adapters, refuse_large_rank, refuse_misfits, write_merged
from .sweep import Sweep, sweep_scales


def run_merge(
    settings: MergeSettings, base: Base, sources: Sequence[Source], identity: str, folder: RunFolder, observer: Observer
) -> Mapping[str, object]:
    """Write OUT/adapter and OUT/run.json; returns the record.

    Raises `Interrupted` where the observer asks to stop, `NoScaleKeeps` where a sweep finds none (OUT/sweep.json says
    why), and `RankTooLarge` where an exact result needs more rank than engines load and no rank was asked for.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    sweep = _sweep(settings, base, sources[0], folder, observer) if settings.sweep else None
    if sweep is not None:
        sources = [replace(sources[0], weight=sweep.chosen)]
    inputs = [
        Weighted(read_adapter(one.folder), one.digest, 1.0 if one.weight is None else one.weight) for one in sources
    ]
    refuse_misfits(inputs)
    refuse_large_rank(inputs, settings)
    folder.claim(identity)
    merged = merge_adapters(inputs, settings, watch_merging(observer))
    write_merged(merged, inputs, settings, folder.adapter, base)
    record: dict[str, object] = {
        "identity": identity,
        "base": {"id": base.id, "fingerprint": base.fingerprint},
        "inputs": [{**one.facts, "weight": put.weight} for one, put in zip(sources, inputs, strict=True)],
        "settings": settings.shaping,
        "files": {name: {"file": file.name, "sha256": sha256_file(file)} for name, file in settings.files.items()},
        "rank": merged.rank,
        "energy_lost": {"max": max(merged.lost.values()), "mean": fmean(merged.lost.values())},
        "energy_lost_by_layer": dict(merged.lost),
        "sweep": sweep.summary() if sweep else None,
        "weights_digest": weights_digest(folder.adapter),
        "versions": {name: version(name) for name in ("branchline", "torch", "peft")},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder.finish(record)
    return record


def watch_merging(observer: Observer) -> Callable[[int, int], None]:
    """What a merge calls after every layer; raises `Interrupted` where the observer asks to stop."""

    def on_layer(done: int, total: int) -> None:
        if observer.stop_requested:
            raise Interrupted(f"interrupted after {done} of {total} layers", hint="the same command starts again")
        observer.advance("merging", done, total)

    return on_layer


def _sweep(settings: MergeSettings, base: Base, source: Source, folder: RunFolder, observer: Observer) -> Sweep:
    route = settings.route or source.name.partition("@")[0]
    sweep = sweep_scales(settings, route, source.folder, base, folder.work, observer)
    if sweep.chosen is None:
        write_json(folder.out / "sweep.json", sweep.summary())
        smallest = min(one.scale for one in sweep.points)
        raise NoScaleKeeps(
            f"no scale of {source.name} down to {smallest:g} keeps every guardrail: an NLL rise of at most "
            f"{sweep.bound:g} nats per token",
            hint="sweep.json has every scale; train again with replay, a KL penalty or a lower learning rate",
        )
    return sweep
