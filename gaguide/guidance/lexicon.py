"""Named word sets, and which of a tokenizer's vocabulary entries they stand for.

The study guides heads to vocabulary *pieces*, listed one by one ("not", "Cont", "rast"). Read so, a set
matches every token whose text is a listed piece, with or without the marker of a leading space.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from transformers import PreTrainedTokenizerBase

from gaguide.errors import Fault, UserError, suggestion

# How byte-level BPE (GPT-2) and SentencePiece (Llama) write "a space stands before this piece".
_SPACE_MARKS = ("", "Ġ", "▁")


@dataclass(frozen=True)
class Lexicon:
    """A named set of entries, in the order of its source; repeated entries are kept as listed."""

    name: str
    entries: tuple[str, ...]

    def piece_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """Ids of the vocabulary entries that are a listed piece, with or without the leading-space mark.

        Raises a `UserError` if the vocabulary holds none of them: guidance would silently do nothing.
        """
        vocabulary = tokenizer.get_vocab()
        found = {mark + entry for entry in self.entries for mark in _SPACE_MARKS} & vocabulary.keys()
        if not found:
            raise UserError(
                Fault(
                    "guidance",
                    f"the vocabulary ({len(vocabulary)} entries) holds no piece of lexicon {self.name!r}",
                    "use a larger vocabulary or another lexicon",
                )
            )
        return frozenset(vocabulary[piece] for piece in found)


@cache
def shipped_lexicons() -> dict[str, Lexicon]:
    """Every lexicon that comes with gaguide, by name."""
    folder = files("gaguide.guidance") / "lexicons"
    documents = [
        yaml.safe_load(entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".yaml")
    ]
    return {
        name: Lexicon(name, tuple(entries)) for document in documents for name, entries in document.items()
    }


def get_lexicon(name: str, field: str = "lexicon") -> Lexicon:
    """The shipped lexicon of that name; `field` is how the user's mistake is reported."""
    known = shipped_lexicons()
    if name not in known:
        raise UserError(Fault(field, "no such lexicon", suggestion(name, known), name))
    return known[name]
