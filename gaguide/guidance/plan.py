"""The guidance plan: which heads of which layers look at what, and how the loss counts it.

`GuidancePlan.from_experiment` gives the study's experiments; `resolve` checks a plan against a model's shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from gaguide.config import GuidanceSection
from gaguide.config.experiments import EXPERIMENTS
from gaguide.errors import Fault, UserError, suggestion
from gaguide.guidance.lexicon import Mode, get_lexicon
from gaguide.guidance.patterns import Pattern, TokenSet
from gaguide.guidance.words import WordSet

Reduction = Literal["mean", "frobenius"]
TargetKind = Literal["indicator", "normalized"]
Layers = Literal["all", "last-half"] | tuple[int, ...]

DEFAULT_WEIGHT = GuidanceSection().weight
"""For `mean` and `indicator`; docs/guidance.md has the measurement that decided it."""


@dataclass(frozen=True)
class Assignment:
    """One pattern for some heads of some layers; `weight` multiplies the plan's weight."""

    pattern: Pattern
    heads: tuple[int, ...]
    layers: Layers = "all"
    weight: float = 1.0


@dataclass(frozen=True)
class GuidedHead:
    """What one resolved head looks at, and the factor of its loss within the plan."""

    pattern: Pattern
    weight: float


@dataclass(frozen=True)
class GuidancePlan:
    """Assignments with how their loss is counted.

    reduction: `frobenius` is Eq. (2), summed over a sequence; `mean` divides by its visible query-key pairs.
        Both average over the sequences of a batch.
    target: `indicator` is Eq. (3); `normalized` divides a row by its number of visible targets and leaves
        out rows that have none.
    weight: factor of the whole guidance loss beside the language-model loss.
    """

    assignments: tuple[Assignment, ...]
    reduction: Reduction = "mean"
    target: TargetKind = "indicator"
    weight: float = DEFAULT_WEIGHT
    name: str = "custom"

    @classmethod
    def from_experiment(
        cls,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mode: Mode = "pieces",
        layers: Layers = "all",
        reduction: Reduction = "mean",
        target: TargetKind = "indicator",
        weight: float = DEFAULT_WEIGHT,
    ) -> GuidancePlan:
        """The study's experiment `name`: head j looks at pattern j in every layer (or in `layers`).

        mode: `pieces` as the study lists them, or whole `words` (docs/guidance.md).
        """
        if name not in EXPERIMENTS:
            raise UserError(
                Fault("guidance.experiment", "no such experiment", suggestion(name, EXPERIMENTS), name)
            )
        patterns = {lexicon: get_lexicon(lexicon).pattern(tokenizer, mode) for lexicon in EXPERIMENTS[name]}
        assignments = tuple(
            Assignment(patterns[lexicon], (head,), layers) for head, lexicon in enumerate(EXPERIMENTS[name])
        )
        return cls(assignments, reduction, target, weight, name)

    def patterns(self) -> list[list[Any]]:
        """Every assignment with what its pattern really looks at, as plain JSON (for a run's identity)."""
        return [
            [
                a.pattern.name,
                _content(a.pattern),
                list(a.heads),
                a.layers if isinstance(a.layers, str) else list(a.layers),
                a.weight,
            ]
            for a in self.assignments
        ]

    @property
    def is_empty(self) -> bool:
        """True where no head is guided (plain fine-tuning)."""
        return not self.assignments

    def with_weight(self, weight: float) -> GuidancePlan:
        """The same plan under another overall weight."""
        return replace(self, weight=weight)

    def resolve(self, n_layers: int, n_heads: int) -> dict[tuple[int, int], GuidedHead]:
        """(layer, head) → guided head, for a model of this shape; every fault of the plan at once."""
        faults: list[Fault] = []
        heads: dict[tuple[int, int], GuidedHead] = {}
        for assignment in self.assignments:
            layers = _layers(assignment.layers, n_layers)
            faults += _outside("guidance.layers", layers, n_layers, "layers")
            faults += _outside("guidance.heads", assignment.heads, n_heads, "heads in each layer")
            for key in ((layer, head) for layer in layers for head in assignment.heads):
                if key in heads:
                    faults.append(
                        Fault(
                            "guidance",
                            f"layer {key[0]} head {key[1]} is guided to both {heads[key].pattern.name!r} "
                            f"and {assignment.pattern.name!r}",
                            "give each head one pattern",
                        )
                    )
                heads[key] = GuidedHead(assignment.pattern, assignment.weight)
        if not heads and not faults:
            faults.append(
                Fault("guidance", "selects no head of any layer", "name at least one layer and one head")
            )
        if faults:
            raise UserError(faults)
        return dict(sorted(heads.items()))


def _content(pattern: Pattern) -> list[Any]:
    if isinstance(pattern, TokenSet):
        return sorted(pattern.token_ids)
    return list(pattern.words) if isinstance(pattern, WordSet) else []


def _layers(layers: Layers, n_layers: int) -> tuple[int, ...]:
    if layers == "all":
        return tuple(range(n_layers))
    if layers == "last-half":
        return tuple(range(n_layers // 2, n_layers))
    return tuple(layers)


def _outside(field: str, indices: Iterable[int], size: int, what: str) -> list[Fault]:
    return [
        Fault(field, f"the model has {size} {what}", f"choose from 0 to {size - 1}", index)
        for index in indices
        if not 0 <= index < size
    ]
