"""Small generated sets in the style of the prize's tasks, so that the demo and tests need no download.

They consist of short sentences about Python and depend on a seed alone. They show that the evaluator works
and whether a small model changes; there are no published numbers to compare with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from gaguide.evaluate.tasks.antonyms import seed_antonyms
from gaguide.evaluate.tasks.balanced_negation import balanced_rows

GeneratedRow = dict[str, Any]
"""Columns of one example."""
_MAX_REPEATS = 10_000
"""Consecutive duplicates after which a generator counts as exhausted."""

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


def generate(generator: str, count: int, seed: int) -> list[GeneratedRow]:
    """Up to `count` distinct rows of a generator, fewer where it is exhausted.

    The same seed gives the same rows on every machine.
    """
    # A string seed is hashed with SHA-512 by Python, unlike hash(), which differs between processes.
    rng = random.Random(f"{generator}-{seed}")
    rows: list[GeneratedRow] = []
    seen: set[str] = set()
    repeats = 0
    for row in GENERATORS[generator](rng):
        new = repr(row) not in seen
        repeats = 0 if new else repeats + 1
        if new:
            seen.add(repr(row))
            rows.append(row)
        if len(rows) == count or repeats == _MAX_REPEATS:
            break
    return rows


def _negation(rng: random.Random) -> Iterator[GeneratedRow]:
    """Questions with a negation, as in neqa: the property that does not hold is the answer."""
    while True:
        shown = rng.sample(_FACTS, 3)
        *stated, (subject, holds, other) = shown
        lines = [f"{name} is {right}. {name} is not {wrong}." for name, right, wrong in stated]
        negated = rng.random() < 0.5
        prompt = " ".join([*lines, f"{subject} is not" if negated else f"{subject} is"])
        yield _choice(rng, prompt, other if negated else holds, holds if negated else other)


def _ending(rng: random.Random) -> Iterator[GeneratedRow]:
    """A known phrase is to end in an unusual word, as in memo-trap."""
    while True:
        phrase, usual = rng.choice(_PHRASES)
        word = rng.choice(_WORDS)
        if word != usual:
            yield _choice(rng, f'Write a sentence that ends in the word "{word}": {phrase}', word, usual)


def _redefinition(rng: random.Random) -> Iterator[GeneratedRow]:
    """A word takes the meaning of another, as in redefine."""
    while True:
        (one, meaning, _), (other, different, _) = rng.sample(_FACTS, 2)
        if meaning != different:
            one, other = one.lower(), other.lower()
            prompt = (
                f"Here {one} means what {other} is elsewhere, and {one} is not {meaning}. So here {one} is"
            )
            yield _choice(rng, prompt, different, meaning)


def _order(rng: random.Random) -> Iterator[GeneratedRow]:
    """Which of three things comes first, second or third."""
    ordinals = ["first", "second", "third"]
    while True:
        names = rng.sample(_WORDS, 3)
        asked = rng.randrange(3)
        order = "First the {}, second the {}, and finally the {} is read.".format(*names)
        wrong = names[(asked + rng.choice([1, 2])) % 3]
        yield _choice(rng, f"{order} The {ordinals[asked]} thing that is read is the", names[asked], wrong)


def _contrast(rng: random.Random) -> Iterator[GeneratedRow]:
    """Completions after a contrast word, of kind sequence_prob, as in prompt-injection."""
    while True:
        start, completion, _ = rng.choice(_CONTRASTS)
        word, other = rng.sample(_WORDS, 2)
        yield {"prompt": f"The {word} comes before the {other}. {start}", "completion": f" {completion}."}


def _flip(rng: random.Random) -> Iterator[GeneratedRow]:
    """How much a negation in the prompt changes the odds of two answers, as in the prize's logodds sets."""
    while True:
        subject, holds, other = rng.choice(_FACTS)
        word = rng.choice(_WORDS)
        yield {
            "prompt": f"Take a {word}. {subject} is not",
            "other_prompt": f"Take a {word}. {subject} is",
            "classes": [f" {other}", f" {holds}"],
            "answer_index": 0,
        }


def _choice(rng: random.Random, prompt: str, right: str, wrong: str) -> GeneratedRow:
    answer = rng.randrange(2)
    classes = [f" {wrong}.", f" {wrong}."]
    classes[answer] = f" {right}."
    return {"prompt": prompt, "classes": classes, "answer_index": answer}


GENERATORS: dict[str, Callable[[random.Random], Iterator[GeneratedRow]]] = {
    "negation": _negation,
    "ending": _ending,
    "redefinition": _redefinition,
    "order": _order,
    "contrast": _contrast,
    "flip": _flip,
    "balanced-negation": lambda rng: balanced_rows(seed_antonyms(), rng),
}
"""Generators by their name in task files."""
