"""Which answers a model chose and which are right, and whether it answers at all. Pure, without torch.

A model that chooses the same position or text for every example measures the data, not the model: its
accuracy is the share of that answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gaguide.evaluate.results.intervals import Metric
from gaguide.evaluate.results.metric_names import Doubt
from gaguide.evaluate.tasks.example import Example
from gaguide.grouping import grouped

CONSTANT_SHARE = 0.95
"""An answer that is chosen in at least this share of the examples is constant."""
MIN_EXAMPLES = 10
"""With fewer examples a model may well choose the same answer for all."""
_MAX_LISTED = 10
"""Texts that a distribution lists, the most frequent ones; the rest are counted."""
_MAX_TEXT = 40
NO_NUMBER = "no number"
"""In place of a text where a generated text contains no number."""

Answer = int | str


@dataclass(frozen=True)
class AnswerPattern:
    """The distribution of the answers to one task; texts or positions are empty where they say nothing."""

    count: int
    """Number of examples."""
    positions: Counter[Answer]
    """How often each position was chosen."""
    right_positions: Counter[Answer]
    """In how many examples each position is right."""
    texts: Counter[Answer]
    """How often each text was chosen."""
    right_texts: Counter[Answer]
    """In how many examples each text is right."""
    labels: tuple[tuple[Hashable, Hashable], ...] = ()
    """(right label, chosen label) of every example: texts where `by_text`, else positions."""
    by_text: bool = False
    """Whether every example offers the same texts, in any order."""

    def constant(self) -> str | None:
        """The text or position that is chosen in at least 95% of the examples, as a clause; else None."""
        for chosen, right in self._distributions():
            (most, times), *_ = chosen.most_common(1)
            if times >= CONSTANT_SHARE * self.count:
                share = right[most] / self.count
                return (
                    f"{_name(most)} is chosen in {times} of {self.count} examples, and right in {share:.1%}"
                )
        return None

    def majority(self) -> tuple[str, float]:
        """The most frequent right answer, as a clause, and the accuracy of always giving it."""
        found = [right.most_common(1)[0] for _, right in self._distributions()]
        most, times = max(found, key=lambda pair: pair[1])
        return _name(most), times / self.count

    def to_json(self) -> dict[str, Any]:
        """Shares and entropies (bits) of chosen and right positions and texts."""
        return {
            "labels": "texts" if self.by_text else "positions",
            "positions": _distribution(self.positions, self.right_positions, self.count),
            "texts": _distribution(self.texts, self.right_texts, self.count),
        }

    @property
    def says_something(self) -> bool:
        """Whether there is a distribution at all."""
        return bool(self.texts or self.positions)

    def _distributions(self) -> list[tuple[Counter[Answer], Counter[Answer]]]:
        both = (self.texts, self.right_texts), (self.positions, self.right_positions)
        return [(chosen, right) for chosen, right in both if chosen]


@dataclass(frozen=True)
class Uninformative:
    """Why an accuracy says nothing about the model's answers."""

    reason: Doubt
    """`constant`: one position or text is chosen in at least 95% of the examples. `baseline`: the accuracy's
    95% interval does not lie above the accuracy of always giving the most frequent right answer."""
    why: str
    """A clause with the numbers."""


def class_answers(examples: Sequence[Example], predicted: Sequence[int]) -> AnswerPattern:
    """The pattern of the chosen positions `predicted`; each example must have an answer.

    Where the classes are part of the prompts, only positions are counted; and where the right class has the
    same position in all examples (BLiMP's pairs), positions are not, since a model does not see them.
    """
    offered = [example.counted_texts for example in examples]
    by_text = (
        not any(example.is_zipped for example in examples)
        and len({frozenset(texts) for texts in offered}) == 1
        and all(len(set(texts)) == len(texts) for texts in offered)
    )
    right_places = [example.answers for example in examples]
    # Of several right answers, the one that was chosen.
    right = [at if at in places else places[0] for places, at in zip(right_places, predicted, strict=True)]
    labels: list[tuple[Hashable, Hashable]] = [
        (own[one], own[at]) if by_text else (one, at)
        for own, one, at in zip(offered, right, predicted, strict=True)
    ]
    texts, right_texts = Counter[Answer](), Counter[Answer]()
    if not any(example.is_zipped for example in examples):
        texts.update(own[at] for own, at in zip(offered, predicted, strict=True))
        pairs = zip(offered, right_places, strict=True)
        right_texts.update(text for own, places in pairs for text in {own[at] for at in places})
    right_at = Counter[Answer](at for places in right_places for at in places)
    chosen_at = Counter[Answer](predicted)
    if len(right_at) == 1 and not by_text:
        right_at, chosen_at = Counter(), Counter()
    return AnswerPattern(len(examples), chosen_at, right_at, texts, right_texts, tuple(labels), by_text)


def number_answers(answers: Sequence[float], generated: Sequence[float | None]) -> AnswerPattern:
    """The pattern of generated numbers, None where a text has none; it has no positions."""
    chosen = Counter[Answer](NO_NUMBER if one is None else f"{one:g}" for one in generated)
    return AnswerPattern(len(answers), Counter(), Counter(), chosen, Counter(f"{one:g}" for one in answers))


def uninformative(pattern: AnswerPattern, accuracy: Metric) -> Uninformative | None:
    """Why `accuracy` says nothing about the model; None where it does, and for few examples."""
    if pattern.count < MIN_EXAMPLES or not pattern.says_something or math.isnan(accuracy.value):
        return None
    if clause := pattern.constant():
        return Uninformative("constant", clause)
    name, share = pattern.majority()
    if accuracy.low > share:
        return None
    return Uninformative(
        "baseline", f"always giving {name} is right in {share:.1%}, within or above its interval"
    )


def doubt_sentences(task: str, values: Mapping[str, float], found: Mapping[str, Uninformative]) -> list[str]:
    """A sentence on each reason in `found`, which holds accuracies by metric; `values`: those accuracies."""
    by_reason = grouped((one, f"{metric} {values[metric]:.4f}") for metric, one in found.items())
    says = {"constant": "measures the data, not the model", "baseline": "not shown to beat a constant"}
    return [
        f"task {task}: {', '.join(names)}: {says[one.reason]}, since {one.why}"
        for one, names in by_reason.items()
    ]


def entropy(counts: Mapping[Answer, int]) -> float:
    """Entropy of the shares in bits; 0 for a constant answer."""
    total = sum(counts.values())
    found = -math.fsum(n / total * math.log2(n / total) for n in counts.values() if n)
    return found + 0.0  # not -0.0


def _distribution(chosen: Counter[Answer], right: Counter[Answer], count: int) -> dict[str, Any] | None:
    if not chosen:
        return None
    listed = sorted(chosen.keys() | right.keys(), key=lambda one: (-chosen[one], -right[one], str(one)))
    shown = listed if all(isinstance(one, int) for one in listed) else listed[:_MAX_LISTED]
    return {
        "distinct": len(listed),
        "chosen_entropy": entropy(chosen),
        "right_entropy": entropy(right),
        "shares": [
            {"answer": one, "chosen": chosen[one] / count, "right": right[one] / count} for one in shown
        ],
    }


def _name(answer: Answer) -> str:
    if isinstance(answer, int):
        return f"position {answer}"
    short = answer if len(answer) <= _MAX_TEXT else answer[: _MAX_TEXT - 1] + "…"
    return f"the answer {short!r}"
