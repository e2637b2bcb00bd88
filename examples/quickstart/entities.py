"""The entities of the three tasks and of the guardrail, written down once, and how they are divided between splits.

An *entity* is an open-class word that an answer has to copy: a table, column or value (`sql`), the name of a guest
(`booking`), the literal text of a pattern (`regex`), a content word of a guardrail item. Closed sets are not
entities: week days, hours of the day, numbers, SQL keywords and the names of character classes are the vocabulary
of the task itself. Every list is divided at fixed places: no entity of one split occurs in another, and no entity
at all occurs in a slot of the base's pretraining tasks.
"""

import random
from functools import cache
from typing import Literal, get_args

Split = Literal["train", "select", "eval"]
SPLITS: tuple[Split, ...] = get_args(Split)


def _words(text: str) -> list[str]:
    return text.split()


TABLES = _words("""
albums boats bridges cafes clinics dramas factories farms ferries festivals flights gardens hotels islands journals
kitchens lakes ledgers markets meadows mines museums orchards orders parcels parks patients pianos planets players
poems ports projects quarries recipes rivers robots rockets schools shelters ships shops songs stables stadiums
statues stores teams temples theaters tickets towers toys trains trees trucks tunnels vehicles vendors villages wagons
workers zoos airports bakeries
""")

COLUMNS = _words("""
price color owner size weight city country artist year height width depth speed score rating brand model status grade
level region genre title author editor salary budget revenue profit cost fee tax rent capacity seats floors rooms
doors engine fuel mileage captain crew sponsor coach league position goals assists points medals rank club nation
language currency population area latitude longitude climate season material shape pattern texture flavor aroma
calories protein sugar salt vitamin dosage symptom ward nurse surgeon insurer invoice discount supplier warehouse
shelf barcode stock batch expiry carrier origin destination gate terminal pilot airline departure arrival platform
station driver route distance duration frequency volume pressure voltage battery sensor signal channel network router
server domain browser theme font album label producer composer singer drummer venue audience
""")

VALUES = _words("""
red blue green amber violet scarlet ivory silver bronze copper cotton linen velvet leather marble granite maple cedar
walnut bamboo wheat barley rice corn peach cherry lemon mango apple banana tomato carrot pepper garlic ginger vanilla
cinnamon coffee tea cocoa butter cheese salmon tuna lobster chicken turkey rabbit tiger panther falcon eagle raven
sparrow dolphin paris london madrid berlin vienna prague lisbon dublin oslo cairo lima tokyo delhi boston denver
dallas austin seattle jazz opera rock folk blues disco gospel techno spring summer autumn winter french german italian
spanish polish danish swedish turkish greek arabic senior junior expert novice active closed pending shipped broken
rented urgent weekly monthly annual hourly small medium large giant narrow shallow liquid solid metal plastic ceramic
glass wooden paper rubber
""")

NAMES = _words("""
Marlow Abbott Archer Atkins Baldwin Barker Barlow Baxter Beckett Bennett Benson Bishop Blake Bolton Bowen Bradford
Brennan Briggs Brooks Burgess Burke Burton Calder Callahan Carver Chandler Clayton Coleman Conrad Cooper Corbett
Crawford Dalton Dawson Decker Delgado Dixon Donovan Drake Draper Dudley Duncan Eaton Elliott Emerson Erickson Farrell
Fischer Fletcher Flynn Forbes Foster Fowler Franklin Frost Gallagher Garcia Gardner Garrison Gibson Gilbert Goodwin
Graham Granger Griffin Hadley Hale Hammond Harding Harlow Harper Hawkins Hayes Henson Hobbs Holden Hopkins Howell
Hughes Hunter Ingram Irving Jansen Jarvis Jenkins Jennings Kaplan Keller Kendall Kessler Kirby Knight Lambert Larson
Lawson Leonard Lindsay Lopez Lowell Lucas Maddox Malone Manning Marsh Mason Mercer Merritt Meyer Miller Monroe Morgan
Morris Murphy Nash Nelson Newton Nolan Norris Norton Ortega Osborn Owens Palmer Parker Patel Payne Perkins Perry
Phelps Porter Potter Powell Preston Quinn Ramirez Ramsey Randall Reed Reyes Rhodes Rivera Robbins Rogers Romero
Rowland Russell Sanders Sawyer Schmidt Schultz Sharp Shepard Simmons Skinner Slater Spencer Stanton Steele Stokes
Sutton Sweeney Tanner Thornton Tucker Turner Tyler Underwood Vargas Vaughn Wade Walker Wallace Walsh Warner Watson
Weaver Webster Wheeler Whitaker Wilcox Winslow Wyatt Yates Young Zimmerman
""")

LITERALS = _words("""
foo bar baz error warning debug info trace fatal login logout admin root guest user token cookie session cache proxy
socket packet header footer body query index table view schema commit branch merge patch diff clone fetch push pull
build deploy release version update upgrade install remove delete insert create append prepend replace split join
filter mapper reduce shuffle sort search match group total count average median sample random seed alpha beta gamma
delta sigma omega lambda kernel thread process memory disk buffer stream reader writer parser lexer syntax macro
module package import export public private static final class object method function return break continue switch
default timeout retry failed passed skipped queued running stopped paused resumed started finished opened locked
hidden visible enabled disabled
""")

GUARDRAIL_WORDS = _words("""
anchor basket candle dagger ember feather goblet harness icicle jungle kettle lantern mirror needle oyster pebble
quiver ribbon saddle thimble urchin vessel whistle yarn zipper acorn beacon cradle dolly easel flint glove hammer
inkwell jacket knapsack ladder mitten nectar otter parrot quilt rooster sickle trumpet umbrella violin wagon yacht
badger compass donkey engineer fiddle grocer hermit
""")

GUARDRAIL_NAMES = _words("""
Agnes Bertram Clarice Desmond Edith Felix Greta Horace Imogen Jasper Katrin Lionel Mabel Ned Odette Percy Quincy
Rosalind Stella Tobias Ursula Viktor Wilma Xavier Yvonne Zelda
""")

# Reserved like the others, but no entities: the fixed wording of a pretraining task says them, so the base met them
# (`discount` only because it has `count` in it).
SPOKEN_IN_PRETRAINING = frozenset(
    _words("""append continue cost count discount fetch final guest join label language large level match model origin
push remove
replace score seats shape sharp small sort thread tickets total year young""")
)

_SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.66), "select": (0.66, 0.78), "eval": (0.78, 1.0)}


def divide(entities: list[str], split: Split) -> list[str]:
    """The part of a list that belongs to a split. The order is shuffled with a fixed seed, the places of the cuts
    are fixed.
    """
    unique = sorted(entity for entity in set(entities) if entity.lower() not in SPOKEN_IN_PRETRAINING)
    random.Random(0).shuffle(unique)
    start, end = _SHARES[split]
    return unique[int(start * len(unique)) : int(end * len(unique))]


@cache
def reserved_words() -> frozenset[str]:
    """Every entity in lower case: the words that pretraining tasks never put into a slot."""
    lists = (TABLES, COLUMNS, VALUES, NAMES, LITERALS, GUARDRAIL_WORDS, GUARDRAIL_NAMES)
    return frozenset(word.lower() for words in lists for word in words)
