"""The `sql` task: a table with its columns and a question -> one SQL query.

    boats(speed, owner, color): Show the owner where the color is red.
    -> SELECT owner FROM boats WHERE color = 'red'

Entities: table, columns and text values. Numbers in conditions and SQL keywords are not entities.
"""

import random
from dataclasses import dataclass

from .entities import COLUMNS, TABLES, VALUES, Split, divide
from .rows import Row, begin_sentence, disturb_wording
from .sql_phrases import BANKS, FUNCTIONS, SIGNS, SqlPhrases
from .wording import choose_wording, fill_slots

_MEANING = frozenset(
    word for group in (*FUNCTIONS.values(), *SIGNS.values()) for phrase in group for word in phrase.split()
)
_MEANING |= {"how", "many", "number", "count"}


@dataclass(frozen=True)
class Clause:
    """A piece of wording and the SQL it stands for, slots unfilled."""

    wording: str
    sql: str


def _draw_head(phrases: SqlPhrases, rng: random.Random) -> Clause:
    kind = rng.choices(("column", "count", "aggregate"), (5, 2, 2))[0]
    if kind == "column":
        return Clause(choose_wording(phrases.column, rng), "SELECT {c} FROM {t}")
    if kind == "count":
        return Clause(choose_wording(phrases.count, rng), "SELECT COUNT(*) FROM {t}")
    function = rng.choice(("AVG", "MAX"))
    wording = choose_wording(phrases.aggregate, rng).replace("{f}", rng.choice(FUNCTIONS[function]))
    return Clause(wording, "SELECT {f}({c}) FROM {t}".replace("{f}", function))


def _draw_condition(phrases: SqlPhrases, rng: random.Random) -> Clause:
    sign = rng.choice(("=", "=", "=", ">", "<"))
    if sign == "=":
        return Clause(choose_wording(phrases.equal, rng), " WHERE {k} = '{v}'")
    wording = choose_wording(phrases.compare, rng).replace("{o}", rng.choice(SIGNS[sign]))
    return Clause(wording, f" WHERE {{k}} {sign} {{n}}")


def draw_sql(split: Split, rng: random.Random) -> Row:
    """One row of a split."""
    phrases = BANKS[split]
    head = _draw_head(phrases, rng)
    condition = _draw_condition(phrases, rng) if rng.random() < 0.85 or "COUNT" in head.sql else Clause("", "")
    if split == "train" and rng.random() < 0.7:
        head = Clause(disturb_wording(head.wording, rng, _MEANING), head.sql)
    if split == "train" and rng.random() < 0.5:
        condition = Clause(disturb_wording(condition.wording, rng, _MEANING), condition.sql)
    columns = rng.sample(divide(COLUMNS, split), rng.randint(2, 3))
    selected, compared = rng.sample(columns, 2)
    slots = {
        "t": rng.choice(divide(TABLES, split)),
        "c": selected,
        "k": compared,
        "v": rng.choice(divide(VALUES, split)),
        "n": str(rng.randint(1, 999)),
    }
    quote = rng.choice(("", "'", "'", '"'))
    if condition.wording and rng.random() < 0.25:
        template = f"{begin_sentence(condition.wording)}, {head.wording}"
    else:
        template = begin_sentence(f"{head.wording} {condition.wording}".strip())
    template += rng.choice(phrases.endings)
    used = {slots[name] for name in slots if name != "n" and "{" + name + "}" in head.sql + condition.sql}
    prompt = f"{slots['t']}({', '.join(columns)}): {fill_slots(template, slots | {'v': quote + slots['v'] + quote})}"
    return Row(prompt, fill_slots(head.sql + condition.sql, slots), template, frozenset(used | set(columns)))
