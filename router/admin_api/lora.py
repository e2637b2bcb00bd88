"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as tools made for vLLM ask for them.

Loading publishes and promotes, and makes the route where there is none. A route that is unloaded is disabled, so that
loading it again brings it back; a version (`sql@3`) that is unloaded is retired for good. What an operator has disabled
stays so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adapters.base import find_base
from adapters.check import Limits, file_problems
from adapters.command import read_bytes
from adapters.errors import BadAdapter, NotFound, Refused
from adapters.evidence import Evidence, parse_evidence
from adapters.manifests import weights_digest
from adapters.policy import Policy
from adapters.promotion import promote
from adapters.types import AdapterRef, RouteState

from ..errors import InvalidRequest
from .bodies import Load, Unload
from .folders import find_folder
from .operation import Answer, Asked, Operation
from .versions import publish

UNLOADED = "unloaded by POST /v1/unload_lora_adapter"
EVIDENCE = "evidence.json"


def _load(asked: Asked) -> Answer:
    wanted: Load = asked.body
    if not wanted.lora_name or not wanted.lora_path:
        raise InvalidRequest("Both 'lora_name' and 'lora_path' must be provided.", code="missing_field")
    ref = AdapterRef.parse(wanted.lora_name)
    folder = find_folder(wanted.lora_path, asked.place.lora_folders)
    _require_no_base(asked, wanted.lora_name)
    state = _found(asked, ref)
    if state is not None:
        _require_unloaded(asked, state, wanted)
    _require_files(folder)
    if ref.number is not None:
        _require_number(asked, state, ref, folder)
    state = state or asked.registry.create_route(ref.route).state
    version = publish(replace(asked, route=state.name), str(folder), _evidence(folder)).version
    serial = _bring_in(asked, state, version.number)
    text = f"Success: LoRA adapter '{wanted.lora_name}' added successfully."
    return Answer(text, serial=serial, route=state.name)


def _evidence(folder: Path) -> Evidence | None:
    file = folder / EVIDENCE
    inside = file.resolve().is_relative_to(folder) and file.is_file()
    return parse_evidence(read_bytes(file)) if inside else None


def _found(asked: Asked, ref: AdapterRef) -> RouteState | None:
    try:
        return asked.registry.route(ref.route)
    except NotFound:
        return None


def _require_no_base(asked: Asked, name: str) -> None:
    if name == find_base(asked.place.base, cache=asked.place.home.fingerprints).id:
        message = f"The lora adapter '{name}' conflicts with a served base model."
        raise InvalidRequest(message, param="lora_name", code="base_name")


def _require_files(folder: Path) -> None:
    """Refuse what is no adapter at all before a route is made for it."""
    problems = file_problems(folder, Limits())
    if problems:
        raise BadAdapter("; ".join(problems), hint="mend the folder", problems=problems)


def _require_number(asked: Asked, state: RouteState | None, ref: AdapterRef, folder: Path) -> None:
    """Refuse a folder that is, or would become, another version than the one that is named."""
    digest = weights_digest(folder)
    versions = [] if state is None else asked.registry.versions(state.name)
    number = next((one.number for one in versions if one.digest == digest), len(versions) + 1)
    if number != ref.number:
        raise InvalidRequest(f"the folder is version {number} of its route, not {ref}", param="lora_name")


def _require_unloaded(asked: Asked, state: RouteState, wanted: Load) -> None:
    if not state.enabled:
        said = [one.why for one in asked.registry.events(route=state.name) if one.kind == "disabled"]
        if said[-1] != UNLOADED:
            raise Refused(f"route {state.name!r} was disabled by an operator", hint="enable it first")
    elif state.live is not None and not wanted.load_inplace:
        raise InvalidRequest(
            f"The lora adapter '{wanted.lora_name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True.",
            code="lora_already_loaded",
        )


def _bring_in(asked: Asked, state: RouteState, number: int) -> int:
    """Promote the version unless it is live, enable the route if it was unloaded; the serial of its last event."""
    serial = asked.registry.events(route=state.name)[-1].serial
    if state.live != number:
        forced = asked.forced
        if forced is None and Policy.of(state.policy).lora_load == "forced":
            forced = "loaded by POST /v1/load_lora_adapter; the route's policy says lora_load=forced"
        serial = promote(asked.registry, asked.store, state.name, number, forced=forced).change.event.serial
    if not state.enabled:
        serial = asked.registry.enable(state.name, why="loaded by POST /v1/load_lora_adapter").event.serial
    return serial


def _unload(asked: Asked) -> Answer:
    wanted: Unload = asked.body
    if not wanted.lora_name:
        raise InvalidRequest("'lora_name' needs to be provided to unload a LoRA adapter.", code="missing_field")
    ref = AdapterRef.parse(wanted.lora_name)
    state = _found(asked, ref)
    if ref.number is not None:
        there = state is not None and ref.number <= state.latest and ref.number not in state.retired
    else:
        there = state is not None and state.enabled and state.live is not None
    if not there:
        raise NotFound(f"The lora adapter '{wanted.lora_name}' cannot be found.", hint="see `branchline adapter list`")
    if ref.number is not None:
        change = asked.registry.retire(ref.route, ref.number, why=UNLOADED)
    else:
        change = asked.registry.disable(ref.route, why=UNLOADED)
    text = f"Success: LoRA adapter '{wanted.lora_name}' removed successfully."
    return Answer(text, serial=change.event.serial, route=ref.route)


LORA = (
    Operation(
        "load_lora_adapter",
        "POST",
        "/v1/load_lora_adapter",
        "admin",
        "As vLLM's: publish a folder of this server and promote it.",
        _load,
        Load,
        follows="events",
        answers={"type": "string"},
    ),
    Operation(
        "unload_lora_adapter",
        "POST",
        "/v1/unload_lora_adapter",
        "admin",
        "As vLLM's: disable a route, or retire a version.",
        _unload,
        Unload,
        follows="events",
        answers={"type": "string"},
    ),
)
