"""How a pattern is described, one bank of phrases a split. No phrase stands in two banks."""

from dataclasses import dataclass

from .entities import Split


@dataclass(frozen=True)
class RegexPhrases:
    """Pairs of a wording and its pattern: `{a}` and `{b}` are literals, `{x}` a number of characters of a class."""

    shapes: tuple[tuple[str, str], ...]
    endings: tuple[str, ...]


_THINGS = "[lines|strings|words|rows|names|sentences|items|keys]"
_SUBJECTS = {
    "many": f"[[|all |match |find |the |match all |find the |those |list ]{_THINGS} [that|which]]",
    "one": "[[a|any|each|every|match a|find any|the one] [line|string|word|row|name|sentence|item|key] [that|which]]",
    "phrase": f"[[|all |match |find |the |match any |every one of the ]{_THINGS}|[some |any |]text|something]",
}
_VERBS = {
    "starts": {
        "many": "[start with|begin with|have at the start|must start with|must begin with|open with|have first]",
        "one": "[starts with|begins with|has at the start|must start with|opens with|has first|is started by]",
        "phrase": "[starting with|beginning with|with at the start|opening with|whose first word is|whose first "
        "part is|at whose start is|whose start shows|which at "
        "first has|led by]",
    },
    "ends": {
        "many": "[end with|finish with|end in|have at the end|must end with|close with|have last]",
        "one": "[ends with|finishes with|ends in|has at the end|must end with|closes with|has last|is ended by]",
        "phrase": "[ending with|ending in|with at the end|closing with|whose last word is|whose last part is|at "
        "whose end is|whose end shows|which at last has]",
    },
    "has": {
        "many": "[contain|include|have|must contain|mention|carry|show somewhere]",
        "one": "[contains|includes|has|must contain|mentions|carries|shows somewhere]",
        "phrase": "[containing|including|with|having|mentioning|in which there is|where we see|where there is]",
    },
    "is": {
        "many": "[are exactly|are only|equal|are nothing but|consist of only]",
        "one": "[is exactly|is only|equals|is just|is nothing but|consists of only]",
        "phrase": "[equal to|being only|made of only|identical to]",
    },
}
_THEN = (
    "[then|followed by|, then|and then|and after that|directly followed by|with behind it|plus|and next|with "
    "after it|"
    ", next to it|and just behind it]"
)
_LATER = (
    "[and later|and somewhere later|, later|then anything, then|then any text and|followed later by|and further on|"
    "and afterwards|and at some place behind it|, then any text, then]"
)

_PIECE = "[||||the text |the part |the piece |the letters |somehow |surely ]"

_TRAIN_SHAPES = (
    ("<starts> {A}", "^{a}"),
    ("<ends> {A}", "{a}$"),
    ("<has> {A}", "{a}"),
    ("<is> {a}", "^{a}$"),
    ("<starts> {A} and <ends> {B}", "^{a}.*{b}$"),
    ("<ends> {B} and <starts> {A}", "^{a}.*{b}$"),
    ("<starts> {A} and <ends> {x}", "^{a}.*{x}$"),
    ("<starts> {x} and <ends> {A}", "^{x}.*{a}$"),
    (f"<has> {{A}} {_THEN} {{x}}", "{a}{x}"),
    (f"<has> {{x}} {_THEN} {{a}}", "{x}{a}"),
    (f"<starts> {{A}} {_THEN} {{x}}", "^{a}{x}"),
    (f"<ends> {{A}} {_THEN} {{x}}", "{a}{x}$"),
    (f"<has> {{A}} {_LATER} {{b}}", "{a}.*{b}"),
    ("<has> [|either |one of |at least one of ]{a} or {b}", "({a}|{b})"),
    ("<starts> [|either |one of ]{a} or {b}", "^({a}|{b})"),
    ("<ends> [|either |one of ]{a} or {b}", "({a}|{b})$"),
)


def _inflect(wording: str, number: str) -> str:
    """Put a subject before a wording and its verbs into the number of the subject."""
    for verb, forms in _VERBS.items():
        wording = wording.replace(f"<{verb}>", forms[number])
    wording = wording.replace("{A}", f"{_PIECE}{{a}}").replace("{B}", f"{_PIECE}{{b}}")
    return f"{_SUBJECTS[number]} {wording}"


_ITEM = "[anything|values|tokens|messages]"
_START = f"{_ITEM} [whose start is|beginning right with|always starting with]"
_END = f"{_ITEM} [whose end is|ending right with|always ending with]"
_HOLD = f"{_ITEM} [that do include|containing the word|with the word]"
_AND_END = "[and also end with|while ending in|but ending with]"
_NEXT = "[being followed by|which is followed by|and right after it]"
_ANY = "[any of|whichever of]"

BANKS: dict[Split, RegexPhrases] = {
    "train": RegexPhrases(
        shapes=tuple(
            (_inflect(wording, number), pattern) for wording, pattern in _TRAIN_SHAPES for number in _SUBJECTS
        ),
        endings=("", "", ".", "!", " please"),
    ),
    "select": RegexPhrases(
        shapes=(
            ("[entries|records] [whose beginning is|that first have] {a}", "^{a}"),
            ("[entries|records] [whose ending is|that finally end with] {a}", "{a}$"),
            ("[entries|records] [that do contain|that also include] {a}", "{a}"),
            (
                "[entries|records] [whose beginning is|that do start with] {a} and [whose ending is|that end with] {b}",
                "^{a}.*{b}$",
            ),
            (
                "[entries|records] [whose beginning is|that do start with] {a} and [whose ending is|that end with] {x}",
                "^{a}.*{x}$",
            ),
            (
                "[entries|records] [that do contain|that also include] {a} [, followed at once by|then "
                "immediately] {x}",
                "{a}{x}",
            ),
            (
                "[entries|records] [whose beginning is|that do start with] {a} [, followed at once by|then "
                "immediately] {x}",
                "^{a}{x}",
            ),
            ("[entries|records] [that do contain|that also include] {a} or {b}", "({a}|{b})"),
            (
                "[entries|records] [that do contain|that also include] {a} [and sometime later|and then much "
                "later] {b}",
                "{a}.*{b}",
            ),
        ),
        endings=("", "."),
    ),
    "eval": RegexPhrases(
        shapes=(
            (f"{_START} {{a}}", "^{a}"),
            (f"{_END} {{a}}", "{a}$"),
            (f"{_HOLD} {{a}}", "{a}"),
            (f"{_ITEM} [that is exactly|being exactly|that is nothing but] {{a}}", "^{a}$"),
            (f"{_START} {{a}} {_AND_END} {{b}}", "^{a}.*{b}$"),
            (f"{_START} {{a}} {_AND_END} {{x}}", "^{a}.*{x}$"),
            (f"{_START} {{x}} {_AND_END} {{a}}", "^{x}.*{a}$"),
            (f"{_HOLD} {{a}} {_NEXT} {{x}}", "{a}{x}"),
            (f"{_START} {{a}} {_NEXT} {{x}}", "^{a}{x}"),
            (f"{_HOLD} {{a}} [and at a later point|and some time later|with any text and then] {{b}}", "{a}.*{b}"),
            (f"{_ITEM} [that do include|containing] {_ANY} {{a}} or {{b}}", "({a}|{b})"),
            (f"{_START} {_ANY} {{a}} or {{b}}", "^({a}|{b})"),
        ),
        endings=("", ".", ", thanks"),
    ),
}
