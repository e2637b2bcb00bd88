"""The rules on `adapter_model.safetensors`: pairs of A and B that fit the base's linear layers, finite, not empty."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .base import MAX_HEADER_BYTES, Base
from .errors import BadInput, shown
from .tensors import TensorEntry, read_header, stream_facts

_KEY = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]{1,200})\.lora_(?P<side>[AB])\.weight")
_FLOATS = ("F32", "F16", "BF16")
_SHOWN = 8


def weight_problems(
    path: Path,
    entries: Mapping[str, TensorEntry],
    config: Mapping[str, object] | None,
    base: Base,
    max_rank: int,
    notes: list[str],
) -> tuple[dict[str, int], list[str]]:
    """The rank by module, and every problem of keys, shapes and values; `config` is `None` where it is unreadable."""
    strangers: list[str] = []
    pairs = _pairs(entries, strangers)
    shapes = _base_shapes(base, notes)
    misfits: list[str] = []
    ranks: dict[str, int] = {}
    for module, sides in sorted(pairs.items()):
        problem = _pair_problem(sides, shapes.get(module) if shapes else (), max_rank)
        if problem:
            misfits.append(f"{module}: {problem}")
        else:
            ranks[module] = sides["A"].shape[0]
    kinds = [
        strangers,
        [] if pairs else ["holds no lora_A / lora_B weights: the adapter would do nothing"],
        misfits,
        [] if config is None else _target_problems(config, pairs) + _rank_problems(config, ranks),
        _value_problems(path, {module: pairs[module] for module in ranks}, notes),
    ]
    return ranks, [problem for kind in kinds for problem in _shortened(kind)]


def _pairs(entries: Mapping[str, TensorEntry], problems: list[str]) -> dict[str, dict[str, TensorEntry]]:
    pairs: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        match = _KEY.fullmatch(name)
        if match is None:
            problems.append(f"weight {shown(name, 120)} is not a plain LoRA weight of a linear layer")
        else:
            pairs.setdefault(match["module"], {})[match["side"]] = entry
    return pairs


def _pair_problem(sides: Mapping[str, TensorEntry], base_shape: tuple[int, ...] | None, max_rank: int) -> str | None:
    """`base_shape` is (out, in), `()` where it cannot be told, `None` where the base has no such module."""
    if set(sides) != {"A", "B"}:
        return f"lora_{'B' if 'A' in sides else 'A'} is missing"
    a, b = sides["A"], sides["B"]
    if a.dtype not in _FLOATS or b.dtype not in _FLOATS:
        return f"dtype {a.dtype}/{b.dtype}, expected one of {', '.join(_FLOATS)}"
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return f"shapes {list(a.shape)} and {list(b.shape)} are no [rank, in] and [out, rank]"
    if not 1 <= a.shape[0] <= max_rank:
        return f"rank {a.shape[0]}, expected 1 to {max_rank} (max_lora_rank)"
    if base_shape is None:
        return "the base has no such linear layer"
    if base_shape and (b.shape[0], a.shape[1]) != base_shape:
        return f"adapts [{b.shape[0]}, {a.shape[1]}], the base's layer is {list(base_shape)}"
    return None


def _base_shapes(base: Base, notes: list[str]) -> dict[str, tuple[int, ...]]:
    """(out, in) by module of the base's matrices; empty where the weights are packed and shapes say nothing."""
    try:
        config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
        if config.get("quantization_config"):
            notes.append("base is quantised: target shapes were not compared")
            return {}
        shards = [read_header(shard, limit=MAX_HEADER_BYTES) for shard in sorted(base.folder.glob("*.safetensors"))]
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise BadInput(f"base {base.id}: {error}", hint="download the base again") from error
    return {
        name.removesuffix(".weight"): entry.shape
        for shard in shards
        for name, entry in shard.items()
        if name.endswith(".weight") and len(entry.shape) == 2 and "embed" not in name
    }


def _target_problems(config: Mapping[str, object], pairs: Iterable[str]) -> list[str]:
    targets = config.get("target_modules")
    if isinstance(targets, str):
        return []  # a pattern or "all-linear": the weights themselves say what is adapted
    if not isinstance(targets, list) or not targets or not all(isinstance(one, str) and one for one in targets):
        return [f"target_modules is {shown(targets)}, expected a list of module names"]
    wanted, there, unnamed = set(targets), set(), []
    for module in pairs:
        named = [name for name in _names(module) if name in wanted]
        there.update(named)
        if not named:
            unnamed.append(module)
    empty = [target for target in targets if target not in there]
    return [f"{module}: weights for a module that target_modules does not name" for module in unnamed] + [
        f"target_modules names {shown(target)}, for which there are no weights" for target in empty
    ]


def _names(module: str) -> Iterator[str]:
    """What a target may call `module`: its whole name, or what follows any of its dots."""
    while module:
        yield module
        module = module.partition(".")[2]


def _rank_problems(config: Mapping[str, object], ranks: Mapping[str, int]) -> list[str]:
    pattern = config.get("rank_pattern")
    found = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    allowed = {one for one in found if isinstance(one, int)}
    return [
        f"{module}: rank {rank} is neither r nor in rank_pattern"
        for module, rank in ranks.items()
        if rank not in allowed
    ]


def _value_problems(path: Path, pairs: Mapping[str, Mapping[str, TensorEntry]], notes: list[str]) -> list[str]:
    problems, empty = [], []
    for module, sides in pairs.items():
        for side, entry in sides.items():
            facts = stream_facts(path, entry)
            if not facts.all_finite:
                problems.append(f"{module}: lora_{side} holds NaN or Inf")
            if side == "B" and facts.all_zero:
                empty.append(module)
    if len(empty) == len(pairs) > 0:
        problems.append("every lora_B is zero: the adapter changes nothing")
    elif empty:
        notes.append(f"lora_B is zero in {len(empty)} of {len(pairs)} modules")
    return problems


def _shortened(problems: list[str]) -> list[str]:
    """The same complaint about hundreds of modules is one complaint: the first few are shown, the rest counted."""
    more = len(problems) - _SHOWN * 4
    return problems if more <= 0 else [*problems[: _SHOWN * 4], f"and {more} more of this kind"]
