"""Controls for tasks about negation: each prompt with its negation removed, replaced, reworded or made a
pseudo-negation.

A model that reads negation answers a prompt without its negation differently, and one whose negation is only
reworded in the same way. A model that answers from the other words does neither. Every variant keeps the
answer of its original, so that the accuracy of a variant is its agreement with the original's answer; only
for `reworded` is that also the right one. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gaguide.evaluate.tasks.example import Example

ORIGINAL = "original"
"""The part of the unchanged examples."""

_REMOVED = {
    "not": "", "never": "", "no": "", "cannot": "can", "without": "with", "nobody": "somebody",
    "nothing": "something", "none": "some", "nowhere": "somewhere", "neither": "both", "nor": "and",
}  # fmt: skip
_REPLACED = {
    "not": "now", "never": "still", "no": "one", "cannot": "can now", "without": "besides",
    "nobody": "anyone", "nothing": "a thing", "none": "many", "nowhere": "anyplace", "neither": "besides",
    "nor": "and",
}  # fmt: skip
_REWORDED = {
    "not": "by no means", "never": "at no time", "cannot": "is unable to", "without": "lacking",
    "nobody": "not a single person", "nothing": "not one thing", "nowhere": "in no place",
}  # fmt: skip
_FULL_VERBS = {"ca": "can", "wo": "will", "sha": "shall", "ai": "is"}
"""Verbs that n't shortens (ca n't, wo n't)."""
_CUE = re.compile(
    r"\b(?P<verb>[a-z]+)n['’]t\b(?P<space> ?)"
    r"|\b(?P<word>" + "|".join(_REMOVED) + r")\b(?!['’])(?P<after> ?)",
    re.I,
)
_CAPITAL = re.compile(r"\b(?:Not|Never|No) (\w)")
"""A cue that begins a sentence; without it, the next word does."""

Change = Callable[["re.Match[str]"], str]
"""The text instead of a cue and the space after it."""


def _from_table(table: Mapping[str, str], for_contraction: str) -> Change:
    def change(match: re.Match[str]) -> str:
        if match["word"] is None:
            instead = f"{_full_verb(match['verb'])} {for_contraction}".rstrip()
            return instead + match["space"]
        instead = table.get(match["word"].lower(), match["word"])
        if match["word"][0].isupper():
            instead = instead[:1].upper() + instead[1:]
        return instead + match["after"] if instead else ""

    return change


def _full_verb(verb: str) -> str:
    full = _FULL_VERBS.get(verb.lower(), verb)
    return full[0].upper() + full[1:] if verb[0].isupper() else full


def _pseudo(addition: str) -> Change:
    def change(match: re.Match[str]) -> str:
        if match["word"] is None or match["word"].lower() == "not":
            return f"{match[0].rstrip(' ')} {addition}{match['space'] or match['after'] or ''}"
        return match[0]

    return change


CONTROLS: Mapping[str, tuple[Change, str]] = {
    "removed": (_from_table(_REMOVED, ""), "the negation is taken out"),
    "replaced": (_from_table(_REPLACED, "now"), "a word of about the same length instead of the negation"),
    "reworded": (_from_table(_REWORDED, "by no means"), "the same meaning with another negation"),
    "not-only": (_pseudo("only"), "not becomes not only, which does not negate"),
    "not-necessarily": (_pseudo("necessarily"), "not becomes not necessarily, which leaves it open"),
}
"""Variant → how it changes each cue, and what it is for people."""


def change_cues(text: str, variant: str, keep: Sequence[str] = ()) -> str:
    """`text` with every negation changed as `variant` does, except inside the texts `keep`."""
    if not keep:
        if variant == "removed":
            text = _CAPITAL.sub(lambda match: match[1].upper(), text)
        return _CUE.sub(CONTROLS[variant][0], text)
    pieces = re.split("(" + "|".join(map(re.escape, sorted(keep, key=len, reverse=True))) + ")", text)
    return "".join(one if at % 2 else change_cues(one, variant) for at, one in enumerate(pieces))


def control_rows(
    examples: Sequence[Example], variants: Sequence[str], keep: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rows of the examples with a negation and of their variants; the group of both is the original's id.

    A variant that does not change an example's prompt is left out, and so is an example with none. `keep`:
    texts in which nothing is changed, such as an instruction that all prompts contain.
    """
    rows = []
    for example in examples:
        prompt = example.prompts[0]
        texts = {name: change_cues(prompt, name, keep) for name in variants}
        changed = {name: text for name, text in texts.items() if text != prompt}
        rows += [
            {
                "id": f"{example.id}:{name}",
                "group": example.id,
                "part": name,
                "prompt": text,
                "classes": list(example.continuations),
                "answer_index": example.answer_index,
            }
            for name, text in ({ORIGINAL: prompt} | changed if changed else {}).items()
        ]
    return rows
