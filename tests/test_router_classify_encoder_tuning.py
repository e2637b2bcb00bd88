"""A tuned encoder keeps labels apart, is the same again from the same rows, and never sees its calibration rows."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from adapters.errors import BadInput
from adapters.rows import LabelledText
from router.classify.classifier import BASE
from router.classify.encoder.cache import tuned_layout
from router.classify.encoder.distilling import distil_encoder
from router.classify.encoder.layout import Layout, read_layout
from router.classify.encoder.training import Tuning, tuning_for
from router.classify.encoder.tuning import tune_encoder
from router.classify.encoding import Encoder
from router.classify.features import Floats
from router.classify.tuned_fit import fit_tuned, split
from router.errors import EncoderUnavailable
from tests.classifier_rows import Meanings, base_rows, routes_rows
from tests.encoder_folders import write_layout, write_tiny_encoder

ROWS = routes_rows(12)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return read_layout(str(write_tiny_encoder(tmp_path_factory.mktemp("tiny"))))


def tuned(layout: Layout, cache: Path, *, epochs: int = 1, seed: int = 0) -> Layout:
    """Faster than by default: random weights have nothing to lose."""
    return tune_encoder(layout, ROWS, cache, Tuning(epochs=epochs, rate=3e-3, batch=8, seed=seed), said)


def said(_: str) -> None:
    pass


def vectors(layout: Layout, rows: Sequence[LabelledText]) -> Floats:
    """By transformers itself, one text at a time."""
    import torch
    from transformers import AutoModel

    from router.classify.encoder.tokens import load_tokenization

    tokenization, model = load_tokenization(layout), AutoModel.from_pretrained(layout.folder).eval()
    with torch.no_grad():
        states = [model(torch.tensor([tokenization.tokens(row.text)])).last_hidden_state[0].mean(0) for row in rows]
    found: Floats = np.stack([state.numpy() for state in states])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def separation(found: Floats, rows: Sequence[LabelledText]) -> float:
    """Mean cosine within a label less mean cosine between labels."""
    cosines, labels = found @ found.T, np.array([row.label for row in rows])
    same = labels[:, None] == labels[None, :]
    return float(cosines[same].mean() - cosines[~same].mean())


def test_tuning_draws_labels_apart_on_rows_it_never_saw(layout: Layout, tmp_path: Path) -> None:
    fresh = [row for row in routes_rows(12, seed=1) if row not in set(ROWS)]
    before, after = (separation(vectors(one, fresh), fresh) for one in (layout, tuned(layout, tmp_path, epochs=4)))
    assert before < 0.1  # random weights; 0.01 when measured
    assert after > 0.5  # prototypes that are opposite give 1 and more; 1.03 when measured


def test_the_same_rows_and_seed_give_the_same_weights_and_no_random_state_moves(layout: Layout, tmp_path: Path) -> None:
    import torch

    state = torch.get_rng_state()
    digests = [tuned(layout, tmp_path / str(at), seed=seed).digest for at, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1]
    assert digests[2] not in (digests[0], layout.digest)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_token_embeddings_stay_as_they_are(layout: Layout, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    before, after = (load_file(one.folder / "model.safetensors") for one in (layout, tuned(layout, tmp_path)))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "embeddings.word_embeddings.weight" not in changed
    assert "encoder.layer.1.output.dense.weight" in changed


def test_a_tuned_encoder_is_found_by_its_digest_and_leaves_nothing_else(layout: Layout, tmp_path: Path) -> None:
    found = tuned(layout, tmp_path)
    assert tuned_layout(found.digest, tmp_path) == found
    assert tuned_layout("0" * 64, tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [found.digest]


@pytest.mark.parametrize("digest", ["{outside}", "../outside", "", ".", "a\0b", "0" * 63])
def test_a_digest_that_is_none_leads_nowhere(tmp_path: Path, digest: str) -> None:
    write_layout(tmp_path / "outside" / "x-tuned")
    (tmp_path / "cache").mkdir()
    assert tuned_layout(digest.format(outside=tmp_path / "outside"), tmp_path / "cache") is None


def test_the_same_encoder_tuned_under_another_name_is_the_one_that_is_kept(layout: Layout, tmp_path: Path) -> None:
    renamed = read_layout(str(shutil.copytree(layout.folder, tmp_path / "renamed")))
    first, second = (tuned(one, tmp_path / "cache", epochs=0) for one in (layout, renamed))
    assert second == first
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.digest]


def test_a_damaged_tuned_encoder_is_replaced_by_tuning_again(layout: Layout, tmp_path: Path) -> None:
    found = tuned(layout, tmp_path, epochs=0)
    (found.folder / "model.safetensors").write_bytes(b"damaged")
    assert tuned_layout(found.digest, tmp_path) is None
    assert tuned(layout, tmp_path, epochs=0) == found
    assert tuned_layout(found.digest, tmp_path) == found


def test_a_student_with_fewer_layers_gives_nearly_its_teachers_vectors(layout: Layout, tmp_path: Path) -> None:
    teacher = tuned(layout, tmp_path, epochs=4)
    texts, fresh = [row.text for row in ROWS], [row for row in routes_rows(12, seed=1) if row not in set(ROWS)]
    fast = Tuning(epochs=8, rate=3e-3, batch=8)
    student = distil_encoder(teacher, texts, 1, tmp_path, fast, said)
    untaught = distil_encoder(teacher, texts, 1, tmp_path, Tuning(epochs=0), said)
    near, far = ((vectors(one, fresh) * vectors(teacher, fresh)).sum(axis=1).mean() for one in (student, untaught))
    assert json.loads((student.folder / "config.json").read_text())["num_hidden_layers"] == 1
    assert near > 0.95  # 0.975 when measured, and 0.919 untaught
    assert far < 0.95


@pytest.mark.parametrize("layers", [0, 2, 7])
def test_a_student_needs_fewer_layers_than_its_teacher(layout: Layout, tmp_path: Path, layers: int) -> None:
    with pytest.raises(EncoderUnavailable, match="has 2 layers"):
        distil_encoder(layout, ["text"], layers, tmp_path, Tuning(), said)


def test_few_rows_are_read_more_often_than_many() -> None:
    assert [tuning_for(rows).epochs for rows in (0, 1_500, 10_000, 15_000, 1_000_000)] == [5, 5, 3, 2, 2]


class Tuner:
    """Notes the rows it is given; its encoder is one that knows meanings."""

    def __init__(self) -> None:
        self.rows: list[LabelledText] = []

    def __call__(self, rows: Sequence[LabelledText]) -> Encoder:
        self.rows = list(rows)
        return Meanings()


def test_calibration_rows_are_kept_from_the_tuning_and_all_rows_reach_the_final_head() -> None:
    rows, tuner = [*routes_rows(), *base_rows()], Tuner()
    found = fit_tuned(rows, tuner)
    assert set(tuner.rows) | set(found.judged.rows) == set(rows)
    assert not set(tuner.rows) & set(found.judged.rows)
    assert Counter(row.label for row in found.judged.rows) == {"sql": 3, "booking": 3, "regex": 3, BASE: 1}
    assert all(found.classifier.has_row(row.label, row.text) for row in rows)
    assert found.classifier.summary["calibration_rows"] == 9
    assert found.classifier.encoder == Meanings().ref


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows, first, second = [*routes_rows(), *base_rows()], Tuner(), Tuner()
    assert fit_tuned(rows, first).classifier.digest == fit_tuned(rows[::-1], second).classifier.digest
    assert first.rows == second.rows


def test_given_calibration_rows_every_other_row_is_tuned_on() -> None:
    rows, calibration, tuner = routes_rows(), routes_rows(10, seed=1), Tuner()
    fit_tuned(rows, tuner, calibration=calibration)
    assert set(tuner.rows) == set(rows)


def test_a_labels_only_row_is_tuned_on_and_a_text_of_two_labels_is_never_held_out() -> None:
    rows = [LabelledText("alone", "one"), *(LabelledText("same", label) for label in ("two", "three"))]
    kept, held = split([*rows, LabelledText("other", "two")], seed=0)
    assert set(rows) <= set(kept)
    assert held == [LabelledText("other", "two")]


def test_rows_that_cannot_be_fitted_are_refused_before_anything_is_tuned() -> None:
    tuner = Tuner()
    with pytest.raises(BadInput, match="no route to tell apart"):
        fit_tuned(base_rows(), tuner)
    assert tuner.rows == []
