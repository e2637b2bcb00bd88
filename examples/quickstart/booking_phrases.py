"""How a table is booked, one bank of phrases a split. No phrase stands in two banks."""

from dataclasses import dataclass

from .entities import Split


@dataclass(frozen=True)
class BookingPhrases:
    """Sentences with the parts `<who>`, `<size>`, `<when>`, `<hour>`, and the wordings of the parts with the slots
    `{n}`, `{p}`, `{d}`, `{h}`.
    """

    sentences: tuple[str, ...]
    who: str
    size: str
    when: str
    hour: str
    endings: tuple[str, ...]


BANKS: dict[Split, BookingPhrases] = {
    "train": BookingPhrases(
        sentences=(
            "[book|reserve|I need|I want|we need|I would like|can I book|could we have|please book|get me|we "
            "want to book|may I reserve] <size> <who> <when> <hour>",
            "[book|reserve|please book|I want to book|can you reserve] <size> <when> <hour> <who>",
            "<when> <hour>, <size>, <who>",
            "<who>, <size> <when> <hour>",
            "<size> <hour> <when>[, |; | - | ]<who>",
            "<who>[,|:] <when> <hour>, <size>",
            "<hour> <when>[, | ]<size>[, | ]<who>",
            "[do you have|is there] <size> <when> <hour>? <who>",
            "[hello|hi|good evening|good day], <who>. [I need|we would like|please book] <size> <hour> <when>",
        ),
        who="[under|under the name|in the name of|name is|name:|my name is|this is|the name is|with the name|"
        "booked by|our name is|the name:] {n}",
        size="[a table for {p}|table for {p}|a table for {p} people|{p} people|{p} guests|a party of {p}|{p} "
        "persons|dinner for {p}|room for {p} people|a place for {p}|a booking for {p}|{p} seats|{p} of us]",
        when="[on|this|next|for|coming|the coming|on the next|for this] {d}",
        hour="[at|around|from|for|at about|by|starting at|for about] {h}",
        endings=("", ".", "!", " please.", ", thanks.", ", please", " many thanks."),
    ),
    "select": BookingPhrases(
        sentences=(
            "[save|keep] <size> [,|and] <when> <hour>. <who>",
            "<who>. <size>. <when> <hour>",
            "[we plan|we hope] to eat <when> <hour>. <size>, <who>",
        ),
        who="[write down|it goes to|our host is] {n}",
        size="[a spot for {p} diners|chairs for {p}|{p} friends]",
        when="[that is|meaning|come] {d},",
        hour="[say|roughly|near] {h}",
        endings=(".", ""),
    ),
    "eval": BookingPhrases(
        sentences=(
            "[hold|arrange|set aside|organise|we are after|I am looking for|let us have|put us down for] <size> "
            "<when> <hour>, <who>",
            "<who>[,| and] [we will come|we arrive|we are coming|expect us] <when> <hour>[, | with ]<size>",
            "[expect|seat] <size> <when> <hour>. <who>",
            "[dining|eating out] <when> <hour>: <size>. <who>",
            "<when> <hour> [works for us|would suit us|would be great]. <size>, <who>",
        ),
        who="[the guest is|make it out to|the booking goes to|please write|note it as|the host will be|ask for] {n}",
        size="[{p} diners|a group of {p}|a corner for {p}|a family of {p}|space for {p}|{p} adults|{p} chairs|"
        "supper for {p}]",
        when="[during|upcoming|any time on|the evening of|our day is|preferably] {d}",
        hour="[not before|at exactly|at precisely|just after|the hour being|that means] {h}",
        endings=(".", "", " if possible.", ", cheers."),
    ),
}
