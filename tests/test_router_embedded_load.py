"""What the embedded engine takes for an adapter, and its proof that the adapter is applied."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.base import find_base
from adapters.types import AdapterVersion
from router.backends.embedded.backend import EmbeddedBackend
from router.backends.embedded.proof import Trace, is_applied
from router.errors import AdapterUnavailable
from tests.backend_contract import chat, text
from tests.tiny_model import Tiny, make_tiny, make_version

Tensors = dict[str, torch.Tensor]
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def load_problem(tiny: Tiny, folder: Path) -> str:
    """The message with which the engine refuses `folder`, still serving afterwards."""

    async def run() -> str:
        backend = EmbeddedBackend(find_base(str(tiny.base)), threads=1)
        await backend.start()
        version = make_version("sql")
        with pytest.raises(AdapterUnavailable) as refused:
            await backend.load(version, folder)
        assert not backend.is_resident(version.engine_name)
        assert await text(backend, chat(backend.base_id))
        await backend.stop()
        return refused.value.message

    return asyncio.run(run())


def changed(tiny: Tiny, folder: Path, tensors: Callable[[Tensors], object], **config: Any) -> Path:
    """A copy of a good adapter with its tensors changed in place and settings of its config replaced."""
    shutil.copytree(tiny.versions[1][1], folder, dirs_exist_ok=True)
    weights = load_file(folder / "adapter_model.safetensors")
    tensors(weights)
    save_file(weights, folder / "adapter_model.safetensors")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def nothing(_: Tensors) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(KEY), f"lora_A of {KEY[17:-14]} is missing"),
        (lambda tensors: tensors.update({KEY.replace("q_proj", "q_prog"): tensors[KEY].clone()}), "q_prog"),
        (lambda tensors: tensors.update({"model.layers.0.x.weight": tensors[KEY].clone()}), "no linear layer"),
        (lambda tensors: tensors.update({KEY: tensors[KEY][:, 1:].clone()}), "has shape (4, 31), expected (4, 32)"),
        (lambda tensors: tensors.update({KEY: tensors[KEY][1:].clone()}), "has shape (3, 32), expected (4, 32)"),
        (lambda tensors: tensors[KEY].fill_(float("nan")), "not finite"),
        (lambda tensors: tensors.clear(), "holds no tensors"),
    ],
    ids=["missing", "unknown layer", "unknown key", "wrong width", "wrong rank", "NaN", "empty"],
)
def test_weights_that_do_not_fit_are_refused(
    tiny: Tiny, tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    assert message in load_problem(tiny, changed(tiny, tmp_path, change))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("layer_replication", [[0, 1]]),
        ("alora_invocation_tokens", [5]),
        ("target_parameters", ["x"]),
        ("a_setting_of_tomorrow", 1),
    ],
)
def test_settings_the_engine_does_not_apply_are_refused_by_name(
    tiny: Tiny, tmp_path: Path, setting: str, value: object
) -> None:
    assert setting in load_problem(tiny, changed(tiny, tmp_path, nothing, **{setting: value}))


def test_layers_the_config_names_without_weights_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    assert "k_proj is missing" in load_problem(tiny, changed(tiny, tmp_path, nothing, target_modules=targets))


def test_another_kind_of_adapter_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    assert "does not describe a LoRA" in load_problem(tiny, changed(tiny, tmp_path, nothing, peft_type="LOHA"))


def test_a_pickle_is_never_opened(tiny: Tiny, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path, nothing)
    torch.save({"weight": torch.zeros(1)}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors cannot be read" in load_problem(tiny, folder)


def test_an_adapter_without_effect_is_refused(tiny: Tiny) -> None:
    assert "changes nothing" in load_problem(tiny, tiny.without_effect)


def trace(*logprobs: float, tokens: tuple[int, ...] = (1, 1)) -> list[Trace]:
    return [Trace(list(tokens), [torch.tensor([value]) for value in logprobs])]


def test_the_proof_asks_for_more_than_the_bases_own_noise() -> None:
    base, again = trace(-1.0, -2.0), trace(-1.0, -2.1)
    assert is_applied(trace(-1.0, -2.3), base, again)
    assert not is_applied(trace(-1.0, -2.15), base, again)
    assert not is_applied(trace(-1.0, -2.000001), base, base)


def test_the_proof_compares_only_while_the_answers_agree() -> None:
    base = trace(-1.0, -2.0)
    assert not is_applied(trace(-1.0, -9.0, tokens=(2, 1)), base, base)


def test_an_adapter_comes_in_while_others_answer(tiny: Tiny) -> None:
    """A stream that began before the load goes on through it and says what it says alone."""

    async def run() -> None:
        backend = EmbeddedBackend(find_base(str(tiny.base)), threads=1)
        await backend.start()
        (first, first_folder), (second, second_folder), _ = tiny.versions
        await backend.load(first, first_folder)
        alone = await text(backend, chat(first.engine_name, max_tokens=200))
        running = asyncio.create_task(text(backend, chat(first.engine_name, max_tokens=200)))
        await backend.load(second, second_folder)
        assert await text(backend, chat(second.engine_name)) != alone
        assert await running == alone
        await backend.stop()

    asyncio.run(run())


def test_the_proof_passes_a_full_engine(tiny: Tiny) -> None:
    """Every row is taken and nobody finishes: a version can still be brought in."""

    async def run() -> None:
        backend = EmbeddedBackend(find_base(str(tiny.base)), max_rows=1, max_waiting=0, threads=1)
        await backend.start()
        long = await backend.open(chat(backend.base_id, max_tokens=None, stream=True))
        await anext(long.body)
        version, folder = tiny.versions[0]
        await backend.load(version, folder)
        assert backend.is_resident(version.engine_name)
        assert backend.running == 1
        await backend.stop()

    asyncio.run(run())


def test_names_of_one_route_do_not_meet(tiny: Tiny) -> None:
    """Two versions whose names differ in the digest only are two adapters."""

    async def run() -> None:
        backend = EmbeddedBackend(find_base(str(tiny.base)), threads=1)
        await backend.start()
        versions: list[AdapterVersion] = [make_version("sql", digest=digit * 64) for digit in "12"]
        for version, (_, folder) in zip(versions, tiny.versions, strict=False):
            await backend.load(version, folder)
        answers = {await text(backend, chat(version.engine_name)) for version in versions}
        assert len(answers) == 2
        await backend.stop()

    asyncio.run(run())


def test_the_package_does_not_import_torch() -> None:
    program = (
        "import sys, router.backends, router.backends.embedded, router.backends.echo; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
