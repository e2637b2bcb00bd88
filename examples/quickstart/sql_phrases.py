"""How questions to a table are worded, one bank of phrases a split. No phrase stands in two banks."""

from dataclasses import dataclass

from .entities import Split


@dataclass(frozen=True)
class SqlPhrases:
    """Wordings with the slots `{t}` table, `{c}` selected column, `{k}` compared column, `{v}` text, `{n}` number.

    `{f}` and `{o}` are filled from `FUNCTIONS` and `SIGNS`: meaning words, which are shared between splits.
    """

    column: str
    count: str
    aggregate: str
    equal: str
    compare: str
    endings: tuple[str, ...]


FUNCTIONS = {
    "AVG": ("average", "mean"),
    "MAX": ("highest", "largest", "maximum"),
}
SIGNS = {
    ">": ("more than", "greater than", "above", "over", "higher than"),
    "<": ("less than", "smaller than", "below", "under", "lower than"),
}

_ASK = (
    "[show|give|find|get|return|report|print|tell|list|fetch|display|bring|deliver|present|collect|pick][| me| us]|"
    "please [name|list|find|show|identify|gather]|I [need|want|would like|wish to see]|we [need|want|require|"
    "ask for]|"
    "[can|could|will|would] you [show|find|list|get|pick][| me]|what [is|are|was]|which is|say|write|read out|"
    "work out|"
    "name|point out|choose|it is about|my question is about|the question is"
)
_WHICH = (
    "[the|each|every|nothing but the|just the|all the|any|the exact|the full|the current|the known|the "
    "precise|the actual|the stated]"
)
_IF = (
    "where [|the |its |their ]{k}|when [|the |its ]{k}|if [|the |its ]{k}|for which [the ]{k}|only if [the |]{k}|"
    "only where [the |]{k}|in case [the ]{k}|whose {k}|while the {k}|everywhere the {k}|once the {k}|so that the {k}|"
    "in the event that the {k}|in cases where the {k}|as soon as the {k}|as far as the {k}|"
    "at times when the {k}|to the extent that the {k}|on days where the {k}|under which the {k}"
)
_IS_SAID = (
    "[[is|was|has been|got] [noted|described|entered|known|put down|filed|marked|shown|counted|seen|labelled|"
    "classed] as|"
    "[is|was] [said|found|thought|meant|bound|sure|seen] to be|[is|was] [fixed|put|close|due|tied|turned] [to|at|"
    "on|by]|"
    "turns out to be|[is|was] [just|only|simply|clearly|truly|always]]"
)
_IF_NOUN = "with [|a |the ]{k}|having [|a |the ]{k}|subject to [a |the |]{k}|by {k}"

BANKS: dict[Split, SqlPhrases] = {
    "train": SqlPhrases(
        column=f"[{_ASK}] {_WHICH} {{c}}",
        count=(
            "[how many {t}[| there are| are there| do we have| are listed| exist| are known]|count [|the |all |"
            "all the |those ]{t}|"
            "[give me|show|tell me|get|print|I want|report|please name] the [number|count] of [|all |the ]{t}|"
            "[show|get|return|I want|please give] [a|the] count of [|the |all ]{t}|the number of {t}|"
            "[say|tell us|find out|I need to know|work out|tell me] how many {t}[| there are| exist| are listed]]"
        ),
        aggregate=f"[{_ASK}|how much is] [the|a|our|each|just the|any] {{f}} {{c}}",
        equal=(
            f"[[{_IF}] [[is|equals|=|was|has been|has the value|says|shows|holds|stands at|bears|carries]|"
            f"{_IS_SAID}]|[{_IF_NOUN}] [of|=|being|called|named|saying|marked|marked as]] {{v}}"
        ),
        compare=(
            f"[[{_IF}] [is|was|goes|stays|has been|is something|comes to|stands|amounts to|ends up|turns out|"
            f"turns out to be|came in]|"
            f"[{_IF_NOUN}] [of|being|that is|going|staying]] {{o}} {{n}}"
        ),
        endings=(".", ".", "?", "", "!", " please.", ", please.", " now."),
    ),
    "select": SqlPhrases(
        column="[search for|select|give back|hand me|dig out|send] the {c}",
        count="[[check|see|determine] how many {t} [turn up|show up|can be found]|[send|hand] me the number of {t}]",
        aggregate="[select|hand me|send|estimate|derive] the {f} {c}",
        equal="[in which|but only when|assuming|supposing] the {k} [is given as|happens to be|comes out as] {v}",
        compare="[in which|but only when|assuming|supposing] the {k} [happens to be|comes out|lies] {o} {n}",
        endings=(".", "?"),
    ),
    "eval": SqlPhrases(
        column="[[look|pull] up|retrieve|extract|output|provide|let me [see|have|know]|I am [looking for|after|"
        "interested in]|may I have|help me find]"
        " the {c}",
        count="[[compute|calculate|retrieve|output|provide|let me know] [the number of|the count of|how many] "
        "{t} [we hold|on file|appear]|[I wonder|I am curious] how many {t} [appear|we hold]]",
        aggregate="[compute|calculate|retrieve|output|provide|let me [see|have|know]|I am [looking for|after]|"
        "help me find] the {f} {c}",
        equal="[provided|provided that|such that|as long as|on condition that|given that|limited to where] the "
        "{k} [matches|reads|is set to|is exactly|is recorded as|is listed as|is equal to] {v}",
        compare="[provided|provided that|such that|as long as|on condition that|given that|limited to where] "
        "the {k} [remains|measures|reads|is recorded as|is set to|is anything] {o} {n}",
        endings=(".", "?", ", thanks."),
    ),
}
