"""What the files of a sentence encoder's folder say: how texts are cut and vectors pooled, and the digest of it all.

The layout is sentence-transformers': `modules.json` lists the steps, `1_Pooling/config.json` says how the tokens'
vectors become one, `sentence_bert_config.json` where texts are cut. A folder without `modules.json` is pooled by
the mean. The vectors are divided by their length in any case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from adapters.errors import shown
from adapters.rows import is_unicode, sha256_file, sha256_json

from ...errors import EncoderUnavailable
from ..encoding import EncoderRef, Precision
from .source import find_folder, source_name

Pooling = Literal["mean", "cls"]

MAX_VOCABULARY = 2**31
MAX_TOKENS = 512  # work per text is bounded, whatever a model could read
RECIPE = 1  # how the files become vectors; another recipe gives other vectors, so it is part of the digest
STEPS = ("Transformer", "Pooling", "Normalize")
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
MODULES, SENTENCE_CONFIG = "modules.json", "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """`prompt` stands before every text, `pad_token` fills a batch's shorter rows."""

    folder: Path
    name: str
    digest: str
    pooling: Pooling
    dimension: int
    max_tokens: int
    pad_token: int
    lowercase: bool
    prompt: str

    def ref(self, precision: Precision) -> EncoderRef:
        return EncoderRef(self.name, self.digest, precision, self.dimension, self.max_tokens)


def read_layout(source: str) -> Layout:
    """The layout of the encoder that `source` names. Reads all its files once, for the digest.

    Raises `EncoderUnavailable` listing every problem.
    """
    folder = find_folder(source)
    reader = _Reader(folder)
    config, tokenizer = reader.mapping(CONFIG), reader.mapping(TOKENIZER_CONFIG, optional=True)
    sentence, prompts = reader.mapping(SENTENCE_CONFIG, optional=True), reader.mapping(PROMPTS, optional=True)
    pooling = reader.pooling()
    weights = reader.weights()
    dimension = reader.whole(config, ("hidden_size", "dim", "d_model"))
    positions = config.get("max_position_embeddings")
    limits = (MAX_TOKENS, sentence.get("max_seq_length"), tokenizer.get("model_max_length"), positions)
    pad_token, prompt = reader.pad_token(config), reader.default_prompt(prompts)
    if reader.problems:
        raise EncoderUnavailable(
            f"encoder {source_name(source)!r:.100} cannot be used: {'; '.join(reader.problems)}",
            hint="give a sentence encoder with config.json, tokenizer.json and model.safetensors",
        )
    files = sorted({*reader.read, TOKENIZER, *weights})
    return Layout(
        folder=folder,
        name=source_name(source),
        digest=sha256_json({"recipe": RECIPE, "files": {name: sha256_file(folder / name) for name in files}}),
        pooling=pooling,
        dimension=dimension,
        max_tokens=int(min(limit for limit in limits if isinstance(limit, int | float) and limit > 0)),
        pad_token=pad_token,
        lowercase=bool(sentence.get("do_lower_case")),
        prompt=prompt,
    )


class _Reader:
    """Reads a folder's JSON files; every problem is collected, every file that counts is noted in `read`."""

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.read: list[str] = []
        self._folder = folder

    def mapping(self, name: str, *, optional: bool = False) -> Mapping[str, Any]:
        value = self._json(name, optional=optional)
        if value is not None and not isinstance(value, dict):
            self.problems.append(f"{name} is no JSON object")
        return value if isinstance(value, dict) else {}

    def whole(self, value: Mapping[str, Any], names: Sequence[str]) -> int:
        found = next((value[name] for name in names if name in value), None)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            self.problems.append(f"{CONFIG}: {names[0]} is {shown(found)}, expected a whole number")
            return 1
        return found

    def pad_token(self, config: Mapping[str, Any]) -> int:
        found = config.get("pad_token_id") or 0
        if type(found) is not int or not 0 <= found < MAX_VOCABULARY:
            self.problems.append(f"{CONFIG}: pad_token_id is {shown(found)}, expected a token's number")
            return 0
        return found

    def default_prompt(self, config: Mapping[str, Any]) -> str:
        named, prompts = config.get("default_prompt_name"), config.get("prompts")
        if named is None or not isinstance(prompts, dict):
            return ""
        prompt = prompts.get(named) if isinstance(named, str) else None
        if not isinstance(prompt, str) or not is_unicode(prompt):
            self.problems.append(f"{PROMPTS}: no prompt called {shown(named)}")
            return ""
        return prompt

    def weights(self) -> list[str]:
        found = sorted(path.name for path in self._folder.glob("*.safetensors"))
        if not found:
            self.problems.append("no .safetensors file (weights in pickle files are not opened)")
        if not (self._folder / TOKENIZER).is_file():
            self.problems.append(f"no {TOKENIZER}")
        return found

    def pooling(self) -> Pooling:
        modules = self._json(MODULES, optional=True)
        if modules is None:
            return "mean"
        listed = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
        steps = {str(module.get("type")).rpartition(".")[2]: str(module.get("path")) for module in listed}
        if unknown := [step for step in steps if step not in STEPS]:
            self.problems.append(f"{MODULES} names {', '.join(unknown):.200}, this version runs {', '.join(STEPS)}")
        if "Pooling" not in steps or Path(steps["Pooling"]).is_absolute() or ".." in Path(steps["Pooling"]).parts:
            self.problems.append(f"{MODULES} names no folder for Pooling")
            return "mean"
        config = self.mapping(f"{steps['Pooling']}/{CONFIG}")
        if config.get("include_prompt") is False:
            self.problems.append("leaves a prompt's tokens out of the pooling, which this version does not")
        modes = _pooling_modes(config)
        known: tuple[Pooling, ...] = get_args(Pooling)
        for mode in known:
            if modes == [mode]:
                return mode
        self.problems.append(f"pools by {' and '.join(modes)!r:.100}, this version by mean or cls")
        return "mean"

    def _json(self, name: str, *, optional: bool) -> object:
        path = self._folder / name
        if optional and not path.exists():
            return None
        try:
            value: object = json.loads(path.read_bytes())
        except OSError as error:
            self.problems.append(f"{name} cannot be read ({error.strerror})")
            return None
        except (ValueError, RecursionError):
            self.problems.append(f"{name} is not valid JSON")
            return None
        self.read.append(name)
        return value


def _pooling_modes(config: Mapping[str, Any]) -> list[str]:
    """Both spellings of sentence-transformers: `pooling_mode`, and before it one boolean for each mode."""
    found = config.get("pooling_mode")
    if found is not None:
        return [str(mode) for mode in found] if isinstance(found, list) else [str(found)]
    names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    given = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    return [names.get(key, key) for key in given] or ["mean"]
