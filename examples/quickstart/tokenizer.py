"""The pocket base's tokenizer: byte-level BPE that never joins a word with the space, quote or bracket beside it.

A word has the same tokens wherever it stands, so copying it into quotes or brackets is copying tokens. Digits are
single tokens. Any UTF-8 text goes through and comes back unchanged (all 256 bytes are in the vocabulary).
Special-token strings inside a message are read as special tokens, as with every Hugging Face chat template.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ ': use system, user or assistant') -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
_PIECES = Regex(r"\p{L}+|\p{N}|\s|[^\p{L}\p{N}\s]")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn the merges from texts; special tokens get the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Give the tokenizer its special tokens and chat template for transformers and vLLM."""
    wrapped: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the vocabulary must have; raises KeyError."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(f"{token!r} is not in the vocabulary")
    return int(found)


def load_raw_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a saved base folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
