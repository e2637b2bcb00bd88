"""The pocket base's training data: numbered chunks of documents as token arrays, each chunk a pure function of seed
and number.

A chunk mixes conversations of the curriculum with paragraphs of the books. Documents are padded to the right in
buckets of like length (causal attention needs no mask then); the weight of a token in the loss is 1 where it can be
learnt, 0.1 in a user turn, 0 in padding.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .curriculum.mixture import Document, Segment, draw_conversation
from .lexicon import Lexicon, book_files, read_paragraphs
from .tokenizer import ASSISTANT, END, PAD, SYSTEM, USER, token_id

CHUNK_TOKENS = 400_000
MAX_LENGTH = 257
PROMPT_WEIGHT = 0.1
_ROLE_TOKEN = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


@dataclass(frozen=True)
class Encoded:
    """Token ids and the loss weight of each."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """`ids` (rows, length) int64 and `weights` (rows, length) float32, padded to the right."""

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Corpus:
    """Everything a chunk depends on but its number."""

    tokenizer: Tokenizer
    lexicon: Lexicon
    paragraphs: Sequence[str]
    prose_share: float
    prose_weight: float
    seed: int


def load_paragraphs(data_folder: Path, files: int) -> list[str]:
    """Paragraphs of prose of the first book files, 80 to 900 characters, in reading order; empty where there are no
    books.
    """
    return [
        text for path in book_files(data_folder)[:files] for text in read_paragraphs(path) if 80 <= len(text) <= 900
    ]


def draw_documents(corpus: Corpus, number: int) -> Iterator[Document]:
    """The endless documents of a chunk."""
    rng = random.Random(f"{corpus.seed}/{number}")
    while True:
        if corpus.paragraphs and rng.random() < corpus.prose_share:
            yield (Segment("prose", rng.choice(corpus.paragraphs), scored=True),)
        else:
            yield draw_conversation(rng, corpus.lexicon)


def encode_document(document: Document, tokenizer: Tokenizer, prose_weight: float = 1.0) -> Encoded:
    """Token ids exactly as the chat template gives them (prose: the text and the end token)."""
    end = token_id(tokenizer, END)
    ids: list[int] = []
    weights: list[float] = []
    for segment in document:
        body = [*tokenizer.encode(segment.text, add_special_tokens=False).ids, end]
        weight = 1.0 if segment.scored else PROMPT_WEIGHT
        if segment.role == "prose":
            weight = prose_weight
        if segment.role != "prose":
            ids.append(token_id(tokenizer, _ROLE_TOKEN[segment.role]))
            weights.append(0.0)
        ids += body
        weights += [weight] * len(body)
    return Encoded(ids[:MAX_LENGTH], weights[:MAX_LENGTH])


def make_chunk(corpus: Corpus, number: int, tokens: int = CHUNK_TOKENS) -> list[Encoded]:
    """The documents of chunk `number`, up to `tokens` tokens."""
    encoded: list[Encoded] = []
    total = 0
    for document in draw_documents(corpus, number):
        encoded.append(encode_document(document, corpus.tokenizer, corpus.prose_weight))
        total += len(encoded[-1].ids)
        if total >= tokens:
            return encoded
    raise AssertionError("documents never end")


def digest_chunk(chunk: Sequence[Encoded]) -> str:
    """SHA-256 over lengths and token ids."""
    digest = hashlib.sha256()
    for encoded in chunk:
        digest.update(np.asarray([len(encoded.ids), *encoded.ids], dtype="<i4").tobytes())
    return digest.hexdigest()


def make_batches(chunk: Sequence[Encoded], batch_tokens: int, pad: int, rng: random.Random) -> list[Batch]:
    """Batches of about `batch_tokens` tokens of documents of like length, in random order.

    A batch has one token more than a multiple of 16 (its last token is only ever a target), so few different shapes
    occur and the compiled kernels for them are found again.
    """
    rest = sorted(chunk, key=lambda encoded: len(encoded.ids), reverse=True)
    batches: list[Batch] = []
    while rest:
        length = -(-(len(rest[0].ids) - 1) // 16) * 16
        rows = max(1, batch_tokens // length)
        batches.append(_pad_rows(rest[:rows], length + 1, pad))
        rest = rest[rows:]
    rng.shuffle(batches)
    return batches


def _pad_rows(rows: Sequence[Encoded], length: int, pad: int) -> Batch:
    ids = np.full((len(rows), length), pad, dtype=np.int64)
    weights = np.zeros((len(rows), length), dtype=np.float32)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = row.ids
        weights[place, : len(row.ids)] = row.weights
    return Batch(ids, weights)


def pad_id(tokenizer: Tokenizer) -> int:
    """The id of the padding token."""
    return token_id(tokenizer, PAD)
