"""Evaluation examples as sets of n-grams: runs of words, and of tokens.

Words are runs of letters and digits in lower case, so that punctuation, case and white space do not hide a
copy; a character of Chinese, Japanese and Korean scripts is a word. An example of 13 words or more is
compared by its runs of 13; one of 8 to 12 words as a whole; a shorter one only by its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from gaguide.data.overlap.ngrams import NgramCollector, NgramSet
from gaguide.files import hash_json
from gaguide.grouping import grouped

WORDS, FEWEST_WORDS, TOKENS = 13, 8, 8
"""Words of a run, the fewest words of an example that are compared as a whole, tokens of a run."""
_SCRIPTS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_WORD = re.compile(rf"[^\W_{_SCRIPTS}]+|[{_SCRIPTS}]")


@dataclass(frozen=True)
class EvaluationText:
    """The texts of one example that a model sees, without demonstrations."""

    task: str
    """Name of the task."""
    id: str
    """Id of the example within the task."""
    prompts: tuple[str, ...]
    """Its prompts; held-out text is one prompt without continuations."""
    continuations: tuple[str, ...] = ()
    """Its classes, or the completion, each with the delimiter after the prompt."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that is looked for: each prompt with each continuation."""
        if not self.continuations or not self.prompts:  # a text alone is either
            return self.prompts or self.continuations
        return tuple(prompt + text for prompt in self.prompts for text in self.continuations)


@dataclass(frozen=True)
class Runs:
    """The runs of one of an example's texts."""

    n: int
    """Length of a run."""
    numbers: np.ndarray
    """Number of each run [length − n + 1]."""

    def covered(self, found: np.ndarray) -> float:
        """Share of the text's words (or tokens) that lie in a run of which `found` is True."""
        length = len(self.numbers) + self.n - 1
        marks = np.zeros(length + 1, np.int64)
        starts = np.flatnonzero(found[self.numbers])
        np.add.at(marks, starts, 1)
        np.add.at(marks, starts + self.n, -1)
        return float((np.cumsum(marks)[:-1] > 0).mean())


class _Separated(dict[int, str]):
    """A table for `str.translate` that keeps the characters of words and replaces others by white space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        alone = _ALONE.match(character) is not None
        self[code] = f" {character} " if alone else character if character.isalnum() else " "
        return self[code]


_ALONE = re.compile(f"[{_SCRIPTS}]")
_SEPARATED = _Separated()
_SEPARATED_ASCII = "".join(_SEPARATED[code].lower() for code in range(128)).encode() + b" " * 128


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared: the matches of `_WORD` in lower case, at twice the speed."""
    if text.isascii():
        return text.encode().translate(_SEPARATED_ASCII).decode().split()
    return text.lower().translate(_SEPARATED).split()


def word_places(text: str) -> list[tuple[int, int]]:
    """Where each word of `words_of` begins and ends, in characters of `text`."""
    lower = text.lower()
    if len(lower) == len(text):
        return [match.span() for match in _WORD.finditer(lower)]
    # The lower case of a few letters has two characters.
    letters = [letter.lower() for letter in text]
    owner = [at for at, letter in enumerate(letters) for _ in letter]
    return [(owner[m.start()], owner[m.end() - 1] + 1) for m in _WORD.finditer("".join(letters))]


class WordIndex:
    """Runs of words of evaluation examples. Can be pickled."""

    def __init__(
        self, examples: Sequence[EvaluationText], through: Callable[[str], str] = lambda text: text
    ) -> None:
        """through: applied to the examples, to make the changes that the searched text has undergone."""
        self.examples = tuple(examples)
        self._vocabulary: dict[str, int] = {}
        collectors: dict[int, NgramCollector] = {}
        runs = []
        for example in examples:
            own = []
            for text in example.texts:
                words = words_of(through(text))
                n = min(WORDS, len(words))
                if n >= FEWEST_WORDS:
                    new = (self._vocabulary.setdefault(word, len(self._vocabulary) + 1) for word in words)
                    ids = np.fromiter(new, np.int64, len(words))
                    own.append(Runs(n, collectors.setdefault(n, NgramCollector(n)).add(ids)))
            runs.append(tuple(own))
        self.runs: tuple[tuple[Runs, ...], ...] = tuple(runs)
        """Runs of each text of each example; numbers count within the runs of one length."""
        self.sets: dict[int, NgramSet] = {n: each.finish() for n, each in sorted(collectors.items())}
        """Runs by length."""

    def ids(self, text: str) -> np.ndarray:
        """Ids [N] int64 of the words of `text`; 0 for words that no example has."""
        words = words_of(text)
        return np.fromiter(map(self._vocabulary.get, words, repeat(0)), np.int64, len(words))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the examples."""
        content = [
            [example.task, example.id, example.prompts, example.continuations] for example in self.examples
        ]
        return hash_json([WORDS, FEWEST_WORDS, content])

    def owners(self) -> dict[tuple[int, int], list[int]]:
        """(length, number) of every run → the examples that have it, ascending."""
        return grouped(
            (run, at)
            for at, own in enumerate(self.runs)
            for run in sorted({(runs.n, int(number)) for runs in own for number in runs.numbers})
        )


class TokenIndex:
    """Runs of tokens of evaluation examples, for one tokenizer. Can be pickled."""

    def __init__(
        self, examples: Sequence[EvaluationText], encode: Callable[[str], np.ndarray], vocab_size: int
    ) -> None:
        collector = NgramCollector(TOKENS)
        known = np.zeros(vocab_size, bool)
        runs = []
        for example in examples:
            own = []
            for text in example.texts:
                # Inside a document, a space precedes the first word, which changes its tokens.
                for variant in dict.fromkeys((text, " " + text.lstrip(" "))):
                    ids = encode(variant).astype(np.int64)
                    if len(ids) >= TOKENS:
                        known[ids] = True
                        own.append(Runs(TOKENS, collector.add(ids + 1)))
            runs.append(tuple(own))
        self.runs: tuple[tuple[Runs, ...], ...] = tuple(runs)
        """Runs of each text of each example."""
        self.set: NgramSet | None = collector.finish() if len(collector) else None
        """All runs; None if every example has fewer than 8 tokens."""
        self._ids_V = np.where(known, np.arange(1, vocab_size + 1), 0)

    def ids(self, tokens: np.ndarray) -> np.ndarray:
        """`tokens` [N] as the set's ids [N] int64; 0 for tokens that no example has."""
        return self._ids_V[tokens]
