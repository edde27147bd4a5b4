"""Panels: the map of one head of one model in a window of the text, with its guided words.

Shapes: Q shown query rows, K shown key columns, T positions of the whole text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gaguide.attention.collect import AttentionMaps
from gaguide.errors import UserError
from gaguide.guidance import Columns, Pattern

HIDDEN = "#ECECEC"
"""Colour of cells that a query cannot see."""
MAX_TOKENS = 64
"""Most query rows of a panel; more are not legible in one picture."""
EARLIER = "(earlier)"
"""Label of the column that sums up all keys before the window."""


@dataclass(frozen=True)
class Panel:
    """One head's attention, ready to be drawn."""

    model: str
    """Display name of the model."""
    layer: int
    """Index of the layer."""
    head: int
    """Index of the head within the layer."""
    query_labels: tuple[str, ...]
    """Label of every row."""
    key_labels: tuple[str, ...]
    """Label of every column; the first is `EARLIER` if the window starts after the first token."""
    weights_QK: torch.Tensor
    """fp32 attention; the column `EARLIER` sums up all earlier keys, so that rows still add up to 1."""
    guided_QK: torch.Tensor
    """bool, cells that are targets of the head's pattern; all False without a pattern."""
    guided_keys: frozenset[int]
    """Columns that are targets of every query (a set of words), which are marked on the axes."""
    pattern: str | None
    """Name of the head's pattern."""
    mass: float | None
    """Attention on the targets, averaged over the shown queries that can see one; None without any."""

    @property
    def visible(self) -> np.ma.MaskedArray:
        """[Q, K]: `weights_QK` with cells that a causal query cannot see masked out."""
        hidden = np.triu(np.ones(self.weights_QK.shape, bool), self.first_key + 1)
        return np.ma.masked_array(self.weights_QK.numpy(), hidden)

    @property
    def first_key(self) -> int:
        """Column of the window's first token: 1 if column 0 is `EARLIER`, else 0."""
        return len(self.key_labels) - len(self.query_labels)


def make_panels(
    model: str,
    maps: AttentionMaps,
    ids_T: torch.Tensor,
    labels: Sequence[str],
    patterns: Mapping[tuple[int, int], Pattern] | None = None,
) -> list[Panel]:
    """A panel for every collected layer and head of a text with token ids `ids_T` (int64).

    labels: one per token of the text. patterns: (layer, head) → pattern of guided heads. Raises `UserError`
    if more than `MAX_TOKENS` query rows were collected.
    """
    start, stop = maps.queries
    check_window(len(ids_T), (start, stop))
    panels = []
    for layer in maps.layers:
        for head in maps.heads:
            pattern = (patterns or {}).get((layer, head))
            map_QT = maps.head(layer, head)
            target_QT, marked_T = _targets(pattern, ids_T, start, stop)
            # The column of earlier keys counts as a target only if all of them are targets.
            guided_QK = _cut(target_QT, start, stop, torch.all)
            keys = (EARLIER,) * (start > 0) + tuple(labels[start:stop])
            columns = torch.nonzero(_cut(marked_T[None], start, stop, torch.all)[0]).flatten().tolist()
            panels.append(
                Panel(
                    model,
                    layer,
                    head,
                    tuple(labels[start:stop]),
                    keys,
                    _cut(map_QT, start, stop, torch.sum),
                    guided_QK,
                    frozenset(columns),
                    pattern.name if pattern else None,
                    attention_mass(map_QT, target_QT),
                )
            )
    return panels


def attention_mass(map_QT: torch.Tensor, target_QT: torch.Tensor) -> float | None:
    """Attention on targets in [0, 1], averaged over the queries that see a target; None if no query does."""
    sees_Q = target_QT.any(-1)
    if not sees_Q.any():
        return None
    return float((map_QT * target_QT).sum(-1)[sees_Q].mean())


def check_window(tokens: int, window: tuple[int, int] | None) -> None:
    """Raise `UserError` for a text or window with more than `MAX_TOKENS` tokens to show."""
    start, stop = window or (0, tokens)
    if stop - start > MAX_TOKENS:
        raise UserError.of(
            "--window",
            f"{stop - start} of the text's {tokens} tokens to show, but at most {MAX_TOKENS} are legible",
            f"choose a part of it, e.g. --window {start}:{start + MAX_TOKENS}",
        )


def _targets(
    pattern: Pattern | None, ids_T: torch.Tensor, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal target cells [Q, T] of the rows start..stop, and keys [T] that are targets of all queries."""
    T = len(ids_T)
    cells, marked_T = torch.zeros(stop - start, T, dtype=torch.bool), torch.zeros(T, dtype=torch.bool)
    if pattern is not None:
        target = pattern.target(ids_T[None].cpu())
        if isinstance(target, Columns):
            marked_T = target.marked_BT[0]
            cells = marked_T[None].expand(stop - start, T).tril(start)
        else:
            rows = torch.arange(max(start, target.distance), stop)
            cells[rows - start, rows - target.distance] = True
    return cells, marked_T


def _cut(map_QT: torch.Tensor, start: int, stop: int, fold: object) -> torch.Tensor:
    """Columns start..stop, after one column into which `fold` reduces all earlier ones."""
    shown = map_QT[:, start:stop]
    if start == 0:
        return shown
    earlier = fold(map_QT[:, :start], -1, keepdim=True)  # type: ignore[operator]
    return torch.cat([earlier, shown], -1)
