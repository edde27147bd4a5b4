"""Named word sets: those of the study, further linguistic features, and a user's own from YAML.

A set is read in one of two ways. `pieces`: every token whose text is a listed vocabulary piece, with or
without the mark of a leading space, as the study did ("Cont" then also fires inside "Continue"). `words`:
whole words and phrases, whatever tokens spell them (see words.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import PreTrainedTokenizerBase

from gaguide.errors import Fault, UserError, suggestion
from gaguide.guidance.patterns import TokenSet
from gaguide.guidance.words import WordSet

Mode = Literal["pieces", "words"]

# How byte-level BPE (GPT-2) and SentencePiece (Llama) write "a space stands before this piece".
_SPACE_MARKS = ("", "Ġ", "▁")


@dataclass(frozen=True)
class Lexicon:
    """A named set; `pieces` and `words` keep the order and the repetitions of their source."""

    name: str
    pieces: tuple[str, ...]
    words: tuple[str, ...]

    def piece_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """Ids of the vocabulary entries that are a listed piece, with or without the leading-space mark.

        Raises a `UserError` if the vocabulary holds none of them: guidance would silently do nothing.
        """
        vocabulary = tokenizer.get_vocab()
        found = {mark + piece for piece in self.pieces for mark in _SPACE_MARKS} & vocabulary.keys()
        if not found:
            raise UserError(
                Fault(
                    "guidance",
                    f"the vocabulary ({len(vocabulary)} entries) holds no piece of lexicon {self.name!r}",
                    "use mode words, a larger vocabulary or another lexicon",
                )
            )
        return frozenset(vocabulary[piece] for piece in found)

    def pattern(self, tokenizer: PreTrainedTokenizerBase, mode: Mode = "pieces") -> TokenSet | WordSet:
        """The pattern that looks at this set in a tokenizer's ids."""
        if mode == "pieces":
            return TokenSet(self.name, self.piece_ids(tokenizer))
        return WordSet.build(self.name, self.words, tokenizer)


@cache
def shipped_lexicons() -> dict[str, Lexicon]:
    """Every lexicon that comes with gaguide, by name."""
    folder = files("gaguide.guidance") / "lexicons"
    texts = [entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {name: _lexicon(name, entry) for text in texts for name, entry in yaml.safe_load(text).items()}


def read_lexicons(path: Path) -> dict[str, Lexicon]:
    """A user's lexicons: YAML `name: [word, "a phrase", …]`, or `name: {words: […], pieces: […]}`."""
    if not path.is_file():
        raise UserError(
            Fault("guidance.lexicons", "no such file", "give a YAML file of word lists", str(path))
        )
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            Fault("guidance.lexicons", f"is not YAML: {error}", "mend the file", str(path))
        ) from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(
            Fault(
                "guidance.lexicons",
                "holds no lexicon",
                "write lines like `greetings: [hello, good day]`",
                str(path),
            )
        )
    faults = [fault for name, entry in tree.items() for fault in _faults(path, str(name), entry)]
    if faults:
        raise UserError(faults)
    return {str(name): _lexicon(str(name), entry) for name, entry in tree.items()}


def get_lexicon(name: str, field: str = "lexicon", own: dict[str, Lexicon] | None = None) -> Lexicon:
    """The lexicon of that name, a user's `own` before the shipped; `field` is how a mistake is reported."""
    known = shipped_lexicons() | (own or {})
    if name not in known:
        raise UserError(Fault(field, "no such lexicon", suggestion(name, known, limit=30), name))
    return known[name]


def _lexicon(name: str, entry: Any) -> Lexicon:
    if isinstance(entry, list):
        entry = {"words": entry}
    words = tuple(entry.get("words", entry.get("pieces", ())))
    return Lexicon(name, tuple(entry.get("pieces", words)), words)


def _faults(path: Path, name: str, entry: Any) -> list[Fault]:
    lists = entry if isinstance(entry, dict) else {"words": entry}
    faults = []
    if not lists or not set(lists) <= {"words", "pieces"}:
        faults.append(
            Fault(f"{path.name}: {name}", "is no list of words", f"write `{name}: [word, …]`", entry)
        )
    for kind, items in lists.items():
        if not isinstance(items, list) or not items:
            faults.append(
                Fault(f"{path.name}: {name}.{kind}", "is no list", f"write `{name}: [word, …]`", items)
            )
            continue
        for item in items:
            # YAML reads an unquoted no, yes, on, off as a truth value.
            if not isinstance(item, str) or not item.strip():
                faults.append(Fault(f"{path.name}: {name}.{kind}", "is no word", "put it in quotes", item))
    return faults
