"""Which heads are removed: the guided ones, random unguided ones of the same layers, or all. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gaguide.ablate.records import Role
from gaguide.grouping import grouped
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
    """Pattern that defines its cues."""
    controls: tuple[Key, ...] = ()
    """Controls of a guided head; empty for other heads."""

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
    layer with fewer unguided heads gives all of them. The same seed gives the same controls, whatever
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
    """Sets of heads that are also removed at once: the guided ones, and equally many others of their layers.

    Each guided head has the first of its controls that no other has, else another unguided subject of its
    layer. Without `controls` where a layer has too few: fewer heads would be compared with more. Empty for a
    single guided head, which is its own set.
    """
    guided = [one for one in subjects if one.role == "guided"]
    if len(guided) < 2:
        return {}
    free = {one.key: one for one in subjects if one.role != "guided"}
    controls = []
    for one in guided:
        here = [*one.controls, *(key for key in free if key[0] == one.layer)]
        key = next((key for key in here if key in free), None)
        if key is None:
            return {"guided": guided}
        controls.append(free.pop(key))
    return {"guided": guided, "controls": controls}


def count_passes(subjects: Sequence[Subject], layers: int, methods: int) -> tuple[float, int]:
    """Cost of `measure_text` for a batch: (passes over all `layers`, passes over the output layer).

    One pass without an intervention; for each of `methods` and each removal, the layers from its head's on.
    """
    starts = [one.layer for one in subjects]
    starts += [min(one.layer for one in some) for some in together(subjects).values()]
    return 1 + methods * sum((layers - at) / layers for at in starts), 1 + methods * len(starts)


def by_layer(subjects: Sequence[Subject]) -> dict[int, list[Subject]]:
    """Layer → its subjects, ascending."""
    return grouped((one.layer, one) for one in sorted(subjects, key=lambda one: one.key))
