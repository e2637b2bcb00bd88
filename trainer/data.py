"""Rows become examples through the base's own chat template; only the answer is supervised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jinja2 import TemplateError

from adapters.rows import Example, Message, last_user_text, read_examples, sha256_file, sha256_json

from .errors import BaseUnusable, DataInvalid, LeakFound

SHOWN = 3


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that the trainer leans on."""

    chat_template: str | None

    def apply_chat_template(
        self,
        conversation: Sequence[Sequence[Mapping[str, str]]],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        return_dict: bool,
    ) -> list[list[int]]:
        """Token ids of each conversation, special tokens by the template alone."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of `token_ids`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example in token ids. `completion` is the answer and the token that ends the turn: what is supervised,
    but for the positions of it in `dropped`, which the model reads and the loss leaves out. `choices` are the answers
    to choose among, where the row names any.
    """

    row: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    messages: tuple[Message, ...]
    answer: str
    dropped: frozenset[int] = frozenset()
    choices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return len(self.completion) - len(self.dropped)


@dataclass(frozen=True, slots=True)
class Dataset:
    """One file's examples, or the half of it that `part` names. `skipped` counts rows left out, by reason."""

    name: str
    file_digest: str
    examples: tuple[Encoded, ...]
    skipped: Mapping[str, int]
    part: str | None = None

    @property
    def rows(self) -> list[str]:
        return [example.row for example in self.examples]

    @property
    def digest(self) -> str:
        """sha256 of the examples, prompts and answers, in their order."""
        return sha256_json([[example.row, example.answer] for example in self.examples])

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest completion."""
        return max(len(example.completion) for example in self.examples)


def prompt_token_ids(tokenizer: ChatTokenizer, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
    """The prompts as an engine sees them: the base's template, with the header that asks for an answer."""
    return _apply(tokenizer, prompts, add_generation_prompt=True)


def encode(tokenizer: ChatTokenizer, examples: Sequence[Example], end_tokens: frozenset[int]) -> list[Encoded]:
    """Token ids of prompts and completions: completion = template(prompt + answer) − template(prompt).

    What the template adds after the token that ends the turn is cut: an engine has stopped there.
    Raises `BaseUnusable` where there is no template, the conversation does not continue its prompt
    token by token, or the turn does not end.
    """
    if not tokenizer.chat_template:
        raise BaseUnusable(
            "the base's tokenizer has no chat template", hint="add chat_template.jinja to the base's folder"
        )
    prompts = prompt_token_ids(tokenizer, [example.prompt for example in examples])
    answered = [(*example.prompt, Message("assistant", example.answer)) for example in examples]
    conversations = _apply(tokenizer, answered, add_generation_prompt=False)
    return [
        Encoded(
            row=example.digest,
            prompt=tuple(prompt),
            completion=_completion(prompt, full, end_tokens),
            messages=example.prompt,
            answer=example.answer,
            choices=example.choices,
        )
        for example, prompt, full in zip(examples, prompts, conversations, strict=True)
    ]


def read_training(path: Path, tokenizer: ChatTokenizer, end_tokens: frozenset[int], max_length: int) -> Dataset:
    """A training file; rows over `max_length` tokens are left out whole and counted, never cut."""
    encoded = encode(tokenizer, read_examples(path), end_tokens)
    kept = tuple(example for example in encoded if len(example) <= max_length)
    skipped = {f"longer than {max_length} tokens": len(encoded) - len(kept)} if len(kept) < len(encoded) else {}
    if not kept:
        raise DataInvalid(
            f"{path.name}: all {len(encoded)} rows are longer than {max_length} tokens", hint="raise max_length"
        )
    return Dataset("train", sha256_file(path), kept, skipped)


def read_evaluation(
    path: Path, name: str, tokenizer: ChatTokenizer, end_tokens: frozenset[int], max_length: int
) -> Dataset:
    """A file that judges: rows of one prompt count once, and a row that is too long is refused."""
    rows = read_examples(path)
    first: dict[str, Example] = {}
    for example in rows:
        first.setdefault(example.digest, example)
    encoded = encode(tokenizer, list(first.values()), end_tokens)
    too_long = sum(len(example) > max_length for example in encoded)
    if too_long:
        raise DataInvalid(
            f"{path.name}: {too_long} of {len(encoded)} rows are longer than {max_length} tokens",
            hint="raise max_length or leave the rows out",
        )
    repeated = len(rows) - len(encoded)
    skipped = {"the same prompt again": repeated} if repeated else {}
    return Dataset(name, sha256_file(path), tuple(encoded), skipped)


def halves(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Split by a hash of each row's digest: (for choosing the checkpoint, for evidence).

    The half of a row depends on its prompt alone, not on the rest of the file.
    """
    parts: tuple[list[Encoded], list[Encoded]] = ([], [])
    for example in dataset.examples:
        parts[hashlib.sha256(f"half {example.row}".encode()).digest()[0] & 1].append(example)
    if not all(parts):
        raise DataInvalid(
            f"{dataset.name}: {len(dataset.examples)} rows are too few to split in halves",
            hint="choosing and judging a checkpoint need different rows: give more",
        )
    selecting, judging = (
        Dataset(dataset.name, dataset.file_digest, tuple(part), dataset.skipped, f"half {number} by hash of the input")
        for number, part in enumerate(parts)
    )
    return selecting, judging


def refuse_shared(learned: Dataset, judged: Dataset) -> None:
    """Raise `LeakFound` where a prompt of `judged` also stands in `learned`."""
    known = set(learned.rows)
    shared = [number for number, row in enumerate(judged.rows) if row in known]
    if shared:
        shown = "; ".join(
            f"row {number + 1} {last_user_text(judged.examples[number].messages)!r:.60}" for number in shared[:SHOWN]
        )
        raise LeakFound(
            f"{len(shared)} of {len(judged.rows)} rows of {judged.name} also stand in {learned.name}: {shown}",
            hint="take them out of one of the two files",
        )


def _apply(
    tokenizer: ChatTokenizer, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool
) -> list[list[int]]:
    plain = [[{"role": turn.role, "content": turn.content} for turn in turns] for turns in conversations]
    try:
        return tokenizer.apply_chat_template(
            plain, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise DataInvalid(
            f"the base's chat template refuses a conversation: {error}", hint="mend the rows or the template"
        ) from error


def _completion(prompt: list[int], full: list[int], end_tokens: frozenset[int]) -> tuple[int, ...]:
    if full[: len(prompt)] != prompt:
        raise BaseUnusable(
            "the base's chat template does not continue its own prompt: prompt + answer starts with other tokens "
            "than the prompt alone",
            hint="use a template whose generation prompt is a prefix of the answered conversation",
        )
    completion = full[len(prompt) :]
    end = next((index for index in reversed(range(len(completion))) if completion[index] in end_tokens), None)
    if end is None:
        raise BaseUnusable(
            "the base's chat template does not end the assistant's turn with an end-of-sequence token",
            hint="name the token that ends a turn in generation_config.json or tokenizer_config.json (eos_token)",
        )
    return tuple(completion[: end + 1])
