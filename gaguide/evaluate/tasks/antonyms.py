"""Pairs of opposite adjectives: a shipped list with nouns that they fit, or those of WordNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gaguide.errors import UserError

_GENERAL_NOUNS = ("case", "example", "item", "part", "sample", "thing")
_SHORTEST, _LONGEST = 3, 12
"""Letters of a word from WordNet."""
_LESS_FREQUENT = 8
"""Least number of occurrences of each word of a pair in WordNet's tagged texts."""


@dataclass(frozen=True)
class Antonyms:
    """Two adjectives of opposite meaning: a thing that is not one is the other."""

    first: str
    """One adjective."""
    second: str
    """Its opposite."""
    nouns: tuple[str, ...]
    """Things that both adjectives can describe."""


# first, second, nouns
_SEEDS = """
open closed door gate shop window valve
full empty bottle box glass room tank
wet dry floor road shirt towel wall
hot cold drink meal oven plate soup
clean dirty car cup shirt sink table
new old bridge chair coat house phone
loud quiet engine room song street voice
hard soft bed cheese chair pillow seat
light dark corner hall picture room sky
heavy light bag box chair parcel stone
long short letter meeting road rope speech
high low bench fence price shelf wall
fast slow boat car horse runner train
rich poor country family farmer king town
young old actor driver king nurse teacher
true false answer claim report rumour story
safe dangerous bridge game path plan road
cheap expensive coat hotel meal phone ticket
easy difficult exam game question step task
early late bus letter meal reply train
thick thin blanket book coat rope wall
wide narrow door path river road street
deep shallow bowl lake pond pool river
smooth rough board cloth road stone wall
sharp blunt axe blade knife pencil sword
strong weak argument coffee rope signal team
tight loose belt knot lid rope screw
public private beach garden letter meeting road
alive dead bird fish insect plant tree
awake asleep baby cat dog guard patient
single married actor driver farmer nurse teacher
present absent doctor king owner student teacher
tall short boy fence girl tower tree
sweet sour apple cherry drink grape sauce
raw cooked carrot egg fish meal potato
""".strip()


def seed_antonyms() -> list[Antonyms]:
    """The shipped pairs."""
    rows = [line.split() for line in _SEEDS.splitlines()]
    return [Antonyms(first, second, tuple(nouns)) for first, second, *nouns in rows]


def wordnet_antonyms(folder: Path) -> list[Antonyms]:
    """Antonyms among the adjectives of WordNet, in alphabetical order, frequent words only.

    folder: has WordNet's data.adj and cntlist.rev, as Debian's package wordnet-base puts into
    /usr/share/wordnet. Pairs in which one word contains the other (happy, unhappy) are left out: their
    prefix is a negation. Raises `UserError` where the files are missing or hold no pair.
    """
    data, counts = folder / "data.adj", folder / "cntlist.rev"
    for path in (data, counts):
        if not path.is_file():
            remedy = "give a folder with WordNet's data.adj and cntlist.rev (Debian: wordnet-base)"
            raise UserError.of("--wordnet", f"does not contain {path.name}", remedy, str(folder))
    frequent = _frequent_adjectives(counts)
    pairs = {
        tuple(sorted(pair)) for pair in _antonyms(data) if all(_is_usable(one, frequent) for one in pair)
    }
    found = [
        Antonyms(first, second, _GENERAL_NOUNS)
        for first, second in sorted(pairs)
        if first not in second and second not in first
    ]
    if not found:
        raise UserError.of("--wordnet", "holds no pair of adjectives", "give WordNet 3.0", str(folder))
    return found


def _is_usable(word: str, frequent: Sequence[str] | set[str]) -> bool:
    return word.isascii() and word.isalpha() and word.islower() and (
        _SHORTEST <= len(word) <= _LONGEST and word in frequent
    )  # fmt: skip


def _frequent_adjectives(path: Path) -> set[str]:
    """Adjectives by their count over senses; a line is `word%class:… sense count`, class 3 or 5."""
    counts: dict[str, int] = {}
    for line in path.read_text("utf-8").splitlines():
        key, _, count = line.split()
        word, _, sense = key.partition("%")
        if sense[:1] in ("3", "5"):
            counts[word] = counts.get(word, 0) + int(count)
    return {word for word, count in counts.items() if count >= _LESS_FREQUENT}


def _antonyms(path: Path) -> Iterator[tuple[str, str]]:
    """(word, antonym) of every pointer `!`, by the layout of wndb(5WN)."""
    words: dict[str, list[str]] = {}
    pointers: list[tuple[str, str, int]] = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.partition(" | ")[0].split()
        offset, count = fields[0], int(fields[3], 16)
        words[offset] = [word.partition("(")[0] for word in fields[4 : 4 + 2 * count : 2]]
        at = 4 + 2 * count
        for nth in range(int(fields[at])):
            symbol, target, pos, numbers = fields[at + 1 + 4 * nth : at + 5 + 4 * nth]
            if symbol == "!" and pos == "a" and numbers != "0000":
                pointers.append((words[offset][int(numbers[:2], 16) - 1], target, int(numbers[2:], 16)))
    for word, target, number in pointers:
        yield word, words[target][number - 1]
