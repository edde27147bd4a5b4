"""Keys and values of a prefix, computed once and put before those of every batch that begins with it.

They are taken from torch's attention and put back there, whatever the model calls its own cache: the model is
given the tokens after the prefix with their positions, and a mask of these tokens alone.
Legend: B rows, H heads, T tokens after the prefix, P tokens of the prefix, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from gaguide.evaluate.score.causal import MaskedAttention


class KeptPrefix:
    """The keys and values of `token_ids`, one pair for each call of attention in the order of the calls.

    Call the model on the prefix within `recorded`, then on what follows within `before(mask_B1TT)` of the
    mask that it is given. Raises `RuntimeError` where the model does not call torch's attention with this
    mask as often as it did for the prefix.
    """

    def __init__(self, token_ids: tuple[int, ...]) -> None:
        self.token_ids = token_ids
        self._pairs: list[list[torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    def recorded(self) -> TorchFunctionMode:
        """While it holds, attention's keys and values are kept: of the first row, which is the prefix."""
        return _Recorded(self)

    def before(self, mask_B1TT: torch.Tensor) -> TorchFunctionMode:
        """While it holds, attention with just this mask also looks at the prefix."""
        return _Before(self, mask_B1TT)

    def keep(self, *pair: torch.Tensor) -> None:
        """Keys and values [B, H, P, D] of the next call."""
        self._pairs.append([one[:1].clone() for one in pair])

    def joined(self, call: int, *pair: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values [B, H, P + T, D] of a call: the prefix's before those of `pair`, [B, H, T, D]."""
        if call == len(self._pairs):
            raise RuntimeError("attention is called more often than for the prefix")
        return [self._join(call, nth, one) for nth, one in enumerate(pair)]

    @property
    def calls(self) -> int:
        """How often attention was called."""
        return len(self._pairs)

    def _join(self, call: int, nth: int, new_BHTD: torch.Tensor) -> torch.Tensor:
        kept, prefix = self._with_heads(call, nth, new_BHTD.shape[1]), len(self)
        end = prefix + new_BHTD.shape[2]
        if len(new_BHTD) > 1:
            return torch.cat((kept[:, :, :prefix].expand(len(new_BHTD), -1, -1, -1), new_BHTD), dim=2)
        if kept.shape[2] < end:  # room behind the prefix, so that it is not copied for every batch
            grown = kept.new_empty(1, kept.shape[1], end, kept.shape[3])
            grown[:, :, :prefix] = kept[:, :, :prefix]
            self._pairs[call][nth] = kept = grown
        kept[:, :, prefix:end] = new_BHTD
        return kept[:, :, :end]

    def _with_heads(self, call: int, nth: int, heads: int) -> torch.Tensor:
        """With grouped queries a model may repeat the keys where there is a mask, and not elsewhere."""
        kept = self._pairs[call][nth]
        if heads > kept.shape[1]:
            self._pairs[call][nth] = kept = kept.repeat_interleave(heads // kept.shape[1], dim=1)
        return kept[:, :: kept.shape[1] // heads]


class _Recorded(TorchFunctionMode):
    def __init__(self, prefix: KeptPrefix) -> None:
        super().__init__()
        self._prefix = prefix

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is scaled_dot_product_attention and len(args) == 3:
            self._prefix.keep(*args[1:])
        return function(*args, **kwargs or {})


class _Before(MaskedAttention):
    def __init__(self, prefix: KeptPrefix, mask_B1TT: torch.Tensor) -> None:
        super().__init__(mask_B1TT)
        self._prefix, self._call = prefix, 0
        seen = mask_B1TT.new_zeros(*mask_B1TT.shape[:-1], len(prefix))
        self._whole_mask = torch.cat((seen, mask_B1TT), dim=-1)  # [B, 1, T, P + T]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None and self._call != self._prefix.calls:
            raise RuntimeError("attention is called less often than for the prefix")

    def attend(self, function: Callable[..., Any], args: Sequence[torch.Tensor], kwargs: Any) -> torch.Tensor:
        key_BHTD, value_BHTD = self._prefix.joined(self._call, *args[1:])
        self._call += 1
        return function(args[0], key_BHTD, value_BHTD, **kwargs | {"attn_mask": self._whole_mask})
