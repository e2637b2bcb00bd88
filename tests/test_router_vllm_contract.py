"""The conformance suite of engines against a real vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.base import find_base
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.store import Store
from adapters.types import AdapterVersion
from router.backends.vllm.engines import external_backend
from router.errors import AdapterUnavailable, InvalidRequest
from tests.backend_contract import USER, BackendContract, Live, ObservableBackend, Rig, chat, completions, text
from tests.tiny_model import make_adapter
from tests.vllm_engine import BASE_ID, POCKET_BASE, VllmEngine, needs_vllm, vllm_engine

pytestmark = needs_vllm
RANKS = (2, 4, 8)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[tuple[AdapterVersion, Path], ...]]:
    """A store with three versions of different ranks on the pocket base, and each with its folder there."""
    root = tmp_path_factory.mktemp("store")
    store, base = Store(root / "store"), find_base(str(POCKET_BASE))
    registry = Registry.open(f"sqlite:///{root / 'registry.db'}")
    versions = []
    for rank in RANKS:
        registry.create_route(f"route-{rank}")
        folder = make_adapter(POCKET_BASE, root / f"rank-{rank}", seed=rank, rank=rank)
        version = publish_folder(registry, store, f"route-{rank}", folder, base).version
        versions.append((version, store.folder(version.route, version.digest)))
    registry.close()
    return store.root, tuple(versions)


@pytest.fixture(scope="module")
def engine(stored: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    with vllm_engine(tmp_path_factory.mktemp("engine") / "log", store=str(stored[0])) as running:
        yield running


class TestVllm(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls, engine: VllmEngine, stored: tuple[Path, tuple[tuple[AdapterVersion, Path], ...]]) -> Rig:
        return Rig(
            make=lambda: external_backend([engine.url], engine.key, base_id=BASE_ID),
            versions=stored[1],
            broken=Path("unused"),
            long_body={"messages": [USER], "temperature": 0, "max_tokens": 900, "ignore_eos": True},
            too_long="word " * 2000,
        )

    @pytest.mark.parametrize(
        "values",
        [
            {"temperature": 2.1},
            {"temperature": "hot"},
            {"top_p": 0},
            {"max_tokens": 0},
            {"seed": 2**70},
            {"stop": ""},
            {"top_logprobs": 10**6, "logprobs": True},
            {"logit_bias": {"999999": 1}},
            {"allowed_token_ids": [-1]},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": "no"}}},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        ],
        ids=repr,
    )
    def test_what_the_engine_refuses_is_the_clients_fault_and_the_engine_lives(
        self, rig: Rig, live: Live, values: dict[str, object]
    ) -> None:
        assert live.refusal(chat(rig.names[0], **values)).message

    @pytest.mark.parametrize("prompt", [[], [[]], [-1], [10**9], [5, 2**40]], ids=repr)
    def test_token_ids_outside_the_vocabulary_are_the_clients_fault(self, rig: Rig, live: Live, prompt: object) -> None:
        assert isinstance(live.refusal(completions(rig.names[0], prompt)), InvalidRequest)

    def test_a_version_whose_stored_bytes_are_not_its_own_is_refused_and_disturbs_nobody(
        self, rig: Rig, live: Live
    ) -> None:
        version, folder = make_altered(rig.versions[0])

        async def scenario(backend: ObservableBackend) -> None:
            before = await text(backend, chat(rig.names[1]))
            with pytest.raises(AdapterUnavailable):
                await backend.load(version, folder)
            assert not backend.is_resident(version.engine_name)
            assert await text(backend, chat(rig.names[1])) == before

        live.check(scenario)


def make_altered(stored: tuple[AdapterVersion, Path]) -> tuple[AdapterVersion, Path]:
    """A version beside `stored` in the same store, under a digest that its bytes do not have."""
    version, folder = stored
    digest = "0" * 64
    target = folder.with_name(digest)
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes().replace(version.digest.encode(), digest.encode()))
    return replace(version, manifest=replace(version.manifest, digest=digest)), target
