"""Rules that choose heads from a profile, and plan.yaml, which a study reads. Pure, apart from the file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gaguide.files import write_text
from gaguide.grouping import grouped
from gaguide.heads.records import ChosenHeads, HeadProfile, ProfileRecord

FILE = "plan.yaml"
PROFILED = "profiled"
"""Entry of plan.yaml in addition to the plans: name and content of the model whose heads were profiled."""


def choose(heads: Sequence[HeadProfile], count: int, seed: int) -> tuple[ChosenHeads, ...]:
    """`count` heads by each rule: most used near cues, least used anywhere, random among all. The first rule
    states how many of its heads are not used, if too few are.

    Exact changes rank before estimates of other heads: estimates of small effects are good, of large ones
    too small.
    """
    used = sorted(heads, key=_use)
    unused = sorted(heads, key=lambda one: (one.loss is None, max(abs(_loss(one)), abs(_near(one)))))
    keys = [(one.layer, one.head) for one in heads]
    harmful = sum(_near(one) <= 0 for one in used[:count])
    but = f"; but not without {harmful} of these, as that of no other head rises" if harmful else ""
    picked = random.Random(f"{seed}").sample(keys, min(count, len(keys)))
    rules = (
        (
            "chosen-most-used",
            "most used near cues: the loss there rises most without them" + but,
            _keys(used[:count]),
        ),
        (
            "chosen-least-used",
            "least used anywhere: the loss changes least without them",
            _keys(unused[:count]),
        ),
        ("chosen-random", f"random, seed {seed}", sorted(picked)),
    )
    return tuple(ChosenHeads(name, rule, tuple(found)) for name, rule, found in rules)


def _keys(heads: Sequence[HeadProfile]) -> list[tuple[int, int]]:
    return sorted((one.layer, one.head) for one in heads)


def _use(one: HeadProfile) -> tuple[int, float]:
    """Sort key: exact rises first, then estimated ones, then heads without which the loss falls."""
    group = 2 if _near(one) <= 0 else int(one.near is None)
    return group, -_near(one)


def _near(one: HeadProfile) -> float:
    return one.near if one.near is not None else one.near_estimate


def _loss(one: HeadProfile) -> float:
    return one.loss if one.loss is not None else one.loss_estimate


def guidance_of(record: ProfileRecord, chosen: ChosenHeads) -> dict[str, Any]:
    """A run's `guidance` section that guides the chosen heads to the profile's pattern."""
    plan = [
        {"pattern": record.pattern, "heads": heads, "layers": [layer]}
        for layer, heads in grouped(chosen.heads).items()
    ]
    section: dict[str, Any] = {"mode": record.mode, "plan": plan}
    lexicons = record.settings.get("lexicons")
    return section | ({"lexicons": lexicons} if lexicons else {})


def write_plan(folder: Path, record: ProfileRecord) -> None:
    """Write plan.yaml: experiment → `guidance` section, for a study's `chosen` and for `gaguide ablate`."""
    head = f"# Heads of {record.name} for {record.pattern}, chosen by gaguide heads profile.\n"
    text = record.settings.get("text_fingerprint")
    model = {PROFILED: {"model": record.model, "text": text, **record.identity}}
    parts = [head, yaml.safe_dump(model, sort_keys=False, allow_unicode=True)]
    for chosen in record.chosen:
        text = yaml.safe_dump({chosen.name: guidance_of(record, chosen)}, sort_keys=False, allow_unicode=True)
        parts.append(f"# {chosen.rule}\n{text}")
    write_text(folder / FILE, "\n".join(parts))
