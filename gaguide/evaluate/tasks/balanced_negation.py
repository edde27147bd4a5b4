"""Questions about negation in which no shortcut scores above chance, by construction.

    Every door here is either open or closed. This door is not even open. So this door is      closed / open

Four phrases of two words and eight letters each precede the adjective:

                    the answer is the opposite      the answer is the adjective
    with "not"      negated:  not even              pseudo:   not only
    without         implied:  far from              affirmed: for sure

A block is one noun, one pair of adjectives and one frame in all 16 combinations of phrase, adjective and
order of mention. In each block every word is right equally often, and so is every position, every length of
prompt or answer, the adjective that was named first or last, the repeated one, and either answer to "does
the prompt contain not?". A group is the four phrases with everything else equal: to get a group right, a
model must tell all four apart. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gaguide.evaluate.tasks.antonyms import Antonyms

BLOCK = 16
"""Rows of a block; only whole blocks are balanced."""


@dataclass(frozen=True)
class _Condition:
    name: str
    phrases: tuple[str, ...]
    has_cue: bool
    reverses: bool


_CONDITIONS = (
    _Condition("negated", ("not even", "not ever"), has_cue=True, reverses=True),
    _Condition("pseudo", ("not only", "not just"), has_cue=True, reverses=False),
    _Condition("implied", ("far from",), has_cue=False, reverses=True),
    _Condition("affirmed", ("for sure", "just now"), has_cue=False, reverses=False),
)
_FRAMES = (
    "Every {noun} here is either {one} or {other}. This {noun} is {phrase} {stated}. So this {noun} is",
    "Is the {noun} {one} or {other}? The {noun} is {phrase} {stated}. In one word, the {noun} is",
    "We sort each {noun} as {one} or {other}. Our {noun} is {phrase} {stated}. We sort it as",
)
_TAKEN = {word for one in _CONDITIONS for phrase in one.phrases for word in phrase.split()} | set(
    " ".join(_FRAMES).lower().replace(".", "").replace("?", "").replace(",", "").split()
)


def balanced_rows(antonyms: Sequence[Antonyms], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows in blocks of `BLOCK`, each block with another noun, pair or frame, until all were used."""
    usable = [one for one in antonyms if not {one.first, one.second} & _TAKEN]
    blocks = [(pair, noun, frame) for pair in usable for noun in pair.nouns for frame in _FRAMES]
    rng.shuffle(blocks)
    for at, (pair, noun, frame) in enumerate(blocks):
        rows = list(_block(pair, noun, frame, at, rng))
        rng.shuffle(rows)
        yield from rows


def _block(pair: Antonyms, noun: str, frame: str, at: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    words = (pair.first, pair.second)
    phrases = [rng.choice(one.phrases) for one in _CONDITIONS]
    for (nth, condition), stated, mentioned in product(enumerate(_CONDITIONS), (0, 1), (0, 1)):
        right = 1 - stated if condition.reverses else stated
        # The parity makes the position independent of the condition, the word and the order of mention.
        position = (condition.has_cue + condition.reverses + stated + mentioned + at) % 2
        classes = [f" {words[1 - right]}"] * 2
        classes[position] = f" {words[right]}"
        yield {
            "prompt": frame.format(
                noun=noun, one=words[mentioned], other=words[1 - mentioned],
                phrase=phrases[nth], stated=words[stated],
            ),
            "classes": classes,
            "answer_index": position,
            "part": condition.name,
            "group": f"{at}-{words[stated]}-{mentioned}",
        }  # fmt: skip
