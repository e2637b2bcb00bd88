"""The everyday requests of `frames.py`: slots, wordings, and the notation of each wording."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """One kind of request. `slots` gives each slot's kind; `wordings` are pairs of a wording and its notation."""

    slots: dict[str, str]
    wordings: tuple[tuple[str, str], ...]


def _frame(notation: str, slots: dict[str, str], *wordings: str) -> Frame:
    return Frame(slots, tuple((wording, notation) for wording in wordings))


_SHIP = {"item": "word", "origin": "name", "target": "name"}
_WATCH = {"thing": "word", "level": "amount"}
_SHELF = {"kind": "word", "tag": "word", "mark": "word"}
_BEADS = {"front": "word", "back": "word", "times": "count"}

FRAMES: tuple[Frame, ...] = (
    _frame(
        "ship {item}: {origin} -> {target}",
        _SHIP,
        "[send|ship|post|mail] [the|my|a] {item} from {origin} to {target}[ please|]",
        "[to|for] {target}, [send|ship] [a|one] {item} [out of|from] {origin}",
        "[can you|could you|I want to] [send|mail] {target} [the|a] {item} [from|out of] {origin}",
        "from {origin} to {target} [goes|travels] [the|one] {item}",
    ),
    Frame(
        _WATCH,
        (
            (
                "[warn|alert|tell] me [when|if|once|as soon as] [the|my] {thing} [is|gets|goes|climbs] [over|above|"
                "higher than|more than|greater than] {level}",
                "ALERT({thing} > {level})",
            ),
            (
                "[warn|alert|tell] me [when|if|once|as soon as] [the|my] {thing} [is|gets|goes|falls] [under|below|"
                "lower than|less than|smaller than] {level}",
                "ALERT({thing} < {level})",
            ),
            (
                "[if|when|once] [the|my] {thing} [passes|exceeds|is over|tops] {level}[, ring|, call me|, warn me]",
                "ALERT({thing} > {level})",
            ),
            (
                "[if|when|once] [the|my] {thing} [sinks below|drops under|is under] {level}[, ring|, call me|, "
                "warn me]",
                "ALERT({thing} < {level})",
            ),
            ("[ring|beep|call] [when|if] {thing} [equals|is exactly|hits] {level}", "ALERT({thing} == {level})"),
        ),
    ),
    _frame(
        "note[{day}] {who}: {thing}",
        {"day": "day", "who": "name", "thing": "word"},
        "remind {who} [about|of] the {thing} on {day}",
        "on {day} {who} [must|should|has to] [see|get|bring] the {thing}",
        "[the|a] {thing} [is due|is needed] on {day} [from|by] {who}",
        "{who} [wants|needs] [the|a] {thing} [on|by|before] {day}",
    ),
    _frame(
        "call {who} @ {hour}",
        {"who": "name", "hour": "hour"},
        "[call|phone|ring] {who} at {hour}",
        "at {hour}[ sharp|], [call|phone|ring up] {who}",
        "[I need to|please|let me] [talk|speak] to {who} at {hour}",
        "{who} [expects|awaits] a [call|ring] at {hour}",
    ),
    _frame(
        "{count} x {item} => {who}",
        {"count": "count", "item": "word", "who": "name"},
        "[give|hand|bring] {who} {count} {item}",
        "{who} [gets|takes|receives|wants] {count} {item}",
        "{count} {item} [for|go to] {who}",
        "[I would like|order] {count} {item} for {who}",
    ),
    _frame(
        "<play what='{song}' by='{who}'/>",
        {"song": "word", "who": "name"},
        "[play|start|put on] {song} by {who}",
        "[I want to hear|let me hear] {who} [sing|with] {song}",
        "[something|a piece] [called|named] {song} by {who}",
    ),
    _frame(
        '{"light": "{room}", "level": {level}}',
        {"room": "word", "level": "amount"},
        "[set|turn|dim] the {room} [light|lamp] to {level}",
        "[light|lamp] in the {room} [to|at] {level}",
        "[make|have] the {room} [light|lamp] {level}",
    ),
    _frame(
        "pay {amount} to {who} for {thing}",
        {"amount": "amount", "who": "name", "thing": "word"},
        "[transfer|wire|pay] {amount} to {who} for [the|a] {thing}",
        "{who} [must get|is owed] {amount} for [the|a] {thing}",
        "for [the|a] {thing} [give|pay] {who} {amount}",
        "[the|a] {thing} [cost|was] {amount}[, pay|, give it to] {who}",
    ),
    Frame(
        _SHELF,
        (
            (
                "[fetch|pick|take|bring] [the|every|each] {kind} [marked|tagged|labelled] {tag}[ only|]",
                "pick {kind}[{tag}]",
            ),
            (
                "[fetch|pick|take|bring] [the|every|each] {kind} [marked|tagged|labelled] {tag} and [marked |tagged |"
                "]{mark}",
                "pick {kind}[{tag}&{mark}]",
            ),
            (
                "[fetch|pick|take|bring] [the|every|each] {kind} [marked|tagged|labelled] {tag} or [marked |tagged |"
                "]{mark}",
                "pick {kind}[{tag}/{mark}]",
            ),
            (
                "{kind} [with the tag|with the mark|with the label] {tag} [go here|are wanted|please]",
                "pick {kind}[{tag}]",
            ),
            ("[everything|all] in {kind} [but|except] [what is |]{tag}", "pick {kind}[!{tag}]"),
        ),
    ),
    Frame(
        _BEADS,
        (
            ("[thread|string|hang] {front} [first|at the front] and {back} [last|at the back]", "{front}~{back}"),
            ("[thread|string|hang] {times} {front}, [then|next] {back}", "{front}*{times} {back}"),
            ("[thread|string|hang] {front} [followed by|and after it|then] {back}", "{front} {back}"),
            ("[thread|string|hang] {front} [followed by|then|and after it] {times} {back}", "{front} {back}*{times}"),
            ("[thread|string|hang] [either|one of] {front} or {back}", "{front}/{back}"),
            ("[hang|string] [just|only] {front}", "{front}."),
        ),
    ),
    _frame(
        "move({piece}, {place})",
        {"piece": "word", "place": "word"},
        "[move|push|slide|shift] the {piece} [to|onto|into] the {place}",
        "[the|a] {piece} [goes|belongs] [on|in|to] the {place}",
        "[on|in] the {place}[, put|, place] the {piece}",
    ),
    _frame(
        "{who}/{month}/{year}",
        {"who": "name", "month": "month", "year": "amount"},
        "{who} was born in {month} {year}",
        "[in|during] {month} {year} {who} [came|arrived|was born]",
        "{year}, {month}: {who} [is born|arrives]",
    ),
    _frame(
        "{buyer} <- {seller} ({thing}, {amount})",
        {"buyer": "name", "seller": "name", "thing": "word", "amount": "amount"},
        "{seller} sold {buyer} [the|a] {thing} for {amount}",
        "{buyer} [bought|got] [the|a] {thing} from {seller} for {amount}",
        "for {amount} {buyer} [bought|got] [the|a] {thing} [from|of] {seller}",
        "[the|a] {thing} went from {seller} to {buyer} [at|for] {amount}",
    ),
    _frame(
        "trip: {target}; {day}; {count} seats",
        {"target": "name", "day": "day", "count": "count"},
        "[we|all {count} of us] [travel|go|ride] to {target} on {day}, {count} of us",
        "[on|next|this] {day} {count} [people|of us] [go|ride] to {target}",
        "{count} [seats|tickets] to {target} [for|on] {day}",
        "[to|towards] {target} [on|next] {day}, {count} [people|seats]",
    ),
    _frame(
        "mix {first}+{second} for {count} min",
        {"first": "word", "second": "word", "count": "count"},
        "[mix|stir|blend] {first} [with|and] {second} for {count} minutes",
        "[for|during] {count} minutes [mix|stir] {first} [into|with] {second}",
        "[take|get] {first}, [add|put in] {second}, [wait|stir] {count} minutes",
    ),
    _frame(
        "score {home} {count}:{guest}",
        {"home": "name", "guest": "name", "count": "count"},
        "{home} [beat|won against] {guest} by {count}",
        "{guest} lost to {home} by {count}",
        "by {count} {home} [beat|defeated] {guest}",
    ),
    _frame(
        "SAY '{word}' TO {who} IN {place}",
        {"word": "word", "who": "name", "place": "name"},
        "[say|whisper|shout] {word} to {who} in {place}",
        "in {place}[,|] [tell|say to] {who} {word}",
        "{who} in {place} [should|must] hear {word}",
    ),
    _frame(
        "grow {plant} ({month}) @ {spot}",
        {"plant": "word", "month": "month", "spot": "word"},
        "[plant|sow|grow] {plant} in {month} [by|near|behind] the {spot}",
        "in {month} {plant} [goes|is planted] [by|near] the {spot}",
        "[near|by] the {spot}, [sow|plant] {plant} in {month}",
    ),
    _frame(
        "[{from_hour}-{to_hour}] {what}",
        {"from_hour": "hour", "to_hour": "hour", "what": "word"},
        "{what} [runs|lasts|is open] from {from_hour} to {to_hour}",
        "from {from_hour} [until|till|to] {to_hour} [there is|we have] {what}",
        "[between|starting] {from_hour} and {to_hour}: {what}",
    ),
    _frame(
        "paint({thing}).with({hue}, {coats})",
        {"thing": "word", "hue": "word", "coats": "count"},
        "[paint|coat] the {thing} [with|in] {hue} {coats} times",
        "{coats} coats of {hue} [on|for] the {thing}",
        "[the|a] {thing} [needs|gets] {coats} coats of {hue}",
    ),
)
