"""The model list as OpenAI clients read it: the base first, then `auto`, then what is live. No disk paths."""

from __future__ import annotations

from adapters.types import AUTO

from ..policy import Snapshot


def model_list(snapshot: Snapshot, permitted: frozenset[str] | None = None) -> dict[str, object]:
    """`GET /v1/models`. The base stands alone without `parent`; routes appear while enabled with a live version.

    Of them only those `permitted` to the key that asks; `None` permits all.
    """
    live = [
        route.name
        for route in snapshot.routes.values()
        if route.enabled and route.wanted is not None and (permitted is None or route.name in permitted)
    ]
    cards = [_card(snapshot.base_id, None), *(_card(name, snapshot.base_id) for name in [AUTO, *sorted(live)])]
    return {"object": "list", "data": cards}


def _card(name: str, parent: str | None) -> dict[str, object]:
    card: dict[str, object] = {"id": name, "object": "model", "created": 0, "owned_by": "branchline"}
    return card if parent is None else {**card, "parent": parent}
