"""All operations of the admin API: what is served, documented and tested is what stands here."""

from __future__ import annotations

from .classifiers import CLASSIFIERS
from .keys import KEYS
from .lora import LORA
from .operation import PREFIX, Operation
from .routes import ROUTES
from .texts import TEXTS
from .trail import TRAIL
from .versions import VERSIONS

OPERATIONS: tuple[Operation, ...] = (*ROUTES, *VERSIONS, *TEXTS, *CLASSIFIERS, *KEYS, *TRAIL, *LORA)


def path_of(operation: Operation) -> str:
    """Its whole path; those that are shaped as vLLM's stand where vLLM has them."""
    return operation.path if operation in LORA else f"{PREFIX}{operation.path}"


def is_admin(path: str) -> bool:
    """Whether a request's path is one of operators, and of nobody else."""
    return path == PREFIX or path.startswith(f"{PREFIX}/") or path in {one.path for one in LORA}
