"""What a proof of application is made with: chosen from the registry, read from evidence nobody vouches for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import find_base
from adapters.errors import BadInput
from adapters.evidence import Evaluation, Evidence, Item, Score
from adapters.examples import add_examples
from adapters.home import Home
from adapters.probes import MAX_TEXT_CHARACTERS, PROMPTS, RecordedPrompt, probes_of, recorded_prompts
from adapters.publish import attach_evidence, publish_folder
from adapters.registry import Registry
from adapters.store import Store
from adapters.types import AdapterVersion
from tests.tiny_model import make_adapter, make_base

PROMPT = {
    "messages": [{"role": "user", "content": "hello"}],
    "prompt_tokens": [1, 2, 3],
    "tokens": [4, 5],
    "logprobs": [-0.5, -0.25],
    "base_logprobs": [-3.5, -1],
}
READ = RecordedPrompt((1, 2, 3), (4, 5), (-0.5, -0.25), (-3.5, -1.0))


class Published:
    """A version of route `sql` in a registry and store of its own."""

    def __init__(self, folder: Path) -> None:
        base = find_base(str(make_base(folder / "tiny")))
        home = Home.at(folder / "home")
        self.registry, self.store = Registry.open(home.registry_url), Store(home.store)
        self.registry.create_route("sql")
        adapter = make_adapter(base.folder, folder / "adapter", seed=0)
        self.version: AdapterVersion = publish_folder(self.registry, self.store, "sql", adapter, base).version

    def attach(self, probe: dict[str, object], created: str = "2026-01-01") -> str:
        found = evidence_of(self.version.digest, self.version.manifest.base_fingerprint, probe, created)
        return attach_evidence(self.registry, self.store, self.version, found)

    @property
    def recorded(self) -> tuple[RecordedPrompt, ...]:
        return probes_of(self.registry, self.store, self.version).recorded

    @property
    def texts(self) -> tuple[str, ...]:
        return probes_of(self.registry, self.store, self.version).texts


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    found = Published(tmp_path)
    yield found
    found.registry.close()


def evidence_of(weights: str, base: str, probe: dict[str, object], created: str = "2026-01-01") -> Evidence:
    score = Score(1.0, 0.5, 3)
    target = Evaluation("target", "0" * 64, "exact_match", (Item("row", score, score),))
    return Evidence(weights, base, created, target, (), probe=probe)


def test_a_version_without_examples_and_evidence_has_no_probes(published: Published) -> None:
    assert published.texts == ()
    assert published.recorded == ()


def test_texts_come_from_all_over_the_examples_and_are_the_same_each_time(published: Published) -> None:
    add_examples(published.registry, "sql", [f"text {number}" for number in range(80)], source="test")
    assert published.texts == tuple(f"text {number}" for number in range(0, 80, 10))
    assert published.texts == published.texts


def test_few_examples_are_all_used_and_long_ones_cut(published: Published) -> None:
    add_examples(published.registry, "sql", ["short", "long " * MAX_TEXT_CHARACTERS], source="test")
    assert published.texts == ("short", ("long " * MAX_TEXT_CHARACTERS)[:MAX_TEXT_CHARACTERS])


def test_the_newest_usable_evidence_counts(published: Published) -> None:
    published.attach({"prompts": [PROMPT | {"tokens": [9, 9]}]}, "2026-01-01")
    published.attach({"prompts": [PROMPT]}, "2026-01-02")
    published.attach({"prompts": [PROMPT | {"logprobs": [-0.5]}]}, "2026-01-03")
    published.attach({}, "2026-01-04")
    assert published.recorded == (READ,)


def test_evidence_whose_file_was_altered_or_lost_is_left_out(
    published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    digests = [published.attach({"prompts": [PROMPT]}, created) for created in ("2026-01-01", "2026-01-02")]
    lost, altered = (published.store.root / "sql" / "evidence" / f"{digest}.json" for digest in digests)
    lost.unlink()
    altered.chmod(0o600)
    altered.write_text("{}", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert published.recorded == ()
    assert all(digest[:16] in caplog.text for digest in digests)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_tokens": []},
        {"prompt_tokens": [-1]},
        {"prompt_tokens": [True]},
        {"prompt_tokens": [1] * 10_000},
        {"prompt_tokens": "123"},
        {"tokens": []},
        {"tokens": [4, 2**31]},
        {"tokens": [4, 5, 6]},
        {"tokens": [4.0, 5.0]},
        {"tokens": None},
        {"logprobs": [0.5, -0.25]},
        {"logprobs": [None, -0.25]},
        {"logprobs": [-(10**400), -0.25]},
        {"base_logprobs": [-3.5]},
        {"base_logprobs": ["-3.5", -1]},
        {"base_logprobs": {}},
    ],
)
def test_a_malformed_prompt_is_left_out_and_the_others_count(wrong: dict[str, object]) -> None:
    evidence = evidence_of("1" * 64, "2" * 64, {"prompts": [PROMPT | wrong, PROMPT]})
    assert recorded_prompts(evidence, "1" * 64) == (READ,)


@pytest.mark.parametrize("probe", [{"prompts": "many"}, {"prompts": [7, None, []]}, {"prompts": {"0": PROMPT}}])
def test_a_probe_with_nothing_usable_is_refused(probe: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        recorded_prompts(evidence_of("1" * 64, "2" * 64, probe), "1" * 64)


def test_evidence_of_other_weights_is_refused() -> None:
    with pytest.raises(BadInput, match="other weights"):
        recorded_prompts(evidence_of("1" * 64, "2" * 64, {"prompts": [PROMPT]}), "3" * 64)


def test_at_most_the_first_prompts_are_used() -> None:
    evidence = evidence_of("1" * 64, "2" * 64, {"prompts": [PROMPT] * 20})
    assert len(recorded_prompts(evidence, "1" * 64)) == PROMPTS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(PROMPT)), inner, max_size=5),
    max_leaves=12,
)


@given(JSON)
def test_no_probe_makes_reading_it_crash(value: object) -> None:
    evidence = replace(evidence_of("1" * 64, "2" * 64, {}), probe={"prompts": value})
    try:
        found = recorded_prompts(evidence, "1" * 64)
    except BadInput:
        return
    assert all(len(one.tokens) == len(one.logprobs) == len(one.base_logprobs) > 0 for one in found)
