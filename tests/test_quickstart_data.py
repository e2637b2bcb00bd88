"""The quickstart's data and pocket base: splits that share nothing, files that repeat byte for byte, a base that
never saw the tasks.
"""

import os
import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from examples.quickstart import booking_phrases, regex_phrases, sql_phrases, tasks
from examples.quickstart.base_folder import digest_file, read_json
from examples.quickstart.curriculum.mixture import draw_conversation
from examples.quickstart.entities import SPLITS, Split, reserved_words
from examples.quickstart.general import draw_general_texts, draw_guardrail
from examples.quickstart.lexicon import load_lexicon
from examples.quickstart.pretraining import (
    Corpus,
    digest_chunk,
    draw_documents,
    encode_document,
    load_paragraphs,
    make_chunk,
)
from examples.quickstart.rows import Row
from examples.quickstart.schedule import learning_rate_factor
from examples.quickstart.tokenizer import ASSISTANT, load_raw_tokenizer
from examples.quickstart.wording import all_wordings, choose_wording, parse_wording

QUICKSTART = Path(tasks.__file__).parent
BASE = QUICKSTART / "base"
TaskRows = dict[tasks.TaskName, dict[Split, list[Row]]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskRows, Path]:
    folder = tmp_path_factory.mktemp("quickstart")
    return tasks.write_all(folder), folder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(BASE)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.fixture(scope="module")
def raw_tokenizer() -> Tokenizer:
    return load_raw_tokenizer(BASE)


def _entities(rows: Iterable[Row]) -> set[str]:
    return {entity for row in rows for entity in row.entities}


def _phrases(split: Split) -> dict[str, set[str]]:
    """Every surface form of every phrase of a split's banks, by bank."""
    sql, booking, regex = sql_phrases.BANKS[split], booking_phrases.BANKS[split], regex_phrases.BANKS[split]
    wordings: dict[str, Iterable[str]] = {
        "sql": (sql.column, sql.count, sql.aggregate, sql.equal, sql.compare),
        "booking": (
            *booking.sentences,
            booking.under,
            booking.intro,
            booking.size,
            booking.count,
            booking.when,
            booking.hour,
        ),
        "regex": (wording for wording, _ in regex.shapes),
    }
    return {bank: set().union(*map(all_wordings, texts)) for bank, texts in wordings.items()}


@pytest.mark.parametrize(("first", "second"), [("train", "eval"), ("select", "eval"), ("train", "select")])
def test_splits_share_no_phrase(first: Split, second: Split) -> None:
    one, other = _phrases(first), _phrases(second)
    for bank in one:
        assert one[bank].isdisjoint(other[bank]), one[bank] & other[bank]


@pytest.mark.parametrize("name", tasks.TASK_NAMES)
def test_splits_share_no_template_entity_or_output(name: tasks.TaskName, written: tuple[TaskRows, Path]) -> None:
    rows = written[0][name]
    for one, other in (("train", "eval"), ("select", "eval"), ("train", "select")):
        first, second = rows[one], rows[other]  # type: ignore[index]
        assert {row.template for row in first}.isdisjoint(row.template for row in second)
        assert {row.output for row in first}.isdisjoint(row.output for row in second)
        assert _entities(first).isdisjoint(_entities(second))


@pytest.mark.parametrize("name", tasks.TASK_NAMES)
def test_every_entity_of_an_output_is_named_in_the_input(name: tasks.TaskName, written: tuple[TaskRows, Path]) -> None:
    for row in written[0][name]["eval"]:
        assert row.entities
        assert all(entity in row.input for entity in row.entities)
        assert any(entity in row.output for entity in row.entities)
        assert "{" not in row.input


@pytest.mark.parametrize("name", tasks.TASK_NAMES)
def test_copying_the_nearest_training_output_scores_at_most_five_percent(
    name: tasks.TaskName, written: tuple[TaskRows, Path]
) -> None:
    rows = written[0][name]
    assert len(rows["eval"]) >= 200
    assert tasks.nearest_neighbour_floor(rows["train"], rows["eval"]) <= 0.05
    assert tasks.nearest_neighbour_floor(rows["train"], rows["train"]) == 1.0  # the measure itself finds a copy


