"""The records of a head profile, and profile.json, which holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaguide.files import write_json
from gaguide.numbers import fixed

FILE = "profile.json"


@dataclass(frozen=True)
class HeadProfile:
    """One head."""

    layer: int
    """Layer, counted from 0."""
    head: int
    """Head in the layer, counted from 0."""
    mass: float | None
    """Attention on the pattern's targets, over queries that see one; None where none sees one."""
    target_norm: float | None
    """Attention-weighted norm of its output from the targets; None where the projection is not known."""
    output_norm: float | None
    """Mean norm of its contribution to the residual stream."""
    first: float
    """Mean attention on the first token."""
    previous: float
    """Mean attention on the token before."""
    same: float
    """Mean attention on the query's own token."""
    induction: float
    """Attention on the token after the query's earlier occurrence, in repeated random tokens."""
    copying: float | None
    """How far a key's value raises the key's own token, in standard deviations over tokens."""
    type: str
    """Name of its behaviour: first-token sink, previous token, self, induction, copying, other."""
    near_estimate: float
    """Estimated change of the loss per token near cues without the head (attribution patching)."""
    loss_estimate: float
    """The same over all tokens."""
    near: float | None
    """Exact change near cues with the head replaced by its mean; None where it was not removed."""
    near_low: float | None
    """Lower end of its 95% interval over blocks."""
    near_high: float | None
    """Upper end of its 95% interval over blocks."""
    loss: float | None
    """Exact change over all tokens; None where it was not removed."""
    loss_low: float | None
    """Lower end of its 95% interval over blocks."""
    loss_high: float | None
    """Upper end of its 95% interval over blocks."""

    @property
    def displaces(self) -> str:
        """Largest of its present behaviours, which guiding would displace, and its cost."""
        places = {
            "the first token": self.first,
            "the token before": self.previous,
            "its own token": self.same,
        }
        place, share = max(places.items(), key=lambda pair: pair[1])
        where = f"{share:.0%} of its attention is on {place}" if share >= 0.2 else "its attention is spread"
        cost = self.loss if self.loss is not None else self.loss_estimate
        exact = "" if self.loss is not None else " (estimated)"
        return f"{where}; without it the loss changes by {fixed(cost, 4, '+')}{exact}"


@dataclass(frozen=True)
class ChosenHeads:
    """Heads that a rule chose."""

    name: str
    """Name as an experiment, `chosen-…`."""
    rule: str
    """The rule in words."""
    heads: tuple[tuple[int, int], ...]
    """(layer, head), ascending."""


@dataclass(frozen=True)
class ProfileRecord:
    """The profile of a model's heads for one pattern."""

    model: str
    """Folder or hub id."""
    name: str
    """Short name."""
    identity: Mapping[str, Any]
    """Hashes of its content."""
    pattern: str
    """Lexicon or pattern."""
    mode: str
    """Whether a lexicon's pieces or whole words are meant."""
    layers: int
    """Number of layers."""
    heads_per_layer: int
    """Number of heads in each."""
    loss: float | None
    """Held-out loss."""
    near_loss: float | None
    """Held-out loss near cues."""
    near_tokens: int
    """Predicted tokens near cues."""
    tokens: int
    """Predicted tokens."""
    agreement: float | None
    """Rank correlation (Spearman) of estimate and exact change near cues, over the removed heads."""
    heads: tuple[HeadProfile, ...]
    """Every head, ascending."""
    chosen: tuple[ChosenHeads, ...]
    """Choices by rule."""
    settings: Mapping[str, Any]
    """Text and settings."""
    versions: Mapping[str, str]
    """Versions and the fingerprint of the code."""
    notes: tuple[str, ...] = ()
    """Notes for the reader of the numbers."""


def write_profile(folder: Path, record: ProfileRecord) -> None:
    """Write profile.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, asdict(record))
