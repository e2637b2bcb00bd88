"""Text on its way out: stop strings, and characters cut over several tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from router.backends.embedded.detokenize import REPLACEMENT, Detokenizer
from router.backends.stops import StopScanner
from tests.tiny_model import make_tokenizer


def scan(pieces: Sequence[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    shown = ""
    for piece in pieces:
        shown += scanner.push(piece)
        if scanner.found:
            return shown, True
    return shown + scanner.flush(), scanner.found


def up_to_first_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """Brute force: the shortest start of `text` that ends with a stop string, less the longest such string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(len(stop) for stop in ending)], True
    return text, False


_SHORT = st.text("ab", min_size=1, max_size=4)


@given(st.lists(_SHORT, max_size=8), st.lists(_SHORT, max_size=4))
def test_text_ends_at_the_first_stop_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    assert scan(pieces, tuple(stops)) == up_to_first_stop("".join(pieces), tuple(stops))


@given(st.lists(_SHORT, max_size=8), st.lists(_SHORT, min_size=1, max_size=4))
def test_nothing_shown_before_the_end_is_ever_taken_back(pieces: list[str], stops: list[str]) -> None:
    scanner = StopScanner(tuple(stops))
    expected, _ = up_to_first_stop("".join(pieces), tuple(stops))
    shown = ""
    for piece in pieces:
        shown += scanner.push(piece)
        assert expected.startswith(shown)
        if scanner.found:
            break


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def full_decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def decode_in_pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(lambda some: full_decode(tokenizer, some))
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(ids=st.lists(st.integers(0, 330), max_size=40))
def test_pieces_of_any_tokens_make_the_full_decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    assert "".join(decode_in_pieces(tokenizer, ids)) == full_decode(tokenizer, ids)


@given(text=st.text(max_size=30).filter(lambda text: REPLACEMENT not in text))
def test_no_character_of_a_text_is_ever_cut(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    pieces = decode_in_pieces(tokenizer, ids)
    assert "".join(pieces) == full_decode(tokenizer, ids)
    assert all(REPLACEMENT not in piece for piece in pieces)
