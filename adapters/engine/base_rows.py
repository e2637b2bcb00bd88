"""Keep adapters off the base's rows on vLLM's CPU build.

Its LoRA operations pick each row's weights by `weights[index]`, and a row of the base has the index -1: in a batch
with adapters the base answers with whatever adapter lies in the last slot (vLLM 0.32.0; upstream: pull request 48421).
The GPU kernels skip such rows. All three operations are linear in their input, so a row of zeros adds nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

OPERATIONS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
HOME = "vllm.lora.ops.torch_ops.lora_ops"
USERS = ("vllm.lora.ops.torch_ops", "vllm.lora.punica_wrapper.punica_cpu")
MARK = "__branchline_skips_base_rows__"


def skip_base_rows() -> None:
    """Mend this process's operations. For vLLM's CPU platform only; harmless where it is called again."""
    home = import_module(HOME)
    for name in OPERATIONS:
        operation = getattr(home, name)
        if hasattr(operation, MARK):
            continue
        mended = _skipping(operation)
        for module in (home, *(sys.modules[user] for user in USERS if user in sys.modules)):
            setattr(module, name, mended)


def _skipping(operation: Callable[..., None]) -> Callable[..., None]:
    """`operation(inputs [rows, n], weights, output, indices [rows], …)` with the rows of index -1 zeroed."""

    @wraps(operation)
    def mended(inputs: Any, weights: Any, output: Any, indices: Any, *others: Any, **named: Any) -> None:
        kept = inputs.masked_fill((indices < 0).unsqueeze(1), 0)
        operation(kept, weights, output, indices, *others, **named)

    setattr(mended, MARK, True)
    return mended
