"""Lexicons, named sets of words: those of the study, further linguistic features, and a user's own from YAML.

A lexicon has two modes. `pieces` matches every token whose text is a listed vocabulary piece, with or without
the mark of a leading space, as in the study ("Cont" then also matches inside "Continue"). `words` matches
whole words and phrases, whatever tokens spell them (see words.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gaguide.config.yaml_tree import read_yaml
from gaguide.errors import Fault, FaultCollector, UserError, suggestion
from gaguide.files import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gaguide.guidance.patterns import TokenSet
    from gaguide.guidance.words import WordSet

Mode = Literal["pieces", "words"]

# Marks of a leading space: none, byte-level BPE (GPT-2), SentencePiece (Llama).
_SPACE_MARKS = ("", "Ġ", "▁")
_KINDS_OF_WORDS = ("affixes", "regex", "except")
_KEYS = {"words", "pieces", *_KINDS_OF_WORDS}


@dataclass(frozen=True)
class Lexicon:
    """A named set of words."""

    name: str
    """Name in run files and records."""
    pieces: tuple[str, ...]
    """Vocabulary pieces, with the order and repetitions of their source."""
    words: tuple[str, ...]
    """Words and phrases, with the order and repetitions of their source."""
    affixes: tuple[str, ...] = ()
    """Prefixes ("un-") and suffixes ("-n't"), for mode words."""
    exceptions: tuple[str, ...] = ()
    """Words and affixes ("under-") that do not match, for mode words."""
    expressions: tuple[str, ...] = ()
    """Regular expressions for whole words ("\\w+n't"), for mode words."""
    for_words_only: tuple[str, ...] = ()
    """Kinds of entries that mode pieces would leave out without a word, since no `pieces` are listed."""

    def content(self, mode: Mode) -> str:
        """A hash of the lexicon's entries for this mode, the same for any name and order."""
        parts = [mode, sorted(set(self.pieces if mode == "pieces" else self.words))]
        further = [self.affixes, self.exceptions, self.expressions]
        if mode == "words" and any(further):  # others keep their hash in older records
            parts += [sorted(set(one)) for one in further]
        return hash_json(parts)[:16]

    def piece_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """Ids of the vocabulary entries that are a listed piece, with or without the mark of a leading space.

        Raises a `UserError` if the vocabulary has none of them, because guidance would silently do nothing.
        """
        vocabulary = tokenizer.get_vocab()
        found = {mark + piece for piece in self.pieces for mark in _SPACE_MARKS} & vocabulary.keys()
        if not found:
            raise UserError.of(
                "guidance",
                f"the vocabulary ({len(vocabulary)} entries) has no piece of lexicon {self.name!r}",
                "use mode words, a larger vocabulary or another lexicon",
            )
        return frozenset(vocabulary[piece] for piece in found)

    def pattern(self, tokenizer: PreTrainedTokenizerBase, mode: Mode = "pieces") -> TokenSet | WordSet:
        """The pattern that matches this lexicon in the tokenizer's ids."""
        from gaguide.guidance.patterns import TokenSet
        from gaguide.guidance.words import WordSet

        if mode == "pieces":
            if self.for_words_only:
                kinds = " and ".join(self.for_words_only)
                problem = f"lexicon {self.name!r} has {kinds}, which mode pieces does not match"
                remedy = "use mode words, or list vocabulary pieces under `pieces`"
                raise UserError.of("guidance.mode", problem, remedy, mode)
            return TokenSet(self.name, self.piece_ids(tokenizer))
        return WordSet.build(
            self.name, self.words, tokenizer, self.affixes, self.exceptions, self.expressions
        )


@cache
def shipped_lexicons() -> dict[str, Lexicon]:
    """Every lexicon of the package, by name."""
    paths = sorted((Path(__file__).parent / "lexicons").glob("*.yaml"))
    entries = {name: entry for path in paths for name, entry in read_yaml(path, "lexicon").items()}
    return {name: _lexicon(name, entry) for name, entry in entries.items()}


def read_lexicons(path: Path) -> dict[str, Lexicon]:
    """A user's lexicons: YAML `name: [word, "a phrase", …]`, or `name: {words: […], pieces: […],
    affixes: ["un-", "-n't"], regex: ["\\w+n't"], except: ["under-"]}`.

    Raises a `UserError` with every fault of the file.
    """
    tree = read_yaml(path, "guidance.lexicons")
    with FaultCollector() as faults:
        if not tree:
            remedy = "write lines like `greetings: [hello, good day]`"
            faults.add(Fault("guidance.lexicons", "must have at least one lexicon", remedy, str(path)))
        for name, entry in tree.items():
            _check_entry(f"{path.name}: {name}", name, entry, faults)
    return {str(name): _lexicon(str(name), entry) for name, entry in tree.items()}


def get_lexicon(name: str, own: dict[str, Lexicon] | None = None, field: str = "lexicon") -> Lexicon:
    """The lexicon called `name`; a user's `own` come before shipped ones.

    Raises a `UserError` of `field` for an unknown name.
    """
    known = shipped_lexicons() | (own or {})
    if name not in known:
        raise UserError.of(field, "unknown lexicon", suggestion(name, known, limit=30), name)
    return known[name]


def _lexicon(name: str, entry: Any) -> Lexicon:
    if isinstance(entry, list):
        entry = {"words": entry}
    words = tuple(entry.get("words", entry.get("pieces", ())))
    affixes, exceptions = tuple(entry.get("affixes", ())), tuple(entry.get("except", ()))
    expressions = tuple(entry.get("regex", ()))
    ignored = () if "pieces" in entry else tuple(one for one in _KINDS_OF_WORDS if entry.get(one))
    return Lexicon(name, tuple(entry.get("pieces", words)), words, affixes, exceptions, expressions, ignored)


def _check_entry(where: str, name: object, entry: object, faults: FaultCollector) -> None:
    remedy = f"write `{name}: [word, …]`"
    lists = entry if isinstance(entry, dict) else {"words": entry}
    if not set(lists) & {"words", "pieces", "affixes", "regex"} or not set(lists) <= _KEYS:
        problem = f"must be a list of words, or have keys of {', '.join(sorted(_KEYS))}"
        faults.add(Fault(where, problem, remedy, entry))
    for kind, items in lists.items():
        if not isinstance(items, list) or not items:
            faults.add(Fault(f"{where}.{kind}", "must be a list with at least one item", remedy, items))
            continue
        for item in items:
            # YAML reads an unquoted no, yes, on or off as a Boolean.
            if not isinstance(item, str) or not item.strip():
                faults.add(Fault(f"{where}.{kind}", "must be text", "put it in quotes", item))
            elif kind == "affixes" and (len(item) < 2 or (item[0] == "-") == (item[-1] == "-")):
                problem = "must have a hyphen at one end"
                faults.add(Fault(f"{where}.{kind}", problem, 'write "un-" or "-n\'t"', item))
            elif kind == "regex":
                from gaguide.guidance.expression_rules import check_expression

                faults.attempt(check_expression, item, f"{where}.{kind}")
