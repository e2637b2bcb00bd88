"""Where a call goes: to the engine that answers it soonest, and to another one where that fails."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

from adapters.errors import BranchlineError

from ...errors import AdapterUnavailable, EngineFailed, EngineOverloaded, EngineUnavailable
from ...types import Call, Reply
from .client import EngineBroke, EngineStalled
from .replica import Replica

MAX_FAILURES = 2  # engines that may fail at one call: what two could not survive shall not reach the others
SWAP_PENALTY = 2  # calls: what bringing a version into a batch costs, against waiting behind others
Kept = TypeVar("Kept")


class Spread(Generic[Kept]):
    """`held` are the versions that shall be resident, by engine name, the most recently used one last."""

    def __init__(self, base_id: str) -> None:
        self.replicas: Sequence[Replica] = ()
        self._base_id = base_id
        self._held: OrderedDict[str, Kept] = OrderedDict()

    async def open(self, call: Call) -> Reply:
        """Begin `call` where it is answered soonest; where that fails before a byte came, on another engine.

        An engine that cannot be reached or takes no call is passed over; at most `MAX_FAILURES` may fail at it. From
        one that stands still it goes to another, once: what takes long everywhere shall not wander about.
        Raises what the last engine raised, `AdapterUnavailable` where none has the version, `EngineUnavailable` where
        none is up.
        """
        if call.engine_name in self._held:
            self._held.move_to_end(call.engine_name)
        elif call.engine_name != self._base_id:
            raise AdapterUnavailable(f"{call.engine_name} is not resident")
        tried: set[str] = set()
        problem: BranchlineError | None = None
        failures, stays = 0, False
        while failures < MAX_FAILURES and (replica := self._choose(call.engine_name, tried)) is not None:
            tried.add(replica.name)
            try:
                return await self._open_on(replica, call, stays=stays)
            except EngineStalled as error:
                problem, stays = error, True
                tried.clear()  # where there is no other after all, it goes back
            except (EngineFailed, EngineOverloaded, AdapterUnavailable) as error:
                problem = error
                failures += _failed_at_it(error)
        raise problem or self._nobody(call.engine_name)

    def is_resident(self, engine_name: str) -> bool:
        """Whether an engine that is up has a version that is held."""
        return engine_name in self._held and any(
            replica.state == "up" and replica.has(engine_name) for replica in self.replicas
        )

    async def _open_on(self, replica: Replica, call: Call, *, stays: bool) -> Reply:
        """One try; raises what `Replica.open` raises."""
        return await replica.open(call, stays=stays)

    def _leave_the_stalled(self) -> None:
        """Calls that wait for an engine which stands still go where another one can answer them."""
        others = [one for one in self.replicas if one.state == "up" and one.is_trusted()]
        for stalled in self.replicas:
            if stalled.stalled:
                stalled.traffic.move(lambda name: any(one.has(name) for one in others))

    def _choose(self, engine_name: str, tried: set[str]) -> Replica | None:
        """The engine with the fewest calls that has the version ready; each name has its favourite among equals.

        An engine that failed again and again is asked only where there is no other: calls that no engine can answer
        must not close a healthy one to everybody. A call that began before its version was no longer held keeps it.
        """
        up = [
            replica
            for replica in self.replicas
            if replica.state == "up" and replica.name not in tried and replica.has(engine_name)
        ]
        fit = [replica for replica in up if replica.is_trusted()] or up
        if len(fit) < 2:
            return fit[0] if fit else None
        return min(fit, key=lambda replica: (_cost(replica, engine_name), _rank(engine_name, replica.name)))

    def _nobody(self, engine_name: str) -> BranchlineError:
        if engine_name != self._base_id and not self.is_resident(engine_name):
            return AdapterUnavailable(f"{engine_name} is not resident")
        return EngineUnavailable("no engine can take the request now")


def _failed_at_it(error: BranchlineError) -> bool:
    return isinstance(error, EngineBroke) or (
        isinstance(error, EngineFailed) and not isinstance(error, EngineUnavailable)
    )


def _cost(replica: Replica, engine_name: str) -> int:
    return replica.traffic.outstanding + (0 if replica.is_active(engine_name) else SWAP_PENALTY)


def _rank(engine_name: str, replica_name: str) -> bytes:
    """Rendezvous hashing: every gateway prefers the same engine for the same name."""
    return hashlib.blake2b(f"{engine_name}\n{replica_name}".encode(), digest_size=8).digest()
