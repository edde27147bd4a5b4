"""Where a text's tokens lie relative to its cues, the tokens that a pattern marks: on one, or how far after.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import torch

BANDS = ("on", "1-5", "6-20", "rest")
"""Bands of a token's distance to the last cue: the cue itself, 1 to 5 tokens after it, 6 to 20, and tokens
further away or before the first cue."""
NEAR = ("on", "1-5", "6-20")
"""Bands near a cue."""
_LAST = (0, 5, 20)  # largest distance of the first three bands


def cue_distances(marked_BT: torch.Tensor, document_BT: torch.Tensor | None = None) -> torch.Tensor:
    """Tokens since the last cue [B, T], int64: 0 on a cue, -1 where none came before.

    marked_BT: bool, True on cues. document_BT: the index of each token's document, where a cue of an earlier
    document does not count; None counts every earlier cue of the sequence.
    """
    T = marked_BT.shape[1]
    at_T = torch.arange(T, device=marked_BT.device)
    last_BT = torch.where(marked_BT, at_T, -1).cummax(-1).values
    found_BT = last_BT >= 0
    if document_BT is not None:
        found_BT &= document_BT.gather(1, last_BT.clamp(min=0)) == document_BT
    return torch.where(found_BT, at_T - last_BT, -1)


def cue_bands(marked_BT: torch.Tensor, document_BT: torch.Tensor | None = None) -> torch.Tensor:
    """The index in `BANDS` of each token [B, T], int64; arguments as of `cue_distances`.

    A loss belongs to the band of the token that is predicted: "on" is the loss of predicting the cue.
    """
    distance_BT = cue_distances(marked_BT, document_BT)
    bounds = torch.tensor(_LAST, device=marked_BT.device)
    return torch.where(distance_BT < 0, len(_LAST), torch.bucketize(distance_BT, bounds))
