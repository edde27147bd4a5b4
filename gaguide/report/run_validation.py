"""Measurements on held-out text in a run's records, and what they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gaguide.numbers import finite

T = TypeVar("T")


@dataclass(frozen=True)
class HeadMass:
    """Attention mass of one head on its pattern's targets."""

    layer: int
    """Layer, counted from 0."""
    head: int
    """Head in the layer, counted from 0."""
    pattern: str
    """Name of the pattern that the head is guided to or measured on."""
    attention: float | None
    """Mean attention mass in [0, 1]; None where no target was seen."""


@dataclass(frozen=True)
class Validation:
    """A measurement on held-out text."""

    lm_loss: float | None
    """Language-model loss in nats per token."""
    guided_attention: float | None
    """Attention mass on the guided words, mean over the guided heads."""
    per_head: tuple[HeadMass, ...]
    """Attention mass of each guided head."""
    blocks: int | None
    """Number of held-out blocks."""
    near_cue: Mapping[str, float] = field(default_factory=dict)
    """Band of distance after a cue → loss of the tokens in it; empty where it was not measured."""
    cues: str = ""
    """Name of the cues' lexicon."""
    cue_content: str = ""
    """Hash of the cues."""
    measure: str | None = None
    """Identifies the blocks; None in records of older versions."""
    near_cue_tokens: Mapping[str, int] = field(default_factory=dict)
    """Band → number of its tokens; empty where that was not recorded."""

    @property
    def heads(self) -> frozenset[tuple[int, int, str]]:
        """(layer, head, pattern) of the heads that `guided_attention` is the mean of."""
        return frozenset(
            (one.layer, one.head, one.pattern) for one in self.per_head if one.attention is not None
        )


def comparable(validations: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The validations on the blocks of the last one, of each step the last: a resume may change the text."""
    last = {record["step"]: record for record in validations
            if record.get("measure") == validations[-1].get("measure")}  # fmt: skip
    return tuple(last.values())


def read_validation(value: Any) -> Validation | None:
    """A measurement of summary.json; None where it was not made."""
    if not isinstance(value, Mapping):
        return None
    heads = [head for head in value.get("per_head") or () if isinstance(head, Mapping)]
    near_cue = mapping(value.get("near_cue"))
    return Validation(
        finite(value.get("lm_loss")),
        finite(value.get("guided_attention")),
        tuple(
            HeadMass(
                int(head["layer"]), int(head["head"]), str(head["pattern"]), finite(head.get("attention"))
            )
            for head in heads
            if {"layer", "head", "pattern"} <= head.keys()
        ),
        whole(value.get("blocks")),
        _bands(near_cue, "loss", finite),
        _cues(near_cue),
        str(near_cue.get("content", "")),
        text(value.get("measure")),
        _bands(near_cue, "tokens", whole),
    )


def _cues(near_cue: Mapping[str, Any]) -> str:
    """Name of the cues, with their mode where that is not whole words."""
    mode = near_cue.get("mode", "words")
    return str(near_cue.get("lexicon", "")) + ("" if mode == "words" else f" ({mode})")


def _bands(near_cue: Mapping[str, Any], name: str, number: Callable[[Any], T | None]) -> Mapping[str, T]:
    """Band → its number of this name, where it has one."""
    bands = mapping(near_cue.get("bands"))
    found = {str(band): number(mapping(one).get(name)) for band, one in bands.items()}
    return {band: value for band, value in found.items() if value is not None}


def mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def text(value: Any) -> str | None:
    """A value as text; None where there is none."""
    return None if value is None else str(value)


def whole(value: Any) -> int | None:
    """A finite number as an int; None for anything else."""
    number = finite(value)
    return None if number is None else int(number)
