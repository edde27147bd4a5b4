"""Long texts in windows: the tokens that a view shows at a time, and the tokens that the model reads for
them.

A view shows at most `MAX_TOKENS` query rows. The model reads as many of the tokens before them as it has
positions for, so a text may be longer than the model's limit. Tokens before that are invisible to the model,
and positions count from the first token it reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from gaguide.attention.collect import collect
from gaguide.attention.panels import MAX_TOKENS, Panel, make_panels
from gaguide.errors import UserError
from gaguide.guidance import Pattern

Window = tuple[int, int]
_MAX_NUMBERS = 128_000_000
"""Attention probabilities held at a time: half a gigabyte."""


def split(tokens: int, size: int = MAX_TOKENS) -> list[Window]:
    """The whole text as windows [start, stop) whose sizes differ by at most one and are at most `size`."""
    count = max(1, -(-tokens // size))
    edges = [round(tokens * at / count) for at in range(count + 1)]
    return list(itertools.pairwise(edges))


def first_read(window: Window, positions: int | None) -> int:
    """First token read to show this window by a model of so many positions (None: no limit)."""
    return 0 if positions is None else max(0, window[1] - positions)


def window_panels(
    name: str,
    model: PreTrainedModel,
    ids_T: torch.Tensor,
    labels: Sequence[str],
    window: Window,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    patterns: Mapping[tuple[int, int], Pattern] | None = None,
) -> list[Panel]:
    """A panel for each layer and head of one window, from one forward pass over the tokens up to its end.

    Raises `UserError` for a window that is not within the text, and the errors of `collect`.
    """
    return text_panels(name, model, ids_T, labels, [window], layers, heads, patterns)[0]


def text_panels(
    name: str,
    model: PreTrainedModel,
    ids_T: torch.Tensor,
    labels: Sequence[str],
    windows: Sequence[Window],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    patterns: Mapping[tuple[int, int], Pattern] | None = None,
) -> list[list[Panel]]:
    """The panels of each of several windows, in ascending order.

    Windows that the model reads from the same token on share a forward pass: one for a text within its
    positions, or a few where the maps of all of it would not fit into memory. Raises `UserError` for a window
    that is not within the text, and the errors of `collect`.
    """
    for window in windows:
        if not 0 <= window[0] < window[1] <= len(ids_T):
            problem = f"the text has {len(ids_T)} tokens"
            raise UserError.of(
                "--window", problem, f"choose a start and a stop within 0 to {len(ids_T)}", window
            )
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    n_maps = len(layers or range(config.num_hidden_layers)) * len(heads or range(config.num_attention_heads))
    panels = []
    for group in _groups(windows, positions, n_maps):
        first, stop = first_read(group[0], positions), group[-1][1]
        read_T = ids_T[first:stop]
        rows = (group[0][0] - first, stop - first)
        maps = collect(model, read_T[None], layers, heads, queries=rows)
        for start, end in group:
            part = maps.part((start - first, end - first))
            panels.append(make_panels(name, part, ids_T[first:end], labels[first:end], patterns))
    return panels


def _groups(windows: Sequence[Window], positions: int | None, n_maps: int) -> list[list[Window]]:
    """Windows that share a forward pass: read from the same token on, with maps of at most `_MAX_NUMBERS`."""
    groups: list[list[Window]] = []
    for window in windows:
        group = groups[-1] if groups else [window]
        same_start = first_read(group[0], positions) == first_read(window, positions)
        first = first_read(window, positions)
        numbers = n_maps * (window[1] - group[0][0]) * (window[1] - first)
        if groups and same_start and numbers <= _MAX_NUMBERS:
            group.append(window)
        else:
            groups.append([window])
    return groups
