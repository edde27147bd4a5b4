"""Leave evaluation examples out of the training text while it is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from gaguide.data.overlap.index import WORDS, WordIndex, word_places

Action = Literal["drop", "mask"]
ACTIONS: tuple[Action, ...] = ("drop", "mask")
LIST_FILE = "decontaminated.jsonl"
"""In a folder of shards: the documents that contain evaluation examples."""
_MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Contamination:
    """The evaluation examples in one document."""

    stretches: tuple[tuple[int, int], ...]
    """First character, and the one after the last, of each stretch of the document in a found run."""
    examples: tuple[tuple[str, str], ...]
    """Task and id of examples that have a found run, at most 20."""
    count: int
    """Number of these examples."""
    text: str
    """The first found stretch."""

    def as_record(self) -> dict[str, Any]:
        """Its entry in the list of documents."""
        return {"examples": [list(each) for each in self.examples], "count": self.count, "text": self.text}


@dataclass(frozen=True)
class Decontamination:
    """Examples that are looked for, and how a document that contains one is handled. Can be pickled."""

    words: WordIndex
    """The examples' runs of words."""
    action: Action = "drop"
    """drop: the document is left out; mask: the loss is not computed on the found runs."""

    @cached_property
    def _owners(self) -> dict[tuple[int, int], list[int]]:
        return self.words.owners()

    def find(self, text: str) -> Contamination | None:
        """The examples in a document's text; None if there is none."""
        ids = self.words.ids(text)
        hits = [
            (int(start), n, int(number))
            for n, runs in self.words.sets.items()
            for start, number in zip(*runs.find(ids))
        ]
        if not hits:
            return None
        places = word_places(text)
        stretches: list[tuple[int, int]] = []
        for start, end in sorted((places[at][0], places[at + n - 1][1]) for at, n, _ in hits):
            if stretches and start <= stretches[-1][1]:
                stretches[-1] = stretches[-1][0], max(end, stretches[-1][1])
            else:
                stretches.append((start, end))
        found = sorted({owner for _, n, number in hits for owner in self._owners[n, number]})
        named = tuple(
            (self.words.examples[at].task, self.words.examples[at].id) for at in found[:_MAX_EXAMPLES]
        )
        return Contamination(tuple(stretches), named, len(found), text[slice(*stretches[0])][:300])

    @property
    def identity(self) -> dict[str, Any]:
        """Its entries in the identity of a build."""
        return {"content of --decontaminate": self.words.fingerprint, "--decontaminate-by": self.action}

    def describe(self) -> Mapping[str, Any]:
        """Its entries in the manifest, apart from the documents."""
        tasks = dict(Counter(example.task for example in self.words.examples))
        compared = sum(bool(runs) for runs in self.words.runs)
        return {
            "tasks": tasks,
            "examples": self.words.fingerprint,
            "compared": compared,
            "too_short": len(self.words.examples) - compared,
            "words": WORDS,
            "action": self.action,
        }
