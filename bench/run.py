"""`make bench`: every measurement that needs no special machine, one after another."""

from . import (
    disable,
    fleet,
    latency,
    real_data,
    startup,
    vllm_adapters,
    vllm_gateway,
    vllm_kill,
    vllm_plugin,
    vllm_swap,
    vllm_versions,
)

PARTS = (
    *(startup, latency, disable, fleet, real_data),
    *(vllm_gateway, vllm_plugin, vllm_adapters, vllm_versions, vllm_swap, vllm_kill),
)


def main() -> None:
    """Run them all with their defaults."""
    for part in PARTS:
        part.main()


if __name__ == "__main__":
    main()
