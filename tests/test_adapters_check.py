"""`check_folder` on good and hostile PEFT folders, and the safetensors reader on arbitrary bytes."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import Base, find_base
from adapters.check import CONFIG_FILE, WEIGHTS_FILE, Checked, Limits, check_folder, left_behind
from adapters.check_weights import weight_problems
from adapters.errors import BadAdapter
from adapters.tensors import MAX_HEADER_BYTES, read_header
from tests.adapter_folders import (
    HIDDEN,
    MODULES,
    OUT,
    RANK,
    TEMPLATE,
    adapter_config,
    adapter_tensors,
    bf16,
    container,
    make_adapter,
    make_base,
    tensor_file,
    weight,
)

Q0, V0 = MODULES[0], MODULES[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("bases") / "pocket")


def check(folder: Path, base: Base, **options: str) -> Checked:
    return check_folder(folder, base, limits=Limits(max_lora_rank=16), base_is_same=options.get("base_is_same"))


def problems_of(folder: Path, base: Base, **options: str) -> list[str]:
    with pytest.raises(BadAdapter) as caught:
        check(folder, base, **options)
    assert all(problem in caught.value.message for problem in caught.value.problems)
    return list(caught.value.problems)


def only_problem(folder: Path, base: Base) -> str:
    (problem,) = problems_of(folder, base)
    return problem


# -- good folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bf16"])
def test_a_plain_lora_folder_passes_and_its_facts_are_told(tmp_path: Path, base: Base, dtype: str) -> None:
    tensors = adapter_tensors(dtype="float32" if dtype == "bf16" else dtype)
    if dtype == "bf16":
        tensors = {name: bf16(value) for name, value in tensors.items()}
    found = check(make_adapter(tmp_path / "a", "pocket", tensors=tensors), base)
    assert found == Checked(rank=RANK, alpha=4.0, targets=tuple(sorted(MODULES)), notes=())


def test_a_folder_saved_by_peft_passes(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tests import tiny_model  # torch takes seconds to import

    base = tiny_model.make_base(tmp_path / "tiny")
    folder = tiny_model.make_adapter(base, tmp_path / "adapter", seed=1, rank=4)
    assert check_folder(folder, find_base(str(base)), limits=Limits()).rank == 4


def test_zero_b_in_some_modules_is_a_note_and_no_problem(tmp_path: Path, base: Base) -> None:
    tensors = adapter_tensors()
    tensors[weight(Q0, "B")] *= 0
    assert check(make_adapter(tmp_path / "a", "pocket", tensors=tensors), base).notes == (
        "lora_B is zero in 1 of 4 modules",
    )


# -- the config -----------------------------------------------------------------------------------------------------

REFUSED = [
    ({"use_dora": True}, "DoRA"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"bias": "lora_only"}, "bias is 'lora_only'"),
    ({"lora_bias": True}, "lora_bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"init_lora_weights": "pissa"}, "'pissa' changes the base"),
    ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16' changes the base"),
    ({"init_lora_weights": "olora"}, "'olora' changes the base"),
    ({"init_lora_weights": "corda"}, "'corda' changes the base"),
    ({"init_lora_weights": "loftq"}, "'loftq' changes the base"),
    ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer replication"),
    ({"r": 17}, "rank 17 is over the limit of 16"),
    ({"rank_pattern": {"q_proj": 99}}, "rank_pattern['q_proj'] is 99"),
    ({"rank_pattern": [1]}, "rank_pattern is not an object"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"base_model_name_or_path": "other/model"}, "names base 'other/model', this is 'pocket'"),
    ({"base_model_name_or_path": None}, "names no base"),
    ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
    ({"lora_alpha": 0}, "lora_alpha is 0"),
    ({"r": [RANK]}, "r is [2]"),
    ({"target_modules": []}, "target_modules is []"),
    ({"target_modules": ["q_proj"]}, "weights for a module that target_modules does not name"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "names 'o_proj', for which there are no weights"),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=[expected for _, expected in REFUSED])
def test_a_config_that_is_not_plain_lora_on_this_base_is_refused(
    tmp_path: Path, base: Base, changes: dict[str, Any], expected: str
) -> None:
    found = problems_of(make_adapter(tmp_path / "a", "pocket", **changes), base)
    assert any(expected in problem for problem in found)


def test_everything_wrong_with_a_folder_is_said_at_once(tmp_path: Path, base: Base) -> None:
    tensors = adapter_tensors()
    tensors[weight(Q0, "A")][0, 0] = np.nan
    tensors[weight(V0, "B")] = np.ones((OUT + 1, RANK), "<f4")
    tensors["base_model.model.lm_head.modules_to_save.weight"] = np.ones(1, "<f4")
    changes: dict[str, Any] = {
        "use_dora": True, "bias": "all", "lora_bias": True, "modules_to_save": ["lm_head"], "r": 99,
        "init_lora_weights": "olora", "layer_replication": [[0, 1]], "base_model_name_or_path": "x/y",
        "alora_invocation_tokens": [1], "rank_pattern": {"v_proj": 17}, "target_modules": ["q_proj", "v_proj", "k"],
    }  # fmt: skip
    folder = make_adapter(tmp_path / "a", "", tensors=tensors, **changes)
    (folder / "chat_template.jinja").write_text("another")
    text = "; ".join(problems_of(folder, base))
    for expected in (
        "DoRA", "bias is 'all'", "lora_bias", "modules_to_save replaces", "rank 99", "'olora'", "layer replication",
        "'x/y'", "aLoRA", "rank_pattern['v_proj'] is 17", "names 'k'", "chat template that differs",
        f"{Q0}: lora_A holds NaN", f"{V0}: adapts [7, 8]", "modules_to_save.weight' is not a plain LoRA weight",
    ):  # fmt: skip
        assert expected in text


def test_a_folder_with_only_a_pickle_still_has_its_config_judged(tmp_path: Path, base: Base) -> None:
    folder = make_adapter(tmp_path / "a", "pocket", use_dora=True)
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    text = "; ".join(problems_of(folder, base))
    assert "adapter_model.safetensors is missing" in text
    assert "adapter_model.bin is a pickle and is never opened" in text
    assert "DoRA" in text


def test_another_base_is_accepted_with_a_reason_which_is_noted(tmp_path: Path, base: Base) -> None:
    folder = make_adapter(tmp_path / "a", "other/model")
    found = check(folder, base, base_is_same="renamed copy")
    assert found.notes == ("names base 'other/model', accepted as pocket: renamed copy",)


def test_the_same_chat_template_in_either_file_is_no_difference(tmp_path: Path, base: Base) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": TEMPLATE}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    check(folder, base)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    check(folder, base)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"x" * (1024 * 1024 + 1)),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"chat_template": "\\ud800"}'),
        ("tokenizer_config.json", b'{"chat_template": [1]}'),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_a_chat_template_that_cannot_be_compared_is_a_problem(
    tmp_path: Path, base: Base, name: str, content: bytes
) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    (folder / name).write_bytes(content)
    assert "chat template" in only_problem(folder, base)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{", b"1", b"[" * 500_000, b'{"r": ' + b"9" * 5000 + b"}"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, base: Base, content: bytes) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    (folder / CONFIG_FILE).write_bytes(content)
    assert any(problem.startswith(f"{CONFIG_FILE} is not") for problem in problems_of(folder, base))


@pytest.mark.parametrize("field", ["init_lora_weights", "bias", "peft_type", "r", "lora_alpha", "target_modules"])
def test_a_deep_nest_as_a_config_value_is_a_problem_and_no_crash(tmp_path: Path, base: Base, field: str) -> None:
    for depth in range(700, 1000, 25):  # the deepest that json reads is a little under the recursion limit
        folder = make_adapter(tmp_path / f"{depth}", "pocket")
        config = json.dumps(adapter_config("pocket", **{field: "NEST"}))
        (folder / CONFIG_FILE).write_text(config.replace('"NEST"', "[" * depth + "]" * depth))
        assert any(field in problem or "not JSON" in problem for problem in problems_of(folder, base))


def test_an_oversized_config_is_not_read(tmp_path: Path, base: Base) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    os.truncate(folder / CONFIG_FILE, 4 * 1024**3)
    tracemalloc.start()
    found = problems_of(folder, base)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert any("the limit is 1048576" in problem for problem in found)
    assert peak < 4 * 1024**2


# -- the weights ----------------------------------------------------------------------------------------------------

MISFITS: list[tuple[str, Callable[[], dict[str, object]], str]] = [
    ("rank over the limit", lambda: dict(adapter_tensors(rank=17)), "rank 17, expected 1 to 16"),
    ("rank not the config's", lambda: dict(adapter_tensors(rank=3)), "rank 3 is neither r nor in rank_pattern"),
    ("no weights", dict, "holds no lora_A / lora_B weights"),
    (
        "one side missing",
        lambda: {k: v for k, v in adapter_tensors().items() if k != weight(Q0, "B")},
        "lora_B is missing",
    ),
    ("A misshaped", lambda: {**adapter_tensors(), weight(Q0, "A"): np.ones((RANK, 5), "<f4")}, "adapts [8, 5]"),
    ("A and B of two ranks", lambda: {**adapter_tensors(), weight(Q0, "A"): np.ones((5, HIDDEN), "<f4")}, "are no ["),
    ("a vector", lambda: {**adapter_tensors(), weight(Q0, "A"): np.ones(HIDDEN, "<f4")}, "are no ["),
    ("integers", lambda: {**adapter_tensors(), weight(Q0, "A"): np.ones((RANK, HIDDEN), "<i4")}, "dtype I32/F32"),
    (
        "no such layer",
        lambda: {**adapter_tensors(), weight("model.layers.7.self_attn.q_proj", "A"): np.ones((2, 8), "<f4"),
                 weight("model.layers.7.self_attn.q_proj", "B"): np.ones((8, 2), "<f4")},
        "the base has no such linear layer",
    ),
    ("an embedding", lambda: {**adapter_tensors(), "base_model.model.x.lora_embedding_A": np.ones((2, 8), "<f4")},
     "not a plain LoRA weight"),
    ("a path as a name", lambda: {**adapter_tensors(), weight("../../x", "A"): np.ones((2, 8), "<f4")},
     "not a plain LoRA weight"),
    ("all B zero", lambda: {k: v * ("lora_A" in k) for k, v in adapter_tensors().items()}, "every lora_B is zero"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), [(make, text) for _, make, text in MISFITS], ids=[m[0] for m in MISFITS])
def test_weights_that_do_not_fit_the_base_are_refused(
    tmp_path: Path, base: Base, make: Callable[[], dict[str, np.typing.NDArray[np.floating]]], expected: str
) -> None:
    found = problems_of(make_adapter(tmp_path / "a", "pocket", tensors=make()), base)
    assert any(expected in problem for problem in found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bf16"])
@pytest.mark.parametrize("side", ["A", "B"])
def test_one_nan_or_inf_anywhere_is_found(tmp_path: Path, base: Base, dtype: str, bad: float, side: str) -> None:
    tensors = adapter_tensors(dtype="float32" if dtype == "bf16" else dtype)
    tensors[weight(V0, side)][-1, -1] = bad
    if dtype == "bf16":
        tensors = {name: bf16(value) for name, value in tensors.items()}
    folder = make_adapter(tmp_path / "a", "pocket", tensors=tensors)
    assert only_problem(folder, base) == f"{V0}: lora_{side} holds NaN or Inf"


@pytest.mark.parametrize(("dtype", "bits", "value"), [("float32", "<u4", 0x7FA0_0000), ("float16", "<u2", 0x7D00)])
def test_a_nan_that_arithmetic_would_stumble_over_is_found_too(
    tmp_path: Path, base: Base, dtype: str, bits: str, value: int
) -> None:
    tensors = adapter_tensors(dtype=dtype)
    tensors[weight(V0, "B")].view(bits)[-1, -1] = value  # a signalling NaN
    folder = make_adapter(tmp_path / "a", "pocket", tensors=tensors)
    assert only_problem(folder, base) == f"{V0}: lora_B holds NaN or Inf"


def test_minus_zero_in_b_counts_as_zero_in_every_dtype(tmp_path: Path, base: Base) -> None:
    for dtype in ("float32", "float16", "bf16"):
        tensors = adapter_tensors(dtype="float32" if dtype == "bf16" else dtype)
        tensors = {name: value if "lora_A" in name else value * 0 - 0.0 for name, value in tensors.items()}
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = np.copysign(tensors[name], -1).astype(tensors[name].dtype)
        if dtype == "bf16":
            tensors = {name: bf16(value) for name, value in tensors.items()}
        assert "every lora_B is zero" in only_problem(make_adapter(tmp_path / dtype, "pocket", tensors=tensors), base)


def test_hundreds_of_equal_complaints_are_shortened_and_hide_no_other_kind(tmp_path: Path, base: Base) -> None:
    tensors = adapter_tensors()
    tensors |= {f"base_model.model.x{i}.modules_to_save": np.ones(1, "<f4") for i in range(500)}
    tensors[weight(Q0, "A")][0, 0] = np.nan
    found = problems_of(make_adapter(tmp_path / "a", "pocket", tensors=tensors), base)
    assert "and 468 more of this kind" in found
    assert f"{Q0}: lora_A holds NaN or Inf" in found
    assert len(found) < 50


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_and_an_empty_folder_are_refused(tmp_path: Path, base: Base) -> None:
    assert "is not a folder" in only_problem(tmp_path / "none", base)
    (tmp_path / "empty").mkdir()
    assert problems_of(tmp_path / "empty", base) == [f"{CONFIG_FILE} is missing", f"{WEIGHTS_FILE} is missing"]


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, base: Base, name: str) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    assert f"{name} is a link that leaves the folder" in only_problem(folder, base)


def test_a_link_round_in_a_circle_is_refused(tmp_path: Path, base: Base) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    (folder / CONFIG_FILE).unlink()
    (folder / CONFIG_FILE).symlink_to(folder / CONFIG_FILE)
    assert f"{CONFIG_FILE} cannot be read" in only_problem(folder, base)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused_without_waiting(
    tmp_path: Path, base: Base, name: str, kind: str
) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    (folder / name).unlink()
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).mkdir()
    assert only_problem(folder, base) == f"{name} is not a regular file"


def test_other_files_are_listed_and_never_opened(tmp_path: Path, base: Base) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    for name in ("training_args.bin", "chat_template.jinja", "tokenizer_config.json"):
        os.mkfifo(folder / name)  # opening one would wait for ever
    (folder / "README.md").symlink_to("/dev/zero")
    check(folder, base)
    assert left_behind(folder) == ["README.md", "chat_template.jinja", "tokenizer_config.json", "training_args.bin"]


# -- the container --------------------------------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
NEXT = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}
BROKEN: list[tuple[str, bytes, str]] = [
    ("empty", b"", "truncated: 0 bytes"),
    ("seven bytes", b"1234567", "truncated: 7 bytes"),
    ("header claims 2 GB", struct.pack("<Q", 2 * 1024**3) + b"{}", "header claims 2147483648 bytes, the limit"),
    ("header claims 16 EB", struct.pack("<Q", 2**64 - 1) + b"{}", "header claims 18446744073709551615 bytes"),
    ("header longer than the file", struct.pack("<Q", 100) + b"{}", "truncated: header claims 100"),
    ("data cut", container({"a": F32}, b"123"), "truncated: tensors need"),
    ("trailing bytes", container({"a": F32}, b"12345"), "1 bytes after the last tensor"),
    ("overlap", container({"a": F32, "b": F32}, b"1234"), "overlaps the tensor before it"),
    ("half overlap", container({"a": F32, "b": {**F32, "data_offsets": [2, 6]}}, b"123456"), "overlaps"),
    ("gap", container({"a": F32, "b": {**F32, "data_offsets": [8, 12]}}, b"1" * 12), "4 unused bytes before it"),
    ("gap at the start", container({"b": NEXT}, b"1" * 8), "4 unused bytes before it"),
    ("duplicate name", container(b'{"a": ' + json.dumps(F32).encode() + b', "a": 1}', b"1234"), "occurs twice"),
    ("duplicate field", container(b'{"a":{"dtype":"F32","dtype":"F16"}}', b""), "occurs twice"),
    ("not JSON", container(b"{"), "not valid JSON"),
    ("not UTF-8", container(b"\xff{}"), "not valid JSON"),
    ("a list", container(b"[]"), "not a JSON object"),
    ("space before the object", container(b" {}"), "not a JSON object"),
    ("deep nest", container(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    ("a huge number", container(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    ("metadata not texts", container({"__metadata__": {"a": 1}}), "__metadata__ is not"),
    ("entry a number", container({"a": 1}), "entry is not an object"),
    ("unknown dtype", container({"a": {**F32, "dtype": "F99"}}, b"1234"), "unknown dtype 'F99'"),
    ("dtype a list", container({"a": {**F32, "dtype": []}}, b"1234"), "unknown dtype []"),
    ("negative shape", container({"a": {**F32, "shape": [-1]}}, b"1234"), "short list of natural numbers"),
    ("fraction in shape", container({"a": {**F32, "shape": [1.0]}}, b"1234"), "short list of natural numbers"),
    ("true in shape", container({"a": {**F32, "shape": [True]}}, b"1234"), "short list of natural numbers"),
    ("huge dimension", container({"a": {**F32, "shape": [2**70]}}, b"1234"), "short list of natural numbers"),
    ("product wraps round", container({"a": {**F32, "shape": [2**47, 2**47, 2**34]}}, b"1234"), "does not fill"),
    ("many dimensions", container({"a": {**F32, "shape": [1] * 9}}, b"1234"), "short list of natural numbers"),
    ("offsets backwards", container({"a": {**F32, "data_offsets": [4, 0]}}, b"1234"), "are not [start, end]"),
    ("one offset", container({"a": {**F32, "data_offsets": [4]}}, b"1234"), "are not [start, end]"),
    ("offsets NaN", container(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[NaN,4]}}'), "are not [start, end]"),
    ("shape does not fill", container({"a": {**F32, "shape": [2]}}, b"1234"), "does not fill its 4 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), [one[1:] for one in BROKEN], ids=[one[0] for one in BROKEN])
def test_a_broken_container_is_refused_with_what_is_wrong(
    tmp_path: Path, base: Base, content: bytes, expected: str
) -> None:
    folder = make_adapter(tmp_path / "a", "pocket")
    (folder / WEIGHTS_FILE).write_bytes(content)
    assert any(expected in problem for problem in problems_of(folder, base))


def test_every_fault_of_a_container_is_listed_up_to_twenty(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(container({f"t{i}": i for i in range(1000)}))
    with pytest.raises(ValueError, match="t0") as caught:
        read_header(path)
    assert str(caught.value).count("entry is not an object") == 20


def test_a_real_two_gigabyte_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2 * 1024**3))
    os.truncate(path, 8 + 2 * 1024**3)  # a sparse file: the bytes are really there to be read
    tracemalloc.start()
    with pytest.raises(ValueError, match="the limit is"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1024**2


@pytest.mark.parametrize("piece", [b"[],", b"0,", b'"",'])
def test_a_hostile_header_costs_at_most_forty_times_its_size(tmp_path: Path, piece: bytes) -> None:
    raw = b'{"a":[' + piece * (256 * 1024 // len(piece)) + b"0]}"
    path = tmp_path / "x.safetensors"
    path.write_bytes(container(raw))
    tracemalloc.start()
    with pytest.raises(ValueError, match="entry is not an object"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * len(raw)
    assert MAX_HEADER_BYTES <= 16 * 1024**2


# -- fuzzing --------------------------------------------------------------------------------------------------------

GOOD = tensor_file(adapter_tensors())


def read_bytes(content: bytes, base: Base) -> None:
    """Read a container as the check does, values and all; only `ValueError` may come of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS_FILE
        path.write_bytes(content)
        tracemalloc.start()
        try:
            entries = read_header(path)
            assert all(entry.end <= len(content) for entry in entries.values())
            weight_problems(path, entries, adapter_config("pocket"), base, 16, [])
        except ValueError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 8 * 1024**2


