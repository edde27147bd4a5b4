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
from gaguide.errors import Fault, UserError
from gaguide.guidance import Pattern

Window = tuple[int, int]


def split(tokens: int, size: int = MAX_TOKENS) -> list[Window]:
    """The whole text as windows [start, stop) whose sizes differ by at most one and are at most `size`."""
    count = max(1, -(-tokens // size))
    edges = [round(tokens * at / count) for at in range(count + 1)]
    return list(itertools.pairwise(edges))


def first_read(window: Window, positions: int | None) -> int:
    """The first token that a model with so many positions (None: unlimited) reads to show this window."""
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
    if not 0 <= window[0] < window[1] <= len(ids_T):
        problem = f"the text has {len(ids_T)} tokens"
        raise UserError(
            Fault("--window", problem, f"choose a start and a stop within 0 to {len(ids_T)}", window)
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    first = first_read(window, positions)
    read_T = ids_T[first : window[1]]
    rows = (window[0] - first, window[1] - first)
    maps = collect(model, read_T[None], layers, heads, queries=rows)
    return make_panels(name, maps, read_T, labels[first : window[1]], patterns)
