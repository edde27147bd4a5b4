"""One example of a task: its question, possible answers, and identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gaguide.evaluate.tasks.conversation import Conversation, as_text, demonstration_ends


@dataclass(frozen=True)
class Example:
    """One example of a task."""

    id: str
    """Unique within the task."""
    prompts: tuple[str, ...]
    """One prompt; two for the logodds kinds; none for blocks of shards."""
    continuations: tuple[str, ...]
    """The classes, or the completion, each with the task's delimiter before it."""
    answer_index: int | None = None
    """Index of the right class."""
    number: float | None = None
    """Kind numeric: the right answer."""
    number_text: str = field(default="", compare=False)
    """Kind numeric: the right answer as the data spell it."""
    segments: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    """Kind perplexity: (input ids, target ids) of each separate part of a block."""
    delimiter: str = ""
    """Text before every continuation that is not part of a class; `acc_norm` does not count it."""
    group: str | None = None
    """Examples with the same one are not independent: a minimal pair, a contrast set."""
    part: str | None = None
    """Part of the task for which results are also reported, such as a condition."""
    line: int = field(default=0, compare=False)
    """Line in the data file, counted from 1; 0 where there is none."""
    demonstration_ends: tuple[int, ...] = field(default=(), compare=False)
    """Where each demonstration in the prompts ends, in characters."""
    preamble: int = field(default=0, compare=False)
    """Characters of the prompts before the first demonstration, such as a task's description."""
    is_zipped: bool = False
    """Whether prompt i belongs to continuation i alone, as where the classes are part of the prompts."""
    other_answers: tuple[int, ...] = ()
    """Indices of further right classes."""
    class_texts: tuple[str, ...] = ()
    """Texts whose characters `acc_norm` counts; () for the continuations without their delimiter."""
    unconditional: tuple[str, ...] = ()
    """Texts that are also scored without a prompt, one per class, for `acc_mutual_info`."""
    conversations: tuple[Conversation, ...] = field(default=(), compare=False)
    """The messages of each prompt, for a model's chat template; () where prompts are final."""
    cues: str = ""
    """Kind near_cue: hash of the lexicon whose words are the cues."""
    spans: tuple[tuple[str, int, int, str], ...] = field(default=(), compare=False)
    """Mark, start, end and text of spans of the first prompt, counted back from its end: -3 is its third-last
    character, whatever precedes the row's own prompt."""
    document: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """The row of the data; None where nothing asks for it."""

    def without_demonstrations(self, count: int) -> Example:
        """The example without its first `count` demonstrations."""
        if not count:
            return self
        start, end = self.preamble, self.demonstration_ends[count - 1]
        return replace(
            self,
            prompts=tuple(prompt[:start] + prompt[end:] for prompt in self.prompts),
            demonstration_ends=tuple(other - end + start for other in self.demonstration_ends[count:]),
        )

    def asked_as(self, conversations: Sequence[Conversation], chat: bool) -> Example:
        """The example with one prompt for each of `conversations`.

        chat: whether a model's chat template will be applied to them; until then prompts are plain texts.
        """
        preamble, ends = demonstration_ends(conversations[0])
        prompts = tuple(map(as_text, conversations))
        kept = tuple(conversations) if chat else ()
        return replace(self, prompts=prompts, preamble=preamble, demonstration_ends=ends, conversations=kept)

    @property
    def answers(self) -> tuple[int, ...]:
        """Indices of all right classes."""
        return () if self.answer_index is None else (self.answer_index, *self.other_answers)

    @property
    def counted_texts(self) -> tuple[str, ...]:
        """The text of each class whose length `acc_norm` and its relatives divide by."""
        return self.class_texts or tuple(text[len(self.delimiter) :] for text in self.continuations)

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for two rows that ask and answer the same."""
        always = (self.prompts, self.continuations, self.answer_index, self.number, self.segments)
        further = (self.is_zipped, self.other_answers, self.class_texts, self.unconditional)
        if self.cues:
            return (*always, *further, self.cues)
        return (*always, *further) if any(further) else always

    def key(self, kind: str) -> str:
        """Hash of `content`, equal wherever the same is asked under any id."""
        return example_key(kind, *self.content)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(prompt, continuation) in scoring order: all of the first prompt, then all of the other, then the
        unconditional texts."""
        last = [("", text) for text in self.unconditional]
        if self.is_zipped:
            return [*zip(self.prompts, self.continuations, strict=True), *last]
        return [(prompt, text) for prompt in self.prompts for text in self.continuations] + last


def example_key(kind: str, *content: object) -> str:
    """Hash of what an example asks (`Example.content`); the one rule by which examples are the same."""
    return hashlib.sha256(json.dumps([kind, *content], ensure_ascii=True).encode()).hexdigest()[:24]
