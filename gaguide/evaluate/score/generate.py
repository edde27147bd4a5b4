"""Greedy continuations of prompts, for tasks whose answer is a number.

Legend: B prompts, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from gaguide.evaluate.schedule.rows import Row


def generate(model: Any, device: torch.device, rows: Sequence[Row]) -> dict[tuple[int, int], float]:
    """Ids of the most probable next tokens of each row, one at a time, one for each of the row's readouts.

    Prompts are padded on the left, so that all continue at the same position of the batch. NaN in place of an
    id where the largest logit is not finite: there is no most probable token.
    """
    longest = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    for at, row in enumerate(rows):
        ids_BT[at, longest - len(row) :] = torch.tensor(row.token_ids)
        mask_BT[at, longest - len(row) :] = 1
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    head, past = model.get_output_embeddings(), None
    chosen: list[torch.Tensor] = []
    is_finite: list[torch.Tensor] = []
    for _ in range(max(len(row.readouts) for row in rows)):
        out = model.base_model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=past,
            use_cache=True, return_dict=True,
        )  # fmt: skip
        logits_BV = head(out.last_hidden_state[:, -1])
        largest_B, most_probable_B = logits_BV.max(-1)  # NaN counts as the largest
        chosen.append(most_probable_B)
        is_finite.append(largest_B.isfinite())
        ids_BT, past = chosen[-1][:, None], out.past_key_values
        mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
        positions_BT = positions_BT[:, -1:] + 1
    ids, finite = torch.stack(chosen, 1).tolist(), torch.stack(is_finite, 1).tolist()
    return {
        readout.key: float(token) if known else math.nan
        for row, *found in zip(rows, ids, finite, strict=True)
        for readout, token, known in zip(row.readouts, *found, strict=False)
    }
