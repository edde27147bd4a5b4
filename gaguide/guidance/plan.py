"""The guidance plan: the patterns of heads in layers, and how their loss is computed.

`GuidancePlan.from_experiment` gives the study's experiments; `resolve` checks a plan against a model's shape.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from gaguide.config.experiments import EXPERIMENTS
from gaguide.config.run import default_weight
from gaguide.errors import Fault, FaultCollector, UserError, not_one_of, suggestion
from gaguide.guidance.lexicon import Mode, get_lexicon
from gaguide.guidance.patterns import Pattern, TokenSet, innermost, needed_marks
from gaguide.guidance.words import MATCHING, WordSet

Reduction = Literal["mean", "frobenius"]
Loss = Literal["squared", "log-mass", "kl", "hinge", "avoid"]
TargetKind = Literal["indicator", "normalized"]
Layers = Literal["all", "last-half"] | tuple[int, ...]

DEFAULT_WEIGHT = default_weight("squared")
"""Weight for `mean` and `indicator`; docs/guidance.md reports the measurement behind it."""
DEFAULT_THRESHOLD = 0.5
"""Threshold of the loss `hinge`."""


@dataclass(frozen=True)
class Assignment:
    """One pattern for some heads of some layers."""

    pattern: Pattern
    """Pattern that the heads should attend to."""
    heads: tuple[int, ...]
    """Heads within each of the layers."""
    layers: Layers = "all"
    """Layer indices, `all`, or `last-half`."""
    weight: float = 1.0
    """Factor of these heads' loss within the plan."""


@dataclass(frozen=True)
class GuidedHead:
    """One head of a plan that was resolved for a model."""

    pattern: Pattern
    """Pattern that the head should attend to."""
    weight: float
    """Factor of the head's loss within the plan."""


