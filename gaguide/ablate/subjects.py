"""Which heads are removed: the guided ones, random unguided ones of the same layers, or all. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gaguide.ablate.records import Role
from gaguide.guidance.patterns import Pattern
from gaguide.guidance.plan import GuidedHead

Key = tuple[int, int]
"""(layer, head)."""


@dataclass(frozen=True)
class Subject:
    """A head that is removed."""

    layer: int
    """Its layer."""
    head: int
    """Its index in the layer."""
    role: Role
    """Why it is removed."""
    pattern: Pattern
    """What its cues are."""
    controls: tuple[Key, ...] = ()
    """Of a guided head: its controls."""

    @property
    def key(self) -> Key:
        """(layer, head)."""
        return self.layer, self.head


def choose_subjects(
    guided: Mapping[Key, GuidedHead],
    layers: Collection[int],
    n_heads: int,
    controls: int,
    seed: int,
    every: bool,
) -> list[Subject]:
    """Guided heads, `controls` random unguided heads for each, of its layer, and with `every` all others.

    A head is a subject once; one that is the control of several guided heads has the pattern of the first. A
    layer with fewer unguided heads gives as many as it has. The same seed gives the same controls, whatever
    the model.
    """
    subjects: dict[Key, Subject] = {}
    for (layer, head), target in sorted(guided.items()):
        free = [other for other in range(n_heads) if (layer, other) not in guided]
        rng = random.Random(f"{seed} {layer} {head}")
        chosen = tuple((layer, other) for other in sorted(rng.sample(free, min(controls, len(free)))))
        subjects[layer, head] = Subject(layer, head, "guided", target.pattern, chosen)
        for key in chosen:
            subjects.setdefault(key, Subject(*key, "control", target.pattern))
    if every:
        pattern = next(iter(guided.values())).pattern
        for key in ((layer, head) for layer in layers for head in range(n_heads)):
            subjects.setdefault(key, Subject(*key, "other", pattern))
    return [subjects[key] for key in sorted(subjects)]


def together(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Sets of heads that are also removed at once: the guided ones, and the first control of each.

    Empty for a single guided head, which is its own set.
    """
    guided = [one for one in subjects if one.role == "guided"]
    known = {one.key: one for one in subjects}
    controls = {one.controls[0]: None for one in guided if one.controls}
    found = {"guided": guided, "controls": [known[key] for key in controls]}
    return {name: some for name, some in found.items() if some} if len(guided) > 1 else {}


def by_layer(subjects: Sequence[Subject]) -> dict[int, list[Subject]]:
    """Layer → its subjects, ascending."""
    found: dict[int, list[Subject]] = {}
    for subject in sorted(subjects, key=lambda one: one.key):
        found.setdefault(subject.layer, []).append(subject)
    return found
