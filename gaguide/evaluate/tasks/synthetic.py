"""Small generated sets in the style of the prize's tasks, so that a demo and tests need no download.

They are made from short sentences about Python, each from a seed alone. They show that the evaluator
works and whether a small model moves; they measure no ability that anyone has published numbers for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]
_MOST_REPEATS = 10_000
"""Rows in a row that were there before: a generator has no more."""

# (subject, property that holds, property that does not)
_FACTS = [
    ("A list", "mutable", "immutable"),
    ("A tuple", "immutable", "mutable"),
    ("A string", "immutable", "mutable"),
    ("A dictionary", "mutable", "immutable"),
    ("A set", "unordered", "ordered"),
    ("A module", "an object", "a number"),
    ("An integer", "a number", "a string"),
    ("A class", "an object", "an operator"),
    ("A keyword", "reserved", "optional"),
    ("A generator", "an iterator", "a literal"),
    ("A comment", "ignored", "evaluated"),
    ("A function", "callable", "numeric"),
]
_PHRASES = [
    ("The import statement finds and loads a", "module"),
    ("The return statement leaves the current function", "call"),
    ("The for statement is used to iterate over the elements of a", "sequence"),
    ("A function definition defines a user-defined function", "object"),
    ("The try statement specifies exception", "handlers"),
    ("The raise statement raises an", "exception"),
    ("A class definition defines a class", "object"),
    ("The while statement is used for repeated execution as long as an expression is", "true"),
    ("The break statement terminates the nearest enclosing", "loop"),
    ("The if statement is used for conditional", "execution"),
]
_WORDS = [
    "value",
    "name",
    "type",
    "line",
    "block",
    "list",
    "key",
    "file",
    "error",
    "method",
    "index",
    "string",
]
_CONTRASTS = [
    ("The name is bound, but the value is", "not used", "bound"),
    ("The module is found, but it is", "not loaded", "found"),
    ("The method is defined, though it is", "not called", "defined"),
    ("The expression is evaluated, but the result is", "not kept", "evaluated"),
    ("Unlike a list, a tuple can", "not be changed", "be changed"),
    ("Despite its name, the object is", "not a type", "a type"),
    ("The argument is optional, but the name is", "not optional", "optional"),
    ("The first line is a comment, whereas the second is", "not a comment", "a comment"),
]


def generate(generator: str, count: int, seed: int) -> list[Row]:
    """`count` different rows of a generator, the same for the same seed on every machine; fewer where it
    has no more."""
    # A string seed is hashed with SHA-512 by Python, unlike hash(), which differs between processes.
    rng = random.Random(f"{generator}-{seed}")
    rows: list[Row] = []
    seen: set[str] = set()
    repeats = 0
    for row in GENERATORS[generator](rng):
        new = repr(row) not in seen
        repeats = 0 if new else repeats + 1
        if new:
            seen.add(repr(row))
            rows.append(row)
        if len(rows) == count or repeats == _MOST_REPEATS:
            break
    return rows


def _negation(rng: random.Random) -> Iterator[Row]:
    """Questions with a negation, as in neqa: the property that does not hold is the answer."""
    while True:
        shown = rng.sample(_FACTS, 3)
        *told, (subject, holds, other) = shown
        lines = [f"{name} is {right}. {name} is not {wrong}." for name, right, wrong in told]
        negated = rng.random() < 0.5
        prompt = " ".join([*lines, f"{subject} is not" if negated else f"{subject} is"])
        yield _choice(rng, prompt, other if negated else holds, holds if negated else other)


def _ending(rng: random.Random) -> Iterator[Row]:
    """A known phrase is to end in another word, as in memo-trap."""
    while True:
        phrase, usual = rng.choice(_PHRASES)
        word = rng.choice(_WORDS)
        if word != usual:
            yield _choice(rng, f'Write a sentence that ends in the word "{word}": {phrase}', word, usual)


def _redefinition(rng: random.Random) -> Iterator[Row]:
    """A word takes another's meaning, as in redefine."""
    while True:
        (one, meaning, _), (other, different, _) = rng.sample(_FACTS, 2)
        if meaning != different:
            one, other = one.lower(), other.lower()
            prompt = (
                f"Here {one} means what {other} is elsewhere, and {one} is not {meaning}. So here {one} is"
            )
            yield _choice(rng, prompt, different, meaning)


def _order(rng: random.Random) -> Iterator[Row]:
    """What comes first, second, third."""
    ordinals = ["first", "second", "third"]
    while True:
        names = rng.sample(_WORDS, 3)
        asked = rng.randrange(3)
        order = "First the {}, second the {}, and finally the {} is read.".format(*names)
        wrong = names[(asked + rng.choice([1, 2])) % 3]
        yield _choice(rng, f"{order} The {ordinals[asked]} thing that is read is the", names[asked], wrong)


def _contrast(rng: random.Random) -> Iterator[Row]:
    """Completions after a contrast word, scored as text, as in prompt-injection's kind of score."""
    while True:
        start, completion, _ = rng.choice(_CONTRASTS)
        word, other = rng.sample(_WORDS, 2)
        yield {"prompt": f"The {word} comes before the {other}. {start}", "completion": f" {completion}."}


def _flip(rng: random.Random) -> Iterator[Row]:
    """How much a negation in the prompt moves the odds of two answers, as the prize's logodds sets ask."""
    while True:
        subject, holds, other = rng.choice(_FACTS)
        word = rng.choice(_WORDS)
        yield {
            "prompt": f"Take a {word}. {subject} is not",
            "other_prompt": f"Take a {word}. {subject} is",
            "classes": [f" {other}", f" {holds}"],
            "answer_index": 0,
        }


def _choice(rng: random.Random, prompt: str, right: str, wrong: str) -> Row:
    answer = rng.randrange(2)
    classes = [f" {wrong}.", f" {wrong}."]
    classes[answer] = f" {right}."
    return {"prompt": prompt, "classes": classes, "answer_index": answer}


GENERATORS: dict[str, Callable[[random.Random], Iterator[Row]]] = {
    "negation": _negation,
    "ending": _ending,
    "redefinition": _redefinition,
    "order": _order,
    "contrast": _contrast,
    "flip": _flip,
}
"""Generators by the name that task files use."""
