"""What the tests of EWC share: the four methods as builders, a run that starts from one learned task, and a move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.trainer_methods import Workshop
from trainer.lora import lora_layers
from trainer.methods.ewc import build as build_ewc
from trainer.methods.ewc_factors import build as build_factors
from trainer.methods.l2 import build as build_l2
from trainer.methods.online_ewc import build as build_online
from trainer.methods.recipe import Context, Recipe
from trainer.methods.settings import L2, Ewc, EwcFactors, OnlineEwc

Build = Callable[[Context], Recipe]


def ewc(weight: float = 1.0, **settings: Any) -> Build:
    return lambda context: build_ewc(Ewc(weight=weight, sequences=6, **settings), context)


def online(weight: float = 1.0) -> Build:
    return lambda context: build_online(OnlineEwc.model_validate({"weight": weight, "sequences": 6}), context)


def factors(weight: float = 1.0) -> Build:
    return lambda context: build_factors(EwcFactors.model_validate({"weight": weight, "sequences": 6}), context)


def l2(weight: float = 1.0) -> Build:
    return lambda context: build_l2(L2.model_validate({"weight": weight, "sequences": 6}), context)


EVERY = {"ewc": ewc, "online_ewc": online, "ewc_factors": factors, "l2": l2}


def fresh(workshop: Workshop, folder: Path, *, start: bool = True, **changes: Any) -> Context:
    """A run that starts from an adapter that learned one task, with its own cache."""
    past = replace(workshop.past(), start=folder if start else None)
    return workshop.context(past=past, cache=folder, **changes)


def moved(context: Context, size: float = 0.1) -> None:
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for layer in lora_layers(context.model):
            for parameter in (layer.a, layer.b):
                parameter.add_(size * torch.randn(parameter.shape, generator=draw))
