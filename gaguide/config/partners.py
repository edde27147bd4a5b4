"""Settings that exclude one another: the one given last replaces that of an earlier file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gaguide.config.sizes import SIZES

# Given (a field or a section) → fields that it replaces.
_PARTNERS = {
    "train.steps": ("train.epochs",),
    "train.epochs": ("train.steps",),
    "guidance.plan": ("guidance.experiment", "guidance.layers"),
    "guidance.experiment": ("guidance.plan", "guidance.lexicons"),
    "data.shards": ("data.mixture",),
    "data.source": ("data.mixture",),
    "data.mixture": ("data.shards", "data.source"),
    "resume_from": ("init_from", "init_optimizer"),
    "init_from": ("resume_from",),
    # Random weights belong to a size. Another model, named without `init`, starts from its own weights.
    "model.name": ("model.init",),
}


def replace_partners(tree: dict[str, Any], given: Iterable[str]) -> list[str]:
    """Remove from `tree`, in place, the fields that the dotted fields `given` replace, unless given as well.

    Returns a sentence for each removal, for the user.
    """
    given, said = list(given), []
    for field, partners in _PARTNERS.items():
        by = next((name for name in given if name == field or name.startswith(f"{field}.")), None)
        if by is None or _get(tree, field) in (None, [], {}):
            continue
        if field == "model.name" and not _has_its_own_weights(tree):
            continue
        for partner in partners:
            old = _get(tree, partner)
            is_given = any(name == partner or name.startswith(f"{partner}.") for name in given)
            if old in (None, [], {}, False) or is_given:
                continue
            section, _, leaf = partner.rpartition(".")
            del (tree[section] if section else tree)[leaf]
            said.append(f"{by} replaces {partner} = {old}")
    return said


def _has_its_own_weights(tree: dict[str, Any]) -> bool:
    """Whether the model that is named is a folder or a model of the hub, and not a size."""
    name = str(_get(tree, "model.name"))
    return name not in SIZES or Path(name).is_dir()


def leaves(tree: Any, above: str = "") -> list[str]:
    """Dotted names of every value in a tree of sections."""
    if not isinstance(tree, dict):
        return [above]
    return [name for key, below in tree.items() for name in leaves(below, f"{above}.{key}" if above else key)]


def _get(tree: dict[str, Any], field: str) -> Any:
    found: Any = tree
    for part in field.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
