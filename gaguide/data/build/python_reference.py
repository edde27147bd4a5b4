"""The embedded corpus: the language reference that every CPython carries, so that demos need no download.

Its documents are the sections of `pydoc_data.topics`; the tokenizer is a byte-level BPE trained on them. Both
are the same on every machine with the same CPython patch version.
"""

from __future__ import annotations

import itertools
import json
import platform
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED_DESCRIPTION = f"embedded corpus (the language reference of CPython {platform.python_version()})"
END_OF_TEXT = "<|endoftext|>"
VOCABULARY_SIZE = 2048
VALIDATION_FRACTION = 0.08
# A heading is a line with a line of one punctuation mark below it.
_HEADING = re.compile(r"^(?=\S[^\n]*\n([*=\-~^])\1{2,}\n)", re.MULTILINE)
_SHORT, _LONG = 200, 2000  # characters


@lru_cache(maxsize=1)
def embedded_documents() -> tuple[str, ...]:
    """The sections, in a fixed order; a section that several topics share comes once.

    Topics include each other ("compound" holds "if"); kept twice, held-out text would be trained on.
    """
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for name in sorted(topics):
        for section in _sections(topics[name]):
            # Headings of one section are underlined differently by level.
            found.setdefault(re.sub(r"[\W_]+", " ", section).strip(), section)
    return tuple(found.values())


def _sections(topic: str) -> list[str]:
    """A topic cut at its headings, and further at blank lines where a section is long."""
    starts = [match.start() for match in _HEADING.finditer(topic)]
    sections: list[str] = []
    for start, end in itertools.pairwise(sorted({0, *starts, len(topic)})):
        filling = ""
        for paragraph in topic[start:end].strip().split("\n\n"):
            if len(filling) > _LONG:
                sections.append(filling)
                filling = ""
            filling += paragraph.strip("\n") + "\n\n"
        if sections and len(filling) < _SHORT:
            sections[-1] += filling  # a heading with next to nothing under it, or a last paragraph
        else:
            sections.append(filling)
    return sections


def train_embedded_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE with `vocab_size` ids, the last of them <|endoftext|>, as a GPT-2 tokenizer."""
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
