"""The rules on `adapter_config.json`: plain LoRA on this base, within the engine's limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from .base import Base
from .errors import shown

_REFUSED_FIELDS = {
    "use_dora": "DoRA is not plain LoRA",
    "lora_bias": "lora_bias adds biases engines do not load",
    "modules_to_save": "modules_to_save replaces base modules",
    "alora_invocation_tokens": "aLoRA needs invocation tokens engines do not apply",
    "layer_replication": "layer replication changes the base's layers",
    "trainable_token_indices": "trainable tokens change the base's embeddings",
    "target_parameters": "target_parameters are not linear modules",
    "use_qalora": "QALoRA is not plain LoRA",
    "use_bdlora": "block-diagonal LoRA is not plain LoRA",
    "kasa_config": "KaSA is not plain LoRA",
    "monteclora_config": "MonteCLoRA is not plain LoRA",
    "velora_config": "VeLoRA is not plain LoRA",
    "arrow_config": "an Arrow router is not an adapter",
    "megatron_config": "Megatron layers are not loaded by engines",
    "fan_in_fan_out": "fan_in_fan_out weights are transposed, engines load them as they are",
}
_SAFE_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def config_problems(
    config: Mapping[str, object], base: Base, max_rank: int, base_is_same: str | None, notes: list[str]
) -> list[str]:
    """Everything in the config that an engine refuses, or would silently apply wrongly."""
    problems: list[str] = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {shown(config.get('peft_type'))}, only LORA is served")
    problems += [f"{field}: {why}" for field, why in _REFUSED_FIELDS.items() if config.get(field)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {shown(config.get('bias'))}, only 'none' is served")
    start = config.get("init_lora_weights", True)
    if not any(start is known or start == known for known in _SAFE_INITIALISATIONS):
        problems.append(f"init_lora_weights {shown(start)} changes the base's weights; convert it to plain LoRA first")
    problems += _rank_problems(config, max_rank)
    problems += _base_problems(config, base, base_is_same, notes)
    return problems


def _rank_problems(config: Mapping[str, object], max_rank: int) -> list[str]:
    problems = []
    rank, alpha, pattern = config.get("r"), config.get("lora_alpha"), config.get("rank_pattern") or {}
    if type(rank) is not int or rank < 1:
        problems.append(f"r is {shown(rank)}, expected a rank of 1 or more")
    elif rank > max_rank:
        problems.append(f"rank {rank} is over the limit of {max_rank} (max_lora_rank)")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1e6:
        problems.append(f"lora_alpha is {shown(alpha)}, expected a positive number")
    if not isinstance(pattern, dict):
        return [*problems, "rank_pattern is not an object"]
    for name, value in pattern.items():
        if type(value) is not int or not 1 <= value <= max_rank:
            problems.append(f"rank_pattern[{shown(name)}] is {shown(value)}, expected 1 to {max_rank} (max_lora_rank)")
    if config.get("alpha_pattern"):
        problems.append("alpha_pattern scales modules apart; engines scale all of them by lora_alpha")
    return problems


def _base_problems(config: Mapping[str, object], base: Base, base_is_same: str | None, notes: list[str]) -> list[str]:
    named = config.get("base_model_name_or_path")
    if isinstance(named, str) and _same_base(named, base):
        return []
    found = f"base {shown(named, 120)}" if isinstance(named, str) else "no base"
    if base_is_same:
        notes.append(f"names {found}, accepted as {base.id}: {base_is_same}")
        return []
    return [f"adapter_config.json names {found}, this is {base.id!r}; overrule with --base-is-same WHY"]


def _same_base(named: str, base: Base) -> bool:
    if named == base.id or Path(named) == base.folder:
        return True
    return PurePosixPath(named.replace("\\", "/")).name == PurePosixPath(base.id).name != ""
