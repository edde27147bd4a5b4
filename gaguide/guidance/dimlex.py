"""Discourse connectives of a DiMLex file (Stede 2002; DiMLex-Eng: Das et al. 2018), as lexicons by sense."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import yaml

from gaguide.errors import UserError, first_line

PREFIX = "connectives-"


@dataclass(frozen=True)
class Connectives:
    """The lexicons of a file."""

    lexicons: dict[str, list[str]]
    """Name, `connectives-SENSE` → connectives in the file's order."""
    notes: tuple[str, ...]
    """Sentences on entries that were left out."""


def read_dimlex(path: Path, level: int = 1) -> Connectives:
    """The connectives of a DiMLex file by their PDTB-3 sense, cut to `level` levels.

    A connective with several senses is in several lexicons. Discontinuous ones ("either … or") are left out:
    their parts are ordinary words elsewhere. Raises `UserError` for a file that is not DiMLex.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        problem = f"cannot be read as XML ({first_line(error)})"
        raise UserError.of("FILE", problem, "give a DiMLex file", str(path)) from None
    entries = list(root.iter("entry"))
    if not entries:
        raise UserError.of("FILE", "has no entry of DiMLex", "give a DiMLex file", str(path))
    found: dict[str, dict[str, None]] = {}
    apart, senseless = 0, 0
    for entry in entries:
        words = []
        for orth in entry.iter("orth"):
            parts = [" ".join((part.text or "").split()) for part in orth.iter("part")]
            if len(parts) == 1 and parts[0]:
                words.append(parts[0])
            else:
                apart += 1
        senses = _senses(entry, level)
        senseless += not senses
        for sense in senses:
            found.setdefault(PREFIX + sense, {}).update(dict.fromkeys(words))
    lexicons = {name: list(words) for name, words in sorted(found.items()) if words}
    if not lexicons:
        problem = "has no connective with a PDTB sense"
        raise UserError.of("FILE", problem, "give a DiMLex file with pdtb3_relation", str(path))
    notes = []
    if apart:
        notes.append(f"{apart} discontinuous spellings are left out")
    if senseless:
        notes.append(f"{senseless} of {len(entries)} entries have no PDTB sense and are left out")
    return Connectives(lexicons, tuple(notes))


def _senses(entry: ElementTree.Element, level: int) -> list[str]:
    """Senses such as comparison-concession, each once."""
    names = [
        element.get("sense", "") for element in entry.iter() if re.fullmatch(r"pdtb\d*_relation", element.tag)
    ]
    cut = [re.split(r"[:.]", name.strip().lower())[:level] for name in names if name.strip()]
    return list(dict.fromkeys("-".join(re.sub(r"\W+", "-", part) for part in parts) for parts in cut))


def to_yaml(found: Connectives, source: str) -> str:
    """The lexicons as YAML that `read_lexicons` reads."""
    body = yaml.safe_dump(
        found.lexicons, allow_unicode=True, sort_keys=False, default_flow_style=None, width=10**6
    )
    return f"# Discourse connectives by sense, from {source} (DiMLex).\n{body}"
