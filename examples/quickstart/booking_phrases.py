"""How a table is booked, one bank of phrases a split. No phrase stands in two banks."""

from dataclasses import dataclass

from .entities import Split


@dataclass(frozen=True)
class BookingPhrases:
    """Sentences with the parts `<under>` ... `<hour>`, and the wordings of the parts.

    The parts: `under` and `intro` name the guest `{n}` (beside a verb, or as a clause), `size` and `count` the
    people `{p}` (as what is booked, or as who comes), `when` the day `{d}`, `hour` the time `{h}`.
    """

    sentences: tuple[str, ...]
    under: str
    intro: str
    size: str
    count: str
    when: str
    hour: str
    endings: tuple[str, ...]


_BOOK = (
    "[book|reserve|please book|please reserve|get me|I need|I want|we need|we want|I would like|we would like|"
    "can I book|could we have|"
    "can you reserve|may I reserve|we want to book|I want to book|could you book us]"
)

BANKS: dict[Split, BookingPhrases] = {
    "train": BookingPhrases(
        sentences=(
            f"{_BOOK} <size> <under> <when> <hour>",
            f"{_BOOK} <size> <when> <hour> <under>",
            f"{_BOOK} <size> <hour> <when>[.|,|;] <intro>",
            f"<intro>[.|,|;] {_BOOK} <size> <when> <hour>",
            "[hello|hi|good evening|good day], <intro>. [I need|we would like|please book] <size> <hour> <when>",
            "[do you have|is there|have you got] <size> <when> <hour>? <intro>",
            "<size> <under> <when> <hour>",
            "<size> <hour> <when>[,|;] <under>",
            "<when> <hour>, <count>, <under>",
            "<count> <when> <hour>[,|;] <intro>",
            "<intro>, <count> <hour> <when>",
            "[there are|it is|that makes] <count> <when> <hour> <under>",
        ),
        under="[under|under the name|in the name of|with the name|by the name of|booked by|name:|guest:] {n}",
        intro="[my name is|this is|the name is|our name is|I am|we are called|it is for] {n}",
        size="[a table for {p}|a table for {p} people|a place for {p}|room for {p} people|dinner for {p}|seats "
        "for {p}|a booking for {p}]",
        count="[{p} people|{p} guests|a party of {p}|{p} persons|{p} of us]",
        when="[on|this|next|for|on the coming|for this|on the next] {d}",
        hour="[at|around|from|for|at about|by|starting at] {h}",
        endings=("", ".", "!", " please.", ", thanks.", ", please", " many thanks."),
    ),
    "select": BookingPhrases(
        sentences=(
            "[save|keep] <size> <when> <hour>. <intro>",
            "<intro>. <count>, <when> <hour>",
            "[we plan|we hope] to eat <when> <hour>, <count>, <under>",
        ),
        under="[written down for|going to] {n}",
        intro="[write down|our host is] {n}",
        size="[a spot for {p} diners|chairs for {p}]",
        count="[{p} friends|{p} visitors]",
        when="[come|as of] {d}",
        hour="[say at|roughly at|near] {h}",
        endings=(".", ""),
    ),
    "eval": BookingPhrases(
        sentences=(
            "[hold|arrange|set aside|organise|we are after|I am looking for|let us have|put us down for] <size> "
            "<under> <when> <hour>",
            "[hold|arrange|set aside|organise|we are after|I am looking for|let us have|put us down for] <size> "
            "<when> <hour>, <intro>",
            "<intro>[,| and] [we will come|we arrive|we are coming|expect us] <when> <hour>, <count>",
            "[expect|seat] <count> <when> <hour>. <intro>",
            "[dining|eating out] <when> <hour>: <count>, <under>",
            "<when> <hour> [works for us|would suit us|would be great]. <size>, <intro>",
        ),
        under="[made out to|on behalf of|to be noted as|registered to] {n}",
        intro="[the guest will be|make it out to|the booking goes to|please write|note it as|the host will be|"
        "ask for] {n}",
        size="[a corner for {p}|space for {p}|supper for {p}|something for a group of {p}|enough chairs for {p}]",
        count="[{p} diners|a family of {p}|{p} adults|a group of {p}]",
        when="[during|any time on|the evening of|preferably on|best on] {d}",
        hour="[not before|exactly at|at precisely|just after|no later than] {h}",
        endings=(".", "", " if possible.", ", cheers."),
    ),
}