@pytest.mark.parametrize("name", tasks.TASK_NAMES)
def test_one_input_has_one_output(name: tasks.TaskName, written: tuple[TaskRows, Path]) -> None:
    rows = [row for split in SPLITS for row in written[0][name][split]]
    assert len({row.input for row in rows}) == len(rows)


def test_regex_outputs_are_patterns(written: tuple[TaskRows, Path]) -> None:
    for row in written[0]["regex"]["eval"]:
        re.compile(row.output)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    written: tuple[TaskRows, Path], tmp_path: Path
) -> None:
    tasks.write_all(tmp_path / "again")
    tasks.write_all(tmp_path / "other", seed=1)
    for path in sorted(written[1].iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / path.name).read_bytes() != path.read_bytes()


def test_guardrail_and_classifier_texts_share_nothing() -> None:
    lexicon = load_lexicon()
    guardrail = {item.prompt for item in draw_guardrail(200, seed=0)}
    train = set(draw_general_texts(lexicon, "train", 300, seed=0))
    test = set(draw_general_texts(lexicon, "eval", 200, seed=0))
    assert len(guardrail) == 200
    assert guardrail.isdisjoint(train)
    assert guardrail.isdisjoint(test)
    assert train.isdisjoint(test)


def test_pretraining_tasks_say_no_task_entity(written: tuple[TaskRows, Path]) -> None:
    rng, lexicon = random.Random(2), load_lexicon()
    texts = " ".join(segment.text for _ in range(6000) for segment in draw_conversation(rng, lexicon)).lower()
    said = set(re.findall(r"[a-z]+", texts))
    for rows in written[0].values():
        assert said.isdisjoint(entity.lower() for split in SPLITS for row in rows[split] for entity in row.entities)
    assert reserved_words().isdisjoint(lexicon.words)
    assert reserved_words().isdisjoint(name.lower() for name in lexicon.names)


def _fixed_windows(text: str, length: int = 5) -> set[tuple[str, ...]]:
    """Runs of `length` words that contain no slot."""
    words = re.findall(r"\{\w+\}|[A-Za-z]+|\d+", text.lower())
    windows = (tuple(words[place : place + length]) for place in range(len(words) - length + 1))
    return {window for window in windows if not any(word.startswith("{") for word in window)}


def test_pretraining_tasks_contain_no_template_and_no_notation_of_the_tasks(written: tuple[TaskRows, Path]) -> None:
    rng, lexicon = random.Random(1), load_lexicon()
    texts = [segment.text for _ in range(6000) for segment in draw_conversation(rng, lexicon)]
    seen = set().union(*map(_fixed_windows, texts))
    for rows in written[0].values():
        templates = {row.template for split in SPLITS for row in rows[split]}
        assert seen.isdisjoint(set().union(*map(_fixed_windows, templates)))
    for text in texts:
        assert not re.search(r"SELECT .* FROM |COUNT\(|\\d[{+]|\[a-z\]|\.\*\w+\$|\"people\"", text), text


@given(st.integers(0, 2**32))
def test_a_chosen_wording_is_one_of_all_wordings(seed: int) -> None:
    wording = sql_phrases.BANKS["eval"].equal
    assert choose_wording(wording, random.Random(seed)) in all_wordings(wording)


@pytest.mark.parametrize("wording", ["[a|b", "a]", "a|b", "[a|[b]"])
def test_a_malformed_wording_is_refused(wording: str) -> None:
    with pytest.raises(ValueError, match="bracket"):
        parse_wording(wording)


@given(step=st.integers(0, 999), steps=st.integers(1, 1000))
def test_learning_rate_stays_between_nothing_and_full(step: int, steps: int) -> None:
    assert 0.0 <= learning_rate_factor(step, steps, warm_up=60, cool_down=0.35) <= 1.0


