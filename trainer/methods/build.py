"""From settings to a recipe: the file that a method is named after builds it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from importlib import import_module

from .recipe import Context, Recipe
from .settings import MethodSettings


def build_recipe(methods: Sequence[MethodSettings], context: Context) -> Recipe:
    """The methods' recipes joined, in the order given."""
    return reduce(Recipe.plus, (_build(settings, context) for settings in methods), Recipe())


def _build(settings: MethodSettings, context: Context) -> Recipe:
    recipe: Recipe = import_module(f".{settings.method}", __package__).build(settings, context)
    return recipe
