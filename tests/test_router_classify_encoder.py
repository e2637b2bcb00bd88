"""The packaged MiniLM, exported: its vectors are transformers' own, whatever the text, the neighbours or the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from router.classifier_cli.explain import explain
from router.classifier_cli.group import classifier
from router.classify.encoder.cache import cached_model
from router.classify.encoder.export import pool
from router.classify.encoder.layout import read_layout
from router.classify.encoder.onnx_encoder import OnnxEncoder, Tokens
from router.classify.encoder.opening import SOURCE_VARIABLE, find_encoder, open_encoder
from router.classify.encoder.tokens import CHARACTERS_PER_TOKEN
from router.classify.encoding import Precision
from router.classify.features import Floats
from router.errors import EncoderUnavailable
from tests.classifier_rows import base_rows, routes_rows
from tests.encoder_folders import packaged_minilm, write_layout
from tests.gateway_process import branchline, serving

TEXTS = (
    "please book a table for two",
    "what is the weather like in Paris tomorrow, and should I take an umbrella?",
    "select name from users where age > 30",
    "hi",
    "transfer 100 dollars from savings to checking",
    "¿cuál es la capital de Francia?",
)
STRANGE = (
    "",
    " \n\t ",
    "\0\x01\x7f\xff",
    "\ud800 lone",
    "日本語のテキスト",
    "🙂" * 50,
    "]]>'; DROP TABLE--",
    "a" * 2_000_000,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders") / "cache"


@pytest.fixture(scope="module")
def fp32(cache: Path) -> OnnxEncoder:
    return open_encoder(str(packaged_minilm()), precision="fp32", cache=cache)


@pytest.fixture(scope="module")
def int8(fp32: OnnxEncoder, cache: Path) -> OnnxEncoder:
    return open_encoder(str(packaged_minilm()), precision="int8", cache=cache)


def vectors_of_transformers(folder: Path, texts: Sequence[str]) -> Floats:
    """The model card's own recipe: the mean of the last layer's states, divided by its length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            pooled = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        rows.append((pooled / pooled.norm()).numpy())
    return np.stack(rows)


def test_fp32_vectors_are_those_of_transformers(fp32: OnnxEncoder) -> None:
    """Tolerance: float32 rounding through six layers, 2e-7 when measured."""
    np.testing.assert_allclose(fp32.encode(TEXTS), vectors_of_transformers(packaged_minilm(), TEXTS), atol=5e-6)


def test_pooling_takes_the_mean_of_the_marked_tokens_or_the_first_one() -> None:
    import torch

    states = torch.arange(12.0).reshape(1, 3, 4)
    mask = torch.tensor([[1, 1, 0]])
    for pooling, expected in (("mean", [2.0, 3.0, 4.0, 5.0]), ("cls", [0.0, 1.0, 2.0, 3.0])):  # worked out by hand
        by_hand = np.array([expected]) / np.linalg.norm(expected)
        np.testing.assert_allclose(pool(states, mask, pooling).numpy(), by_hand, rtol=1e-6)


def test_int8_vectors_point_where_fp32_vectors_do(fp32: OnnxEncoder, int8: OnnxEncoder) -> None:
    """Cosine at least 0.95: 0.98 is the least on 400 queries of CLINC150's validation part."""
    assert (fp32.encode(TEXTS) * int8.encode(TEXTS)).sum(axis=1).min() >= 0.95


def test_any_text_gives_a_vector_of_length_1(fp32: OnnxEncoder, int8: OnnxEncoder) -> None:
    for encoder in (fp32, int8):
        found = encoder.encode(STRANGE)
        assert found.dtype == np.dtype(np.float32)
        assert found.shape == (len(STRANGE), encoder.ref.dimension)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert encoder.encode([]).shape == (0, encoder.ref.dimension)