def test_base_is_small_and_loads() -> None:
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 16 * 2**20
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 5_000_000 <= model.num_parameters() <= 6_000_000


def test_base_files_are_those_that_were_recorded() -> None:
    record = read_json(BASE / "DATA.json")
    assert record["files"] == {name: digest_file(BASE / name) for name in record["files"]}
    assert record["word_list_digests"] == {name: digest_file(QUICKSTART / name) for name in record["word_list_digests"]}


def test_generators_still_give_the_recorded_conversations(raw_tokenizer: Tokenizer) -> None:
    record = read_json(BASE / "DATA.json")
    corpus = Corpus(raw_tokenizer, load_lexicon(), (), 0.0, 1.0, record["settings"]["seed"])
    assert digest_chunk(make_chunk(corpus, 0, tokens=50_000)) == record["conversation_digest"]


def test_first_chunk_with_books_is_the_recorded_one(raw_tokenizer: Tokenizer) -> None:
    record = read_json(BASE / "DATA.json")
    data = books_folder()
    paragraphs = load_paragraphs(data, record["settings"]["book_files"])
    corpus = Corpus(
        raw_tokenizer, load_lexicon(), paragraphs, record["settings"]["prose_share"], 1.0, record["settings"]["seed"]
    )
    assert digest_chunk(make_chunk(corpus, 0)) == record["chunk_digests"][0]


def books_folder() -> Path:
    """The data folder, or a skip that says so."""
    folder = Path(os.environ.get("BRANCHLINE_DATA", QUICKSTART.parents[2] / "shared" / "data"))
    if not (folder / "books").is_dir():
        pytest.skip("the books are not here: set BRANCHLINE_DATA to the folder that holds books/")
    return folder


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = load_raw_tokenizer(BASE)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_streamed_pieces_join_to_the_text(text: str) -> None:
    tokenizer = load_raw_tokenizer(BASE)
    stream = DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(tokenizer, token) for token in tokenizer.encode(text).ids]
    assert "".join(piece for piece in pieces if piece) == text


@settings(max_examples=100, deadline=None)
@given(word=st.sampled_from(load_lexicon().words + load_lexicon().names))
def test_a_word_has_the_same_tokens_wherever_it_stands(word: str) -> None:
    tokenizer = load_raw_tokenizer(BASE)
    tokens = tokenizer.encode(word).tokens
    for around in (" {} ", '"{}"', "({})", "{},", "^{}.*", "1{}2"):
        inside = tokenizer.encode(around.format(word)).tokens
        assert any(inside[place : place + len(tokens)] == tokens for place in range(len(inside)))


def test_transformers_decodes_what_it_encodes(tokenizer: PreTrainedTokenizerFast) -> None:
    text = 'Two  spaces, \n a line, {"k": "v"} , don\'t , \u00e9\u00e8 \u4f60\u597d \U0001f600 .'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template_renders_system_turns_and_the_generation_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Bye<|end|><|assistant|>"
    )


def test_a_prompt_is_the_beginning_of_the_whole_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    user, assistant = {"role": "user", "content": "Say x"}, {"role": "assistant", "content": "x"}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([user, assistant], return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_pretraining_documents_are_what_the_chat_template_gives(
    tokenizer: PreTrainedTokenizerFast, raw_tokenizer: Tokenizer
) -> None:
    documents = draw_documents(Corpus(raw_tokenizer, load_lexicon(), (), 0.0, 1.0, 0), 0)
    for document in (next(documents) for _ in range(50)):
        messages = [{"role": segment.role, "content": segment.text} for segment in document]
        encoded = encode_document(document, raw_tokenizer)
        assert encoded.ids == tokenizer.apply_chat_template(messages, return_dict=False)[: len(encoded.ids)]
        answered = [place for place, token in enumerate(encoded.ids) if token == raw_tokenizer.token_to_id(ASSISTANT)]
        assert answered
        assert len(encoded.ids) == len(encoded.weights)
