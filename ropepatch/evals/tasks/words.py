"""Keys and values that stand in no text: word pairs, numbers, identifiers, made without a download."""

import string
import uuid
from collections import Counter
from collections.abc import Callable

import numpy as np

from ropepatch.errors import DataError
from ropepatch.evals.tasks.pieces import Ids, Pieces

_ADJECTIVES = """
    able agile amber ample ancient arctic balmy bitter blank bleak blunt bold brave brief bright
    brisk broad calm careful cheap civil clean clever clumsy coarse cold cosmic cozy crisp crude
    curly damp daring dark deep dense distant dizzy double dry dull dusty eager early earnest easy
    elastic empty equal exact faint famous fancy fast fierce final firm flat fluid fond formal
    fragile frank fresh frozen full gentle giant glad golden grand grave gray green happy hardy
    harsh hasty heavy hidden hollow honest humble icy idle ivory jolly keen kind lame large late
    lazy light little lively lone long loud loyal lucky lunar mellow merry mighty mild modest moist
    narrow neat nimble noble noisy odd old orange pale patient plain polite prime proud pure purple
    quick quiet rapid rare raw ready red rich rigid ripe robust rough round royal rustic sad salty
    scarce sharp shiny short shy silent silver simple sleepy slim slow small smart smooth soft solar
    solid sour spare stable steep stiff still strict strong sturdy sunny sweet swift tall tame tender
    thick thin tidy tiny tough upper urban vague vast velvet vivid warm wary weak wet wide wild wise
    witty wooden young zesty"""
_NOUNS = """
    acorn actor anchor apple apron arch arrow artist attic badge baker bamboo banjo barn barrel
    basin basket beach beacon bean beetle bell bench berry bicycle bird blanket boat bonnet boot
    bottle bowl branch bread brick bridge brook broom bucket butter button cabin cable cactus camel
    candle canoe canyon captain carpet carrot castle cave cedar cellar chain chair chalk cherry
    chest chimney circle clay cliff clock cloud clover coast coat cobra coin comet copper coral
    cotton cradle crane crater creek cricket crow crown curtain daisy deer desert desk dolphin door
    dove dragon drum duck eagle engine falcon farmer feather fence fern ferry fiddle field finch
    flame flute forest fork fountain fox frog garden garlic gate ginger glacier glove goat goose
    grape guitar hammer harbor harp hat hawk hazel hedge helmet heron hill honey horse hotel island
    jacket jungle kettle kite ladder lagoon lake lamp lantern lemon lentil library lion lizard lobster
    lynx magnet mango maple marble market meadow melon mirror moose mountain museum mushroom needle
    nest oak oasis ocean olive onion orchard otter owl oyster paddle palace panda parrot pasture
    peach pearl pebble pelican pencil pepper piano pigeon pillow pine planet plum pond poplar potato
    prairie puzzle quail rabbit radish raven reef ribbon river robin rocket saddle sailor salmon
    sandal scarf shadow shark shell shovel sparrow spider spoon spruce stable stone storm straw
    stream sugar swan table tailor temple tiger timber tomato tower train tulip tunnel turtle
    valley vase violin wagon walnut walrus water whale wheat wheel willow window winter wolf
    yarn zebra"""
ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
_SINGLE = tuple(sorted({*ADJECTIVES, *NOUNS}))
_PAIRS = len(ADJECTIVES) * len(NOUNS)
_TRIES = 12

Draw = Callable[[np.random.Generator], str]


def word_pair(rng: np.random.Generator) -> str:
    """An adjective and a noun: `amber-falcon`."""
    return _pair(int(rng.integers(_PAIRS)))


def number(digits: int) -> Draw:
    """Draws numbers of exactly so many digits."""
    return lambda rng: str(rng.integers(10 ** (digits - 1), 10**digits))


def identifier(rng: np.random.Generator) -> str:
    """A random UUID (RFC 9562, version 4)."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def letters(count: int, alphabet: str = string.ascii_uppercase) -> Draw:
    """Draws words of random letters."""
    return lambda rng: "".join(rng.choice(list(alphabet), size=count))


def distinct_words(rng: np.random.Generator, count: int) -> list[str]:
    """Different words in random order; word pairs once there are no more single ones."""
    if count > len(_SINGLE) + _PAIRS:
        raise DataError(
            f"{count} different words were asked for, and there are {len(_SINGLE) + _PAIRS}; use a "
            "shorter length"
        )
    words = [_SINGLE[index] for index in rng.permutation(len(_SINGLE))[:count]]
    return words + [_pair(index) for index in rng.permutation(_PAIRS)[: count - len(words)]]


def distinct(rng: np.random.Generator, draw: Draw, count: int) -> list[str]:
    """`count` different draws."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw(rng)] = None
    return list(found)


def equally_long(
    rng: np.random.Generator, draw: Draw, count: int, pieces: Pieces, *, like: str | None = None
) -> list[str]:
    """`count` different draws of equally many tokens behind a space, so that they can be compared.

    As many as `like` has, which is not among them, or else as most have.
    """
    pool: dict[str, int] = {}
    wanted = None if like is None else len(pieces(f" {like}"))
    for _ in range(_TRIES):
        drawn = list(dict.fromkeys(draw(rng) for _ in range(4 * count)))
        encoded: list[Ids] = pieces.many([f" {text}" for text in drawn])
        pool.update({text: len(ids) for text, ids in zip(drawn, encoded, strict=True)})
        length = Counter(pool.values()).most_common(1)[0][0] if wanted is None else wanted
        fitting = [text for text, size in pool.items() if size == length and text != like]
        if len(fitting) >= count:
            return fitting[:count]
    raise DataError(
        f"of {len(pool)} draws such as {next(iter(pool))!r}, {len(fitting)} take {length} tokens, and "
        f"{count} equally long ones are needed; use a tokenizer that splits them more evenly"
    )


def _pair(index: int) -> str:
    return f"{ADJECTIVES[index % len(ADJECTIVES)]}-{NOUNS[index // len(ADJECTIVES)]}"
