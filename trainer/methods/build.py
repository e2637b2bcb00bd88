"""From settings to a recipe: the file that a method is named after builds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

from .recipe import Context, Recipe
from .settings import MethodSettings


def build_recipe(methods: Sequence[MethodSettings], context: Context) -> Recipe:
    """The methods' recipes joined, in the order given but for masking, which comes first: the others then know only
    the tokens that are left, and T_new counts no other.
    """
    recipe = Recipe()
    for settings in sorted(methods, key=lambda one: one.method != "masking"):
        built = _build(settings, context)
        for rewrite in built.rewrite:
            context = replace(context, examples=tuple(rewrite(context.examples)))
        recipe = recipe.plus(built)
    return recipe


def _build(settings: MethodSettings, context: Context) -> Recipe:
    recipe: Recipe = import_module(f".{settings.method}", __package__).build(settings, context)
    return recipe
