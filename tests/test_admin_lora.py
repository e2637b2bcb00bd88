"""Adapters loaded and unloaded as tools made for vLLM do it: publish and promote, disable and retire."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest

from adapters.manifests import weights_digest
from adapters.registry import Registry
from router.auth import Gatekeeper
from tests.adapter_folders import make_evidence
from tests.admin_client import OWN_KEY, V1, Person, person
from tests.gateway_parts import Served, Stock, make_stock
from tests.test_router_app import body, require_error

WHY = "a test"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=2, routes=["sql"])


@pytest.fixture(scope="module")
def folders(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server may load from: adapters a and b, and one of them with evidence that passes the gate."""
    root = tmp_path_factory.mktemp("loras")
    for name, folder in zip("ab", stock.folders, strict=True):
        copytree(folder, root / name)
    copytree(stock.folders[0], root / "good")
    evidence = make_evidence(weights_digest(stock.folders[0]), stock.base.fingerprint)
    (root / "good" / "evidence.json").write_text(evidence.to_json())
    return root


@pytest.fixture(scope="module")
def served(stock: Stock, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = stock.copy(tmp_path_factory.mktemp("served") / "home")
    gatekeeper = Gatekeeper.for_bind("127.0.0.1", OWN_KEY)
    with Served(home, stock.base, gatekeeper, lora_folders=(folders,)) as served:
        yield served


@pytest.fixture(scope="module")
def tool(served: Served) -> Iterator[Person]:
    with person(served, "admin", name="tool") as somebody:
        yield somebody


@pytest.fixture
def registry(served: Served) -> Registry:
    return served.gateway.registry


def load(tool: Person, name: str, path: object, *, in_place: bool = False, force: str = "") -> httpx.Response:
    document: dict[str, Any] = {"lora_name": name, "lora_path": str(path), "load_inplace": in_place}
    headers = {"x_branchline_force": force} if force else {}
    return tool.ask("POST", "/v1/load_lora_adapter", document, **headers)


def unload(tool: Person, name: str) -> httpx.Response:
    return tool.ask("POST", "/v1/unload_lora_adapter", {"lora_name": name, "lora_int_id": None})


def models(tool: Person) -> set[str]:
    return {card["id"] for card in tool.done("GET", "/v1/models")["data"]}


def answered_by(tool: Person, model: str) -> str:
    found: str = tool.done("POST", "/v1/chat/completions", body(model))["model"]
    return found.partition(".")[0]


def test_a_tool_made_for_vllm_loads_uses_and_unloads_an_adapter_and_reads_what_vllm_says(
    tool: Person, registry: Registry, folders: Path
) -> None:
    loaded = load(tool, "first", folders / "a", force=WHY)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'first' added successfully.")
    assert "first" in models(tool)
    assert answered_by(tool, "first") == "first@1"
    again = require_error(load(tool, "first", folders / "b"), 400, "lora_already_loaded")
    assert again["message"] == (
        "The lora adapter 'first' has already been loaded. If you want to load the adapter in place, "
        "set 'load_inplace' to True."
    )
    assert load(tool, "first", folders / "b", in_place=True, force=WHY).status_code == 200
    assert answered_by(tool, "first") == "first@2"
    registry.create_route("beside")  # what happens to others is not waited for
    assert load(tool, "first", folders / "b", in_place=True).status_code == 200  # it is live already
    gone = unload(tool, "first")
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'first' removed successfully.")
    assert "first" not in models(tool)
    missing = require_error(unload(tool, "first"), 404, "not_found")
    assert missing["message"] == "The lora adapter 'first' cannot be found."
    assert load(tool, "first", "b").status_code == 200  # the folder's name will do, and the gate has let it in before
    assert answered_by(tool, "first") == "first@2"
    assert [one.number for one in registry.versions("first")] == [1, 2]
    trail = [(one.kind, one.actor) for one in registry.events(route="first") if one.kind in ("promoted", "disabled")]
    assert trail == [("promoted", "key:tool"), ("promoted", "key:tool"), ("disabled", "key:tool")]


def test_without_evidence_the_gate_refuses_unless_the_routes_policy_says_otherwise(
    tool: Person, registry: Registry, folders: Path
) -> None:
    refused = require_error(load(tool, "second", folders / "a"), 409, "gate_refused")
    assert "evidence" in refused["message"]
    assert registry.route("second").live is None
    assert "second" not in models(tool)
    tool.done("PATCH", f"{V1}/routes/second", {"policy": {"lora_load": "forced"}})
    assert load(tool, "second", folders / "a").status_code == 200
    promoted = registry.events(route="second")[-1]
    assert (promoted.kind, promoted.payload["forced"]) == ("promoted", True)
    assert "lora_load=forced" in (promoted.why or "")


def test_evidence_that_lies_beside_an_adapter_passes_the_gate_without_force(
    tool: Person, registry: Registry, folders: Path
) -> None:
    assert load(tool, "third", folders / "good").status_code == 200
    promoted = registry.events(route="third")[-1]
    assert (promoted.kind, promoted.payload["forced"]) == ("promoted", False)


def test_a_route_that_an_operator_disabled_stays_so_whatever_a_tool_loads(
    tool: Person, registry: Registry, folders: Path
) -> None:
    load(tool, "fourth", folders / "a", force=WHY)
    registry.disable("fourth", why="an incident")
    require_error(load(tool, "fourth", folders / "a", in_place=True, force=WHY), 409, "refused")
    require_error(load(tool, "fourth", folders / "b", in_place=True, force=WHY), 409, "refused")
    assert not registry.route("fourth").enabled
    assert registry.route("fourth").latest == 1


def test_a_version_that_is_unloaded_is_retired_and_the_one_before_it_answers(
    tool: Person, registry: Registry, folders: Path
) -> None:
    load(tool, "fifth@1", folders / "a", force=WHY)
    require_error(load(tool, "fifth@7", folders / "b", in_place=True, force=WHY), 400, None)
    load(tool, "fifth", folders / "b", in_place=True, force=WHY)
    assert unload(tool, "fifth@2").status_code == 200
    assert registry.route("fifth").stage(2) == "retired"
    assert answered_by(tool, "fifth") == "fifth@1"
    require_error(unload(tool, "fifth@2"), 404, "not_found")
    require_error(unload(tool, "fifth@9"), 404, "not_found")


def test_nothing_is_loaded_from_elsewhere(
    tool: Person, registry: Registry, folders: Path, stock: Stock, tmp_path: Path
) -> None:
    serial = registry.serial()
    (folders / "link").symlink_to(stock.folders[0])
    (folders / "up").symlink_to("..")
    (folders / "round").symlink_to("round")
    outside = stock.folders[0]
    for wrong in (
        outside,
        "/",
        "/etc",
        "..",
        folders.parent,
        folders / "link",
        folders / "up" / "loras0",
        "a/../../../etc",
        os.path.relpath(outside, folders),
        f"{folders}-evil",
        "a\0b",
        "round",
        "x" * 5000,
    ):
        response = load(tool, "sixth", wrong, force=WHY)
        assert response.status_code in (400, 403), (wrong, response.text)
        assert str(outside.parent) not in response.text
    for wrong in ("nothing", "a/adapter_config.json"):
        require_error(load(tool, "sixth", wrong, force=WHY), 400, "folder_not_found")
    assert registry.serial() == serial  # not even the route was made
    inside = folders / "inside"
    inside.symlink_to("a")
    assert load(tool, "sixth", inside, force=WHY).status_code == 200


def test_files_of_a_folder_that_lead_out_of_it_are_not_read(
    tool: Person, folders: Path, stock: Stock, tmp_path: Path
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        folder = folders / f"leads-out-{name[8]}"
        copytree(stock.folders[0], folder)
        (folder / name).unlink()
        (folder / name).symlink_to(stock.folders[0] / name)
        require_error(load(tool, "seventh", folder, force=WHY), 400, "bad_adapter")
    folder = folders / "evidence-leads-out"
    copytree(stock.folders[0], folder)
    secret = tmp_path / "secret.json"
    secret.write_text('{"secret": 1}')
    (folder / "evidence.json").symlink_to(secret)
    assert load(tool, "seventh", folder, force=WHY).status_code == 200


def test_a_server_without_folders_to_load_from_loads_nothing(
    stock: Stock, folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = stock.copy(tmp_path_factory.mktemp("none") / "home")
    with (
        Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", OWN_KEY), lora_folders=()) as served,
        person(served, "admin") as admin,
    ):
        require_error(load(admin, "sql", folders / "a", force=WHY), 403, "loading_disabled")
        publishing = admin.ask("POST", f"{V1}/routes/sql/versions", {"folder": str(folders / "a")})
        require_error(publishing, 403, "loading_disabled")


def test_what_vllm_refuses_is_refused_as_vllm_does(tool: Person, folders: Path) -> None:
    for document in ({}, {"lora_name": "x"}, {"lora_name": "", "lora_path": "a"}):
        refused = require_error(tool.ask("POST", "/v1/load_lora_adapter", document), 400, "missing_field")
        assert refused["message"] == "Both 'lora_name' and 'lora_path' must be provided."
    refused = require_error(tool.ask("POST", "/v1/unload_lora_adapter", {}), 400, "missing_field")
    assert refused["message"] == "'lora_name' needs to be provided to unload a LoRA adapter."
    require_error(load(tool, "tiny", folders / "a", force=WHY), 400, "base_name")
    require_error(load(tool, "Not A Route", folders / "a", force=WHY), 400, "invalid_name")
    require_error(unload(tool, "nobody"), 404, "not_found")
