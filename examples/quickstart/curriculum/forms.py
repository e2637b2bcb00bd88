"""Records: read a value, find a field, write the same record in another shape, fill a given shape, look things up."""

import random
from collections.abc import Callable

from ..lexicon import Lexicon
from ..wording import say
from .exchange import BRACKETS, DELIMITERS, Exchange

Record = dict[str, str]

STYLES: dict[str, Callable[[Record], str]] = {
    "lines": lambda record: "\n".join(f"{key}: {value}" for key, value in record.items()),
    "pairs": lambda record: ", ".join(f"{key}={value}" for key, value in record.items()),
    "quoted pairs": lambda record: " ".join(f"{key}='{value}'" for key, value in record.items()),
    "braces": lambda record: "{" + ", ".join(f'"{key}": "{value}"' for key, value in record.items()) + "}",
    "tags": lambda record: "".join(f"<{key}>{value}</{key}>" for key, value in record.items()),
    "columns": lambda record: " | ".join(record) + "\n" + " | ".join(record.values()),
    "values": lambda record: ", ".join(record.values()),
    "quoted values": lambda record: ", ".join(f'"{value}"' for value in record.values()),
    "keys": lambda record: ", ".join(record),
    "call": lambda record: "make(" + ", ".join(f"{key}={value}" for key, value in record.items()) + ")",
    "arrows": lambda record: "; ".join(f"{key} -> {value}" for key, value in record.items()),
    "sentence": lambda record: " and ".join(f"the {key} is {value}" for key, value in record.items()),
}
_READABLE = ("lines", "pairs", "braces", "tags", "arrows", "sentence", "quoted pairs", "call")


def draw_record(rng: random.Random, lexicon: Lexicon, most: int = 4) -> Record:
    """One to `most` fields with different names and different values."""
    count = rng.randint(1, most)
    return dict(zip(lexicon.distinct_words(rng, count), lexicon.distinct(rng, count), strict=True))


def restyle(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Write a record in another named shape."""
    record = draw_record(rng, lexicon)
    source, target = rng.choice(_READABLE), rng.choice(tuple(STYLES))
    prompt = "[Write as|Rewrite as|Turn into|Show as|In the shape of] {s}: {r}"
    return Exchange(say(prompt, rng, s=target, r=STYLES[source](record)), STYLES[target](record))


def read_field(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """The value of a field."""
    record = draw_record(rng, lexicon, most=5)
    key = rng.choice(tuple(record))
    question = say("[What is the {k}|Which {k}|Give the {k}|The {k}|Tell me the {k}]?", rng, k=key)
    text = STYLES[rng.choice(_READABLE)](record)
    return Exchange(rng.choice((f"{question} {text}", f"{text}\n{question}")), record[key])


def find_field(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """The field that has a value."""
    record = draw_record(rng, lexicon, most=5)
    key = rng.choice(tuple(record))
    question = say("[Which field is|What has the value|What is set to|Which one holds] {v}?", rng, v=record[key])
    text = STYLES[rng.choice(_READABLE)](record)
    return Exchange(rng.choice((f"{question} {text}", f"{text}\n{question}")), key)


def draw_shape(rng: random.Random, lexicon: Lexicon, keys: list[str]) -> str:
    """A random output shape with a `[key]` place for each key: signs, capitals, quotes and brackets in between."""
    parts: list[str] = []
    quote = rng.choice((("", ""), ("", ""), ("'", "'"), ('"', '"'), rng.choice(BRACKETS)))
    between = rng.choice(DELIMITERS)
    for key in keys:
        keyword = lexicon.word(rng)
        lead = rng.choice(
            (
                "",
                "",
                keyword.upper() + " ",
                keyword + "=",
                keyword + ": ",
                f'"{keyword}": ',
                f"{key}=",
                f"{key}: ",
                "!",
                "@",
                "\\",
            )
        )
        parts.append(lead + quote[0] + f"[{key}]" + quote[1])
    opening, closing = rng.choice(
        (
            ("", ""),
            ("", ""),
            ("", "."),
            rng.choice(BRACKETS),
            (lexicon.word(rng) + "(", ")"),
            (lexicon.word(rng).upper() + " ", ""),
        )
    )
    return opening + between.join(parts) + closing


def fill_shape(shape: str, record: Record) -> str:
    """Put values into a shape made by `draw_shape`."""
    for key, value in record.items():
        shape = shape.replace(f"[{key}]", value)
    return shape


def fill_given_shape(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Fill a shape that the prompt shows."""
    record = draw_record(rng, lexicon)
    keys = list(record)
    rng.shuffle(keys)
    shape = draw_shape(rng, lexicon, keys[: rng.randint(1, len(keys))])
    prompt = "[Fill|Fill in|Complete|Use the shape] {s}\n[with |where |]{r}"
    return Exchange(say(prompt, rng, s=shape, r=STYLES[rng.choice(_READABLE)](record)), fill_shape(shape, record))


def translate(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Replace words by a dictionary that the prompt gives; words it lacks stay."""
    count = rng.randint(2, 5)
    left = lexicon.distinct_words(rng, count)
    table = dict(zip(left, lexicon.distinct_words(rng, count), strict=True))
    text = [rng.choice(left) if rng.random() < 0.75 else lexicon.word(rng) for _ in range(rng.randint(1, 5))]
    sign = rng.choice((" = ", " means ", ": ", " is ", " -> "))
    entries = rng.choice((", ", "; ")).join(key + sign + value for key, value in table.items())
    answer = " ".join(table.get(word, word) for word in text)
    return Exchange(say("{e}\n[Translate|In the other language|Decode]: {t}", rng, e=entries, t=" ".join(text)), answer)


def look_up(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Read one cell of a small table."""
    columns = lexicon.distinct_words(rng, rng.randint(2, 3))
    rows = [lexicon.distinct(rng, len(columns)) for _ in range(rng.randint(1, 3))]
    row, column = rng.choice(rows), rng.randrange(1, len(columns))
    table = "\n".join(", ".join(cells) for cells in [columns, *rows])
    return Exchange(
        say("{t}\n[Which|What] {c} [goes with|has|belongs to] {k}?", rng, t=table, c=columns[column], k=row[0]),
        row[column],
    )
