"""The embedded corpus: the language reference that ships with CPython, so that demos need no download.

Its documents are the sections of `pydoc_data.topics`; its tokenizer is a byte-level BPE trained on them. Both
are the same on every machine with the same CPython patch version.
"""

from __future__ import annotations

import itertools
import json
import platform
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAME = "embedded corpus"
EMBEDDED_DESCRIPTION = f"{_NAME} (the language reference of CPython {platform.python_version()})"
"""Source that the manifest records."""

END_OF_TEXT = "<|endoftext|>"
EMBEDDED_VOCABULARY = 2048
VALIDATION_FRACTION = 0.08
# A heading is a line that is underlined with one repeated punctuation mark.
_HEADING = re.compile(r"^(?=\S[^\n]*\n([*=\-~^])\1{2,}\n)", re.MULTILINE)
_SHORT, _LONG = 200, 2000  # characters


def is_embedded_source(description: str) -> bool:
    """Whether a manifest's source is the embedded corpus, of this or of another Python."""
    return description.startswith(f"{_NAME} (")


@cache
def embedded_documents() -> tuple[str, ...]:
    """The sections, in a fixed order and without duplicates.

    Topics include each other ("compound" contains "if"); duplicates would put held-out text into training.
    """
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for name in sorted(topics):
        for section in _sections(topics[name]):
            # The same section is underlined differently at different levels.
            found.setdefault(re.sub(r"[\W_]+", " ", section).strip(), section)
    return tuple(found.values())


def _sections(topic: str) -> list[str]:
    """A topic split at its headings, and long sections further at blank lines."""
    starts = [match.start() for match in _HEADING.finditer(topic)]
    sections: list[str] = []
    for start, end in itertools.pairwise(sorted({0, *starts, len(topic)})):
        current = ""
        for paragraph in topic[start:end].strip().split("\n\n"):
            if len(current) > _LONG:
                sections.append(current)
                current = ""
            current += paragraph.strip("\n") + "\n\n"
        if sections and len(current) < _SHORT:
            sections[-1] += current  # a heading with little text, or a last paragraph
        else:
            sections.append(current)
    return sections


def train_embedded_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a GPT-2 tokenizer (byte-level BPE) with `vocab_size` ids, the last of them <|endoftext|>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words.train_from_iterator(embedded_documents(), trainer)
    model = json.loads(words.to_str())["model"]
    vocabulary = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
    return GPT2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in model["merges"]],  # type: ignore[misc]
        unk_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
    )
