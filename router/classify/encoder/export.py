"""An encoder to ONNX, and the same in int8. Run as a program of its own: torch never enters a serving process.

    python -m router.classify.encoder.export fp32 FOLDER POOLING OUT PARENT
    python -m router.classify.encoder.export int8 FP32 OUT PARENT

It ends with the process whose id is PARENT.

The graph holds the pooling too: `input_ids` and `attention_mask` (texts, tokens) int64 → `vectors` (texts, dimension)
float32, rows of length 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...parent_death import end_with

if TYPE_CHECKING:
    import torch


def export_fp32(folder: str, pooling: str, out: Path) -> None:
    import torch
    from transformers import AutoModel

    class Sentences(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return pool(states, attention_mask, pooling)

    ids = torch.full((2, 9), 5)
    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens")
    shapes = {"input_ids": {0: texts, 1: tokens}, "attention_mask": {0: texts, 1: tokens}}
    torch.onnx.export(
        Sentences().eval(),
        (ids, torch.ones_like(ids)),
        out,
        input_names=list(shapes),
        output_names=["vectors"],
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
    )


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """(texts, tokens, dimension) → (texts, dimension): the first token's vector, or the mean of those that `mask`
    (texts, tokens) marks with 1; divided by its length.
    """
    import torch

    vectors = states[:, 0]
    if pooling == "mean":
        kept = mask.unsqueeze(-1).to(states.dtype)
        vectors = (states * kept).sum(dim=1) / kept.sum(dim=1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def quantise(fp32: Path, out: Path) -> None:
    """Weights to int8 by output channel, activations to uint8 as they come (ONNX Runtime's dynamic quantisation).

    Weights keep 7 of their 8 bits: with all 8, processors without VNNI saturate, and their vectors are others.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(fp32, out, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


def main(arguments: list[str]) -> None:
    kind, *rest, parent = arguments
    end_with(int(parent))
    if kind == "fp32":
        folder, pooling, out = rest
        export_fp32(folder, pooling, Path(out))
    else:
        fp32, out = rest
        quantise(Path(fp32), Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
