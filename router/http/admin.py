"""What operators do to a running gateway over HTTP: see its engines, take one out of the traffic and back in."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from ..backends.base import Serving
from ..errors import Forbidden
from ..keys.principal import ANONYMOUS, Principal


def is_operator(principal: Principal) -> bool:
    """Whether this is an operator's key. A server without keys is open to whoever reaches it."""
    return principal is ANONYMOUS or principal.may("operator")


async def require_operator(request: Request) -> None:
    """Raise `Forbidden` for a key that is no operator's."""
    principal: Principal = request.state.principal
    if not is_operator(principal):
        raise Forbidden(f"this key has the role {principal.role!r}, expected 'operator'", code="not_permitted")


def engine_routes(backend: Serving) -> APIRouter:
    """`GET /admin/v1/engines` and `POST /admin/v1/engines/NAME/drain` or `/resume`; a name may hold slashes."""
    router = APIRouter(prefix="/admin/v1/engines", dependencies=[Depends(require_operator)])

    def engines() -> JSONResponse:
        return JSONResponse({"engines": [asdict(engine) for engine in backend.engines]})

    @router.get("")
    async def listed() -> JSONResponse:
        return engines()

    @router.post("/{name:path}/drain")
    async def drain(name: str) -> JSONResponse:
        await backend.drain(name)
        return engines()

    @router.post("/{name:path}/resume")
    async def resume(name: str) -> JSONResponse:
        await backend.resume(name)
        return engines()

    return router
