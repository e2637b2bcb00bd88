"""Frozen values as JSON and back, checked: what parent and workers tell each other."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import TypeAdapter


@functools.cache
def shape(kind: Any) -> TypeAdapter[Any]:
    """Reads and writes values of a type; made once for each, which takes milliseconds."""
    return TypeAdapter(kind)
