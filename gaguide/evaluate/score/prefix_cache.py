"""Keys and values of a prefix, computed once and put before those of every batch that begins with it.

They are recorded from torch's attention and inserted there, so that the model's own cache class does not
matter: the model gets the tokens after the prefix with their positions, and a mask of these tokens alone.
Legend: B rows, H heads, T tokens after the prefix, P tokens of the prefix, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from gaguide.evaluate.score.causal import AttentionOverride


class PrefixCache:
    """The keys and values of `token_ids`: one pair for each attention call, in the order of the calls.

    Call the model on the prefix within `recording`, then on what follows within `attending(mask_B1TT)` with
    the mask that the model gets. Raises `RuntimeError` where the model does not call torch's attention with
    this mask as often as it did for the prefix.
    """

    def __init__(self, token_ids: tuple[int, ...]) -> None:
        self.token_ids = token_ids
        self._pairs: list[list[torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def calls(self) -> int:
        """Number of attention calls recorded."""
        return len(self._pairs)

    def recording(self) -> TorchFunctionMode:
        """Context that records attention's keys and values of the first row, which is the prefix."""
        return _Recording(self)

    def attending(self, mask_B1TT: torch.Tensor) -> TorchFunctionMode:
        """Context in which attention with exactly this mask also attends to the prefix."""
        return _AttendingToPrefix(self, mask_B1TT)

    def append(self, *pair: torch.Tensor) -> None:
        """Add keys and values [B, H, P, D] of the next call; the first row is copied."""
        self._pairs.append([one[:1].clone() for one in pair])

    def joined(self, call: int, *pair: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values [B, H, P + T, D] of a call: the prefix's before those of `pair`, [B, H, T, D]."""
        if call == len(self._pairs):
            raise RuntimeError("attention is called more often than for the prefix")
        return [self._join(call, nth, one) for nth, one in enumerate(pair)]

    def _join(self, call: int, nth: int, new_BHTD: torch.Tensor) -> torch.Tensor:
        cached, prefix = self._with_heads(call, nth, new_BHTD.shape[1]), len(self)
        end = prefix + new_BHTD.shape[2]
        if len(new_BHTD) > 1:
            return torch.cat((cached[:, :, :prefix].expand(len(new_BHTD), -1, -1, -1), new_BHTD), dim=2)
        if cached.shape[2] < end:  # room after the prefix, so that it is not copied for every batch
            grown = cached.new_empty(1, cached.shape[1], end, cached.shape[3])
            grown[:, :, :prefix] = cached[:, :, :prefix]
            self._pairs[call][nth] = cached = grown
        cached[:, :, prefix:end] = new_BHTD
        return cached[:, :, :end]

    def _with_heads(self, call: int, nth: int, heads: int) -> torch.Tensor:
        """With grouped-query attention a model may repeat the keys with a mask, and not without one."""
        cached = self._pairs[call][nth]
        if heads > cached.shape[1]:
            self._pairs[call][nth] = cached = cached.repeat_interleave(heads // cached.shape[1], dim=1)
        return cached[:, :: cached.shape[1] // heads]


class _Recording(TorchFunctionMode):
    def __init__(self, cache: PrefixCache) -> None:
        super().__init__()
        self._cache = cache

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is scaled_dot_product_attention and len(args) == 3:
            self._cache.append(*args[1:])
        return function(*args, **kwargs or {})


class _AttendingToPrefix(AttentionOverride):
    def __init__(self, cache: PrefixCache, mask_B1TT: torch.Tensor) -> None:
        super().__init__(mask_B1TT)
        self._cache, self._call = cache, 0
        visible = mask_B1TT.new_zeros(*mask_B1TT.shape[:-1], len(cache))
        self._whole_mask = torch.cat((visible, mask_B1TT), dim=-1)  # [B, 1, T, P + T]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None and self._call != self._cache.calls:
            raise RuntimeError("attention is called less often than for the prefix")

    def attend(self, function: Callable[..., Any], args: Sequence[torch.Tensor], kwargs: Any) -> torch.Tensor:
        key_BHTD, value_BHTD = self._cache.joined(self._call, *args[1:])
        self._call += 1
        return function(args[0], key_BHTD, value_BHTD, **kwargs | {"attn_mask": self._whole_mask})
