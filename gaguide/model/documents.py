"""Attention inside the documents of packed blocks, without a mask of T × T.

The documents travel as the model's mask: one number per token, as a [B, 1, T, T] view without its memory.
transformers passes a mask of four dimensions to its layers unchanged, also to a layer that backward
recomputes. attention_hooks.py recognises it by its dtype, which no other mask has, and calls the model's
attention once for each document; on a GPU, torch's variable-length flash attention takes all at once.

Shapes: B sequences, H heads, G key/value heads, T positions, D head width, N tokens of all sequences.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from gaguide.model.attention_backends import Function

_DTYPE = torch.int32  # SDPA itself refuses such a mask
_LENGTHS, _DENSE = "_gaguide_lengths", "_gaguide_dense"  # values read from a mask, kept on it


def document_ids(positions_BT: torch.Tensor) -> torch.Tensor:
    """The document of each token, int32 [B, T] from 0; one starts where positions stop counting up by one."""
    begins_BT = positions_BT.diff(dim=-1, prepend=positions_BT[:, :1] - 1) != 1
    return begins_BT.cumsum(-1, dtype=_DTYPE)


def document_mask(document_BT: torch.Tensor) -> torch.Tensor:
    """Which keys each query may see, [B, 1, T, T] bool: those of its document that are not later."""
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril_()[:, None]


def documents_as_mask(document_BT: torch.Tensor) -> torch.Tensor:
    """The documents in the shape of a mask."""
    B, T = document_BT.shape
    return document_BT.to(_DTYPE).view(B, 1, 1, T).expand(B, 1, T, T)


def holds_documents(mask: Any) -> bool:
    """Whether a mask is one of `documents_as_mask`."""
    return isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.dtype == _DTYPE


def dense_mask(mask: torch.Tensor) -> torch.Tensor:
    """The Boolean mask that the documents represent; the same object every time."""
    found: torch.Tensor | None = getattr(mask, _DENSE, None)
    if found is None:
        found = document_mask(mask[:, 0, 0])
        setattr(mask, _DENSE, found)
    return found


def document_lengths(mask: torch.Tensor) -> list[int]:
    """Tokens of each document of all sequences, in order; read from the device once."""
    found: list[int] | None = getattr(mask, _LENGTHS, None)
    if found is None:
        document_BT = mask[:, 0, 0]
        begins_BT = torch.ones_like(document_BT, dtype=torch.bool)
        begins_BT[:, 1:] = document_BT.diff(dim=-1) != 0
        starts = begins_BT.flatten().nonzero().flatten().tolist()
        found = [end - start for start, end in zip(starts, [*starts[1:], begins_BT.numel()])]
        setattr(mask, _LENGTHS, found)
    return found


def by_document(backend: Function) -> Function:
    """SDPA as `backend` computes it, for masks that hold documents."""
    return partial(_attention, backend)


def _attention(
    backend: Function,
    module: Any,
    q_BHTD: torch.Tensor,
    k_BGTD: torch.Tensor,
    v_BGTD: torch.Tensor,
    mask: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    B, H, T, _ = q_BHTD.shape
    if q_BHTD.device.type != "cpu" and not _has_variable_length(q_BHTD, v_BGTD, kwargs.get("dropout", 0.0)):
        return backend(module, q_BHTD, k_BGTD, v_BGTD, dense_mask(mask), **kwargs)[0], None
    lengths = document_lengths(mask)
    q_NHD, k_NGD, v_NGD = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTD, k_BGTD, v_BGTD))
    if q_BHTD.device.type != "cpu":
        out_NHD = _flash(q_NHD, k_NGD, v_NGD, lengths, kwargs.get("scaling"))
    else:
        # `split` adds up gradients in one operation; a slice of each document would make zeros for each.
        parts = zip(*(x.split(lengths) for x in (q_NHD, k_NGD, v_NGD)))
        outs = [
            backend(module, *(x.transpose(0, 1)[None] for x in part), None, **kwargs)[0][0] for part in parts
        ]
        out_NHD = torch.cat(outs)
    return out_NHD.view(B, T, H, v_BGTD.shape[-1]), None


def _has_variable_length(q_BHTD: torch.Tensor, v_BGTD: torch.Tensor, dropout: float) -> bool:
    widths = {q_BHTD.shape[-1], v_BGTD.shape[-1]}
    fits = q_BHTD.dtype in (torch.float16, torch.bfloat16) and len(widths) == 1 and max(widths) <= 256
    return fits and dropout == 0 and _has_kernel(q_BHTD.device)


@cache
def _has_kernel(device: torch.device) -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401  # since torch 2.10
    except ImportError:
        return False
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _flash(
    q_NHD: torch.Tensor, k_NGD: torch.Tensor, v_NGD: torch.Tensor, lengths: list[int], scale: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ends = ends.to(q_NHD.device, non_blocking=True)
    groups = q_NHD.shape[1] // k_NGD.shape[1]
    if groups > 1:
        k_NGD, v_NGD = (x.repeat_interleave(groups, 1) for x in (k_NGD, v_NGD))
    out: Any = varlen_attn(
        q_NHD, k_NGD, v_NGD, ends, ends, max(lengths), max(lengths), scale=scale, window_size=(-1, 0)
    )
    return out