def test_of_a_huge_text_only_the_beginning_is_read(int8: OnnxEncoder) -> None:
    kept = "word " * (CHARACTERS_PER_TOKEN * int8.ref.max_tokens // 5)
    np.testing.assert_array_equal(int8.encode([kept + "x" * 100_000]), int8.encode([kept]))


def test_neighbours_do_not_change_a_vector(fp32: OnnxEncoder, int8: OnnxEncoder) -> None:
    """fp32: within rounding, whose order a batch changes (6e-8 when measured). int8: not at all."""
    texts = [*TEXTS, "a long neighbour " * 200]
    for encoder, tolerance in ((fp32, 1e-6), (int8, 0.0)):
        alone = np.concatenate([encoder.encode([text]) for text in texts])
        np.testing.assert_allclose(encoder.encode(texts), alone, rtol=0, atol=tolerance)


def test_threads_share_an_encoder(int8: OnnxEncoder) -> None:
    expected = int8.encode(TEXTS)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(int8.encode, [TEXTS] * 8):
            np.testing.assert_array_equal(found, expected)


def test_an_encoder_is_found_again_by_what_a_classifier_says_of_it(int8: OnnxEncoder, cache: Path) -> None:
    source = str(packaged_minilm())
    assert find_encoder(int8.ref, source, cache).ref == int8.ref
    with pytest.raises(EncoderUnavailable, match="no encoder is given"):
        find_encoder(int8.ref, None, cache)
    with pytest.raises(EncoderUnavailable, match="the one given is"):
        find_encoder(replace(int8.ref, digest="0" * 64), source, cache)


def test_a_tuned_copy_is_found_without_a_source_and_a_damaged_one_gives_way_to_the_source(
    int8: OnnxEncoder, cache: Path, tmp_path: Path
) -> None:
    for path in cache.glob("*-int8.onnx*"):
        (tmp_path / path.name).symlink_to(path)
    kept = tmp_path / int8.ref.digest / "minilm-tuned"
    kept.parent.mkdir()
    kept.symlink_to(packaged_minilm())
    assert find_encoder(int8.ref, None, tmp_path).ref.digest == int8.ref.digest
    kept.unlink()
    write_layout(kept)
    assert find_encoder(int8.ref, str(packaged_minilm()), tmp_path).ref == int8.ref
    (kept / "model.safetensors").unlink()
    assert find_encoder(int8.ref, str(packaged_minilm()), tmp_path).ref == int8.ref
    with pytest.raises(EncoderUnavailable, match="no encoder is given"):
        find_encoder(int8.ref, None, tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_never_handed_out(int8: OnnxEncoder, value: float) -> None:
    class Overflowing:
        def run(self, output_names: None, feed: dict[str, Tokens]) -> list[Floats]:
            return [np.full((len(feed["input_ids"]), int8.ref.dimension), value, dtype=np.float32)]

    with pytest.raises(EncoderUnavailable, match="NaN or Inf"):
        replace(int8, session=Overflowing()).encode(["hi"])


def test_a_damaged_file_of_the_cache_is_found_and_built_again(int8: OnnxEncoder, cache: Path) -> None:
    path = cache / f"{int8.ref.digest}-int8.onnx"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit
    path.write_bytes(damaged)
    mended = open_encoder(str(packaged_minilm()), precision="int8", cache=cache)
    np.testing.assert_array_equal(mended.encode(TEXTS), int8.encode(TEXTS))
    assert path.read_bytes() != damaged


def test_without_torch_a_cached_encoder_opens_and_of_two_processes_one_builds_what_is_missing(
    fp32: OnnxEncoder, int8: OnnxEncoder, cache: Path, tmp_path: Path
) -> None:
    for name in ("-fp32.onnx", "-fp32.onnx.sha256"):
        (tmp_path / f"{int8.ref.digest}{name}").symlink_to(cache / f"{int8.ref.digest}{name}")
    log = tmp_path / "builds"
    without_torch(tmp_path / "path", log)
    program = (
        "import sys; from pathlib import Path; from router.classify.encoder.opening import open_encoder;"
        "encoder = open_encoder(sys.argv[1], precision='int8', cache=Path(sys.argv[2]));"
        "sys.stdout.buffer.write(encoder.encode(['please book a table for two']).tobytes())"
    )
    command = [sys.executable, "-c", program, str(packaged_minilm()), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "path"), *filter(None, sys.path)])}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    assert [one.communicate()[0] for one in both] == [int8.encode(TEXTS[:1]).tobytes()] * 2
    assert log.read_text().splitlines() == ["int8"]


def test_without_torch_an_encoder_that_was_never_exported_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_torch(tmp_path / "path", tmp_path / "builds")
    monkeypatch.syspath_prepend(tmp_path / "path")
    with pytest.raises(EncoderUnavailable, match="no torch here") as refused:
        cached_model(read_layout(str(packaged_minilm())), "fp32", tmp_path / "cache")
    assert "branchline[encoder]" in refused.value.hint
    assert not list((tmp_path / "cache").glob("*.onnx"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_cache_that_cannot_be_written_is_named_in_the_hint_alone(tmp_path: Path, precision: Precision) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EncoderUnavailable) as refused:
        cached_model(read_layout(str(packaged_minilm())), precision, tmp_path / "file" / "cache")
    assert str(tmp_path) not in refused.value.message
    assert str(tmp_path) in refused.value.hint


def test_a_gateway_decides_with_the_encoder_that_its_classifier_names(
    int8: OnnxEncoder, cache: Path, tmp_path: Path
) -> None:
    rows, home, source = tmp_path / "rows.jsonl", tmp_path / "home", str(packaged_minilm())
    rows.write_text("".join(json.dumps(asdict(row)) + "\n" for row in [*routes_rows(12), *base_rows()]))
    home.mkdir(mode=0o700)
    (home / "encoders").symlink_to(cache)
    fit = ["fit", "--examples", str(rows), "--encoder", source, "--promote", "--home", str(home)]
    assert CliRunner().invoke(classifier, fit, catch_exceptions=False).exit_code == 0
    without = CliRunner().invoke(explain, ["fetch me all rows", "--home", str(home)], env={SOURCE_VARIABLE: None})
    assert isinstance(without.exception, EncoderUnavailable)
    given = CliRunner().invoke(explain, ["select the price of albums", "--home", str(home), "--encoder", source])
    assert "sql" in given.output
    with serving(home, "--backend", "echo", "--base", "tiny", variables={SOURCE_VARIABLE: source}) as gateway:
        assert "classifier: none" not in gateway.output
        body = {"model": "auto", "messages": [{"role": "user", "content": "select the price of albums"}]}
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert float(answer.headers["x-branchline-confidence"]) > 0.5


def test_serve_says_at_once_what_is_wrong_with_its_encoder(tmp_path: Path) -> None:
    said = branchline(
        "serve",
        "--backend",
        "echo",
        "--base",
        "tiny",
        "--encoder",
        "no/where",
        home=tmp_path,
        expect=1,
        HF_HUB_OFFLINE="1",
    )
    assert "encoder 'no/where' is neither a folder nor in the hub's cache" in said


def without_torch(folder: Path, log: Path) -> None:
    """A folder that, first on the path, keeps torch away and has every exporting process note what it builds."""
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('no torch here')")
    noted = f"open({str(log)!r}, 'a').write(sys.orig_argv[sys.orig_argv.index(exporter) + 1] + '\\n')"
    program = f"import sys\nexporter = 'router.classify.encoder.export'\nif exporter in sys.orig_argv: {noted}\n"
    (folder / "sitecustomize.py").write_text(program)
