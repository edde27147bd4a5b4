"""Panels: one head's map for one model, cut to a window of the text, with its guided words found.

Shapes: Q shown query rows, K shown key columns, T positions of the whole text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gaguide.attention.collect import AttentionMaps
from gaguide.errors import Fault, UserError
from gaguide.guidance import Columns, Pattern

MAX_TOKENS = 64
"""More rows than this can't be read in one picture."""
EARLIER = "(earlier)"


@dataclass(frozen=True)
class Panel:
    """What is drawn for one head.

    weights_QK: fp32 attention. With a window that starts after the first token, column 0 is the sum over
        all earlier keys, labelled `EARLIER`, so that rows still add up to 1.
    guided_QK: bool, cells that the head's pattern wants looked at; all False where it has none.
    guided_keys: indices of columns that are guided for every query (a word set), marked on the axes.
    mass: attention on the targets, averaged over the shown queries that can see one; None without any.
    """

    model: str
    layer: int
    head: int
    query_labels: tuple[str, ...]
    key_labels: tuple[str, ...]
    weights_QK: torch.Tensor
    guided_QK: torch.Tensor
    guided_keys: frozenset[int]
    pattern: str | None
    mass: float | None

    @property
    def first_key(self) -> int:
        """Column of the window's first token (1 where column 0 is `EARLIER`)."""
        return len(self.key_labels) - len(self.query_labels)


def make_panels(
    model: str,
    maps: AttentionMaps,
    ids_T: torch.Tensor,
    labels: Sequence[str],
    patterns: Mapping[tuple[int, int], Pattern] | None = None,
) -> list[Panel]:
    """A panel for every collected layer and head of a text with token ids `ids_T` (int64).

    patterns: (layer, head) → pattern of guided heads. Raises `UserError` if more than `MAX_TOKENS` query
    rows were collected.
    """
    start, stop = maps.queries
    check_window(len(ids_T), (start, stop))
    panels = []
    for layer in maps.layers:
        for head in maps.heads:
            pattern = (patterns or {}).get((layer, head))
            map_QT = maps.head(layer, head)
            target_QT, marked_T = _targets(pattern, ids_T, start, stop)
            # Of the earlier keys only some are targets, so their common column is not marked as one.
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
    """Mean over queries that see a target of the attention on targets, in [0, 1]; None if none sees one."""
    sees_Q = target_QT.any(-1)
    if not sees_Q.any():
        return None
    return float((map_QT * target_QT).sum(-1)[sees_Q].mean())


def check_window(tokens: int, window: tuple[int, int] | None) -> None:
    """Refuse a text or window that no picture can show readably."""
    start, stop = window or (0, tokens)
    if stop - start > MAX_TOKENS:
        raise UserError(
            Fault(
                "--window",
                f"{stop - start} of the text's {tokens} tokens to show, but at most {MAX_TOKENS} can be read",
                f"choose a part of it, e.g. --window {start}:{start + MAX_TOKENS}",
            )
        )


def _targets(
    pattern: Pattern | None, ids_T: torch.Tensor, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal target cells [Q, T] of the rows start..stop, and keys [T] that are targets of all queries."""
    T = len(ids_T)
    cells, marked_T = torch.zeros(T, T, dtype=torch.bool), torch.zeros(T, dtype=torch.bool)
    if pattern is not None:
        target = pattern.target(ids_T[None].cpu())
        if isinstance(target, Columns):
            marked_T = target.marked_BT[0]
            cells = marked_T[None].expand(T, T).tril()
        elif target.distance < T:
            cells.diagonal(-target.distance).fill_(True)
    return cells[start:stop], marked_T


def _cut(map_QT: torch.Tensor, start: int, stop: int, fold: object) -> torch.Tensor:
    """Columns start..stop, with all earlier ones folded into one in front."""
    shown = map_QT[:, start:stop]
    if start == 0:
        return shown
    earlier = fold(map_QT[:, :start], -1, keepdim=True)  # type: ignore[operator]
    return torch.cat([earlier, shown], -1)