@given(content=st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_never_break_the_header_reader(base: Base, content: bytes) -> None:
    read_bytes(content, base)


@given(header=st.binary(max_size=200), data=st.binary(max_size=50))
@settings(max_examples=100, deadline=None)
def test_an_arbitrary_header_never_breaks_the_reader(base: Base, header: bytes, data: bytes) -> None:
    read_bytes(container(header, data), base)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "F99"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**65), max_size=10) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=1, max_size=3) | JSON,
    }
)


@given(header=st.dictionaries(st.sampled_from([*adapter_tensors(), "__metadata__", "x"]), ENTRY | JSON, max_size=5))
@settings(max_examples=200, deadline=None)
def test_a_header_of_strange_entries_never_breaks_the_reader(base: Base, header: dict[str, object]) -> None:
    read_bytes(container(header, b"\0" * 64), base)


@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.none() | st.integers(0, len(GOOD)),
    more=st.binary(max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_a_mutated_good_file_never_breaks_the_reader(
    base: Base, edits: list[tuple[int, int]], cut: int | None, more: bytes
) -> None:
    content = bytearray(GOOD)
    for place, value in edits:
        content[place] = value
    read_bytes(bytes(content[:cut]) + more, base)


@given(fields=st.dictionaries(st.sampled_from(sorted(adapter_config(""))), JSON, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_config_of_strange_values_passes_or_is_a_bad_adapter(base: Base, fields: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = make_adapter(Path(parent) / "a", "pocket", **fields)
        with contextlib.suppress(BadAdapter):
            check(folder, base)