@dataclass(frozen=True)
class GuidancePlan:
    """Patterns assigned to heads, and how their loss is computed."""

    assignments: tuple[Assignment, ...]
    """Patterns of heads; each head at most once."""
    reduction: Reduction = "mean"
    """`frobenius` is Eq. (2), the sum over a sequence; `mean` divides it by the number of visible query-key
    pairs. Both average over the sequences of a batch."""
    target: TargetKind = "indicator"
    """`indicator` is Eq. (3); `normalized` divides a row by its number of visible targets and excludes rows
    without one."""
    weight: float = None  # type: ignore[assignment]
    """Factor of the whole guidance loss, which is added to the language-model loss; by default that of the
    loss: 3 for `squared`, 0.03 for `avoid`, 0.01 for the others."""
    name: str = "custom"
    """Name of the experiment, in records."""
    loss: Loss = "squared"
    """`squared` is the study's Eq. (2). docs/guidance.md defines the others, which
    have no `reduction` and no `target`: each averages over the rows that see a target."""
    threshold: float = DEFAULT_THRESHOLD
    """Attention mass at which the loss `hinge` becomes zero, in (0, 1]."""

    def __post_init__(self) -> None:
        if self.weight is None:
            object.__setattr__(self, "weight", default_weight(self.loss))
        with FaultCollector() as faults:
            for field, kind in (("loss", Loss), ("reduction", Reduction), ("target", TargetKind)):
                if (value := getattr(self, field)) not in get_args(kind):
                    faults.add(not_one_of(f"guidance.{field}", value, get_args(kind)))
            if self.loss != "squared" and (self.reduction, self.target) != ("mean", "indicator"):
                problem = f"has no reduction and no target: it averages over rows, but {self.reduction} and "
                problem += f"{self.target} were given"
                faults.add(Fault("guidance.loss", problem, "leave them out, or use squared", self.loss))
            for layers in (one.layers for one in self.assignments):
                if isinstance(layers, str) and layers not in ("all", "last-half"):
                    faults.add(not_one_of("guidance.layers", layers, ("all", "last-half")))
            for weight in (self.weight, *(one.weight for one in self.assignments)):
                if not (weight >= 0 and math.isfinite(weight)):
                    problem, remedy = "must be a finite number from 0 on", "to look away, use the loss avoid"
                    faults.add(Fault("guidance.weight", problem, remedy, weight))
            if not 0 < self.threshold <= 1:
                problem, remedy = "must be more than 0 and at most 1", "give an attention mass, such as 0.5"
                faults.add(Fault("guidance.threshold", problem, remedy, self.threshold))

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
        """The study's experiment `name`: head j attends to pattern j in every layer (or in `layers`).

        mode: `pieces` as the study lists them, or whole `words` (docs/guidance.md). Raises `UserError` for an
        unknown name and for a vocabulary without any piece of a lexicon.
        """
        if name not in EXPERIMENTS:
            raise UserError.of(
                "guidance.experiment", "unknown experiment", suggestion(name, EXPERIMENTS), name
            )
        patterns = {lexicon: get_lexicon(lexicon).pattern(tokenizer, mode) for lexicon in EXPERIMENTS[name]}
        assignments = tuple(
            Assignment(patterns[lexicon], (head,), layers) for head, lexicon in enumerate(EXPERIMENTS[name])
        )
        return cls(assignments, reduction, target, weight, name)

    def patterns(self) -> list[list[Any]]:
        """Every assignment with its pattern's content (token ids or words) as plain JSON, for a run's
        identity."""
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

    def entries(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
        """By pattern, its words or vocabulary pieces, for people; empty where it is not a list of words."""
        found: dict[str, list[str]] = {}
        for pattern in (a.pattern for a in self.assignments):
            inner = innermost(pattern)
            if isinstance(inner, TokenSet):
                found[pattern.name] = list(tokenizer.convert_ids_to_tokens(sorted(inner.token_ids)))
            else:
                found[pattern.name] = list(inner.words) if isinstance(inner, WordSet) else []
        return found

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of the data's marks that its patterns need."""
        return tuple(dict.fromkeys(name for one in self.assignments for name in needed_marks(one.pattern)))

    @property
    def is_empty(self) -> bool:
        """Whether no head is guided (plain fine-tuning)."""
        return not self.assignments

    def restricted_to(self, attention_layers: Collection[int], n_layers: int) -> GuidancePlan:
        """The plan for a model in which only `attention_layers` have causal self-attention.

        In it `all` and `last-half` name those layers. Raises a `UserError` for a layer without attention that
        is named by its index. Where all layers have attention it is the same plan.
        """
        without = set(range(n_layers)) - set(attention_layers)
        if not without:
            return self
        assignments = []
        with FaultCollector() as faults:
            for assignment in self.assignments:
                layers = _layers(assignment.layers, n_layers)
                if not isinstance(assignment.layers, str):
                    remedy = f"choose from {', '.join(map(str, sorted(attention_layers)))}"
                    problem = "the layer has no causal self-attention"
                    faults.add(
                        *(Fault("guidance.layers", problem, remedy, i) for i in layers if i in without)
                    )
                assignments.append(replace(assignment, layers=tuple(i for i in layers if i not in without)))
        return replace(self, assignments=tuple(assignments))

    def resolve(self, n_layers: int, n_heads: int) -> dict[tuple[int, int], GuidedHead]:
        """(layer, head) → guided head for a model of this shape, ascending.

        Raises a `UserError` with every fault: layers and heads out of range, heads assigned twice, no head.
        """
        heads: dict[tuple[int, int], GuidedHead] = {}
        with FaultCollector() as faults:
            for assignment in self.assignments:
                layers = _layers(assignment.layers, n_layers)
                faults.add(*_out_of_range("guidance.layers", layers, n_layers, "layers"))
                faults.add(*_out_of_range("guidance.heads", assignment.heads, n_heads, "heads in each layer"))
                for key in ((layer, head) for layer in layers for head in assignment.heads):
                    if key in heads:
                        problem = (
                            f"layer {key[0]} head {key[1]} is guided to both {heads[key].pattern.name!r} "
                            f"and {assignment.pattern.name!r}"
                        )
                        faults.add(Fault("guidance", problem, "give each head one pattern"))
                    heads[key] = GuidedHead(assignment.pattern, assignment.weight)
            if not heads and not faults:
                problem, remedy = "selects no head of any layer", "name at least one layer and one head"
                faults.add(Fault("guidance", problem, remedy))
        return dict(sorted(heads.items()))


def _content(pattern: Pattern) -> list[Any]:
    inner = innermost(pattern)
    if isinstance(inner, TokenSet):
        return sorted(inner.token_ids)
    return [MATCHING, *inner.words] if isinstance(inner, WordSet) else []


def _layers(layers: Layers, n_layers: int) -> tuple[int, ...]:
    if layers == "all":
        return tuple(range(n_layers))
    if layers == "last-half":
        return tuple(range(n_layers // 2, n_layers))
    return tuple(layers)


def _out_of_range(field: str, indices: Iterable[int], size: int, what: str) -> list[Fault]:
    return [
        Fault(field, f"the model has {size} {what}", f"choose from 0 to {size - 1}", index)
        for index in indices
        if not 0 <= index < size
    ]
