"""The flags of `branchline serve` that choose and shape the engine. What vLLM is given is named as vLLM names it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from ..backends import BACKENDS

# A flag's name and the field of `EngineSettings` it sets; `--store` is the home's, so the engine's has a longer name.
FIELDS = {
    **{name: name for name in ("backend", "base", "max_loras", "max_lora_rank", "max_cpu_loras", "dtype")},
    **{name: name for name in ("max_model_len", "tensor_parallel_size", "arguments")},
    **{"engine": "urls", "engine_store": "store", "engine_python": "python"},
}
_OPTIONS = (
    click.option("--backend", type=click.Choice(BACKENDS), default="embedded", show_default=True, help="The engine."),
    click.option("--base", required=True, help="Base model: a folder or a hub id in the local cache."),
    click.option("--engine", multiple=True, metavar="URL", help="Use this running vLLM; may be repeated."),
    click.option("--engine-store", metavar="PATH", help="The store as engines without the plugin see it."),
    click.option("--engine-python", metavar="PATH", help="The Python that has vLLM. [default: this one]"),
    click.option("--max-loras", type=click.IntRange(1), help="Adapters in one batch of vLLM. [default: 4]"),
    click.option("--max-lora-rank", type=click.IntRange(1), help="Largest rank. [default: fits all versions]"),
    click.option(
        "--max-cpu-loras", type=click.IntRange(1), help="Adapters in memory. [default: all, within a quarter]"
    ),
    click.option("--dtype", help="Data type of vLLM's weights. [default: auto]"),
    click.option("--max-model-len", type=click.IntRange(1), help="Context length in tokens. [default: the base's]"),
    click.option("--tensor-parallel-size", type=click.IntRange(1), help="GPUs one engine spreads over. [default: 1]"),
    click.argument("arguments", nargs=-1, metavar="[-- VLLM FLAGS]", type=click.UNPROCESSED),
)


def engine_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a click command the engine's flags, and pass what they say as `engine`, `None` where one was not given."""

    @functools.wraps(command)
    def with_engine(*args: object, **kwargs: object) -> None:
        chosen = {field: kwargs.pop(name) or None for name, field in FIELDS.items()}
        command(*args, engine=chosen, **kwargs)

    wrapped: Callable[..., None] = with_engine
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
