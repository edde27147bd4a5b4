"""The attention functions that models are loaded with, how ours intercepts them, and their masks.

A backend keeps its name: where a consumer is attached, the entry under which the model looks its function up
holds ours, which has the original one. So the model makes the masks of its backend, code that looks for the
name finds it, and a layer without a consumer runs unchanged.

Shapes: B batch, H heads, G key/value heads, T positions, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from gaguide.errors import Fault, UserError

Function = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""Attention as transformers calls it: (module, q, k, v, mask, dropout=, scaling=, …) → output, weights."""
_EAGER = "eager_attention_forward"  # as every model's file names its own
_MASKING = ("sliding_window", "position_ids", "cu_seq_lens_q", "is_causal")


def is_flash(name: str) -> bool:
    """Whether a backend is a flash attention, of a package or a kernel of the hub."""
    return name.startswith("flash_attention_") or ("/" in name and "flash" in name)


def backend_fault(module: nn.Module) -> Fault | None:
    """Why this layer cannot be observed or guided with the backend that it was loaded with, or None."""
    config: Any = module.config
    name = str(config._attn_implementation)
    problem = None
    if name not in ("sdpa", "eager", "flex_attention") and (name.startswith("paged|") or not is_flash(name)):
        problem = "is not a backend whose masks are known"
    elif name == "eager" and getattr(config, "reorder_and_upcast_attn", False):
        problem = "calls no attention function where reorder_and_upcast_attn is set"
    elif _place(module)[1] not in _place(module)[0]:
        problem = f"is not found by {type(module).__name__}"
    if problem is None:
        return None
    remedy = (
        'load the model with attn_implementation "sdpa", "eager", "flex_attention" or "flash_attention_2"'
    )
    return Fault("attn_implementation", problem, remedy, name)


def _place(module: nn.Module) -> tuple[dict[str, Any], str]:
    """The table, and its key, by which the layer looks up its attention function in every pass."""
    config: Any = module.config
    name = config._attn_implementation
    names = inspect.unwrap(type(module).forward).__globals__
    if name == "eager":
        return names, _EAGER
    own = getattr(names.get("ALL_ATTENTION_FUNCTIONS"), "_local_mapping", {})  # Doge replaces some for itself
    return (own if name in own else AttentionInterface._global_mapping), name


@dataclass
class _Entry:
    original: Function
    ours: Function
    users: int = 0


_entries: dict[tuple[int, str], _Entry] = {}
"""By table and key; empty unless a consumer is attached."""


@cache  # the same object every time, so that compiled graphs stay valid
def _before(function: Function, original: Function) -> Function:
    return partial(function, original)


@contextmanager
def intercepted(modules: Sequence[nn.Module], function: Function) -> Iterator[None]:
    """Inside, layers of the modules' backends call `function(original, module, q, k, v, mask, …)`."""
    with ExitStack() as undo:
        for table, key in {(id(table), key): (table, key) for table, key in map(_place, modules)}.values():
            found = _entries.get((id(table), key))
            if found is None:
                found = _entries[id(table), key] = _Entry(table[key], _before(function, table[key]))
                table[key] = found.ours
            found.users += 1
            undo.callback(_release, table, key)
        yield


def _release(table: dict[str, Any], key: str) -> None:
    entry = _entries[id(table), key]
    entry.users -= 1
    if entry.users == 0:
        del _entries[id(table), key]
        if table.get(key) is entry.ours:
            table[key] = entry.original


class Ungrouped:
    """An attention module as seen by a backend that computes some of its heads, each with its own keys."""

    num_key_value_groups = 1

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.is_causal = getattr(module, "is_causal", True)  # what SDPA asks for, also in a compiled graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class MaskReader:
    """Reads the masks of a pass; layers that share one share the result."""

    def __init__(self) -> None:
        self._known: list[tuple[tuple[Any, ...], torch.Tensor | None]] = []
        self._config: Any = None
        self._backend = ""

    def read(
        self, module: nn.Module, q_BHTD: torch.Tensor, mask: Any, kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """As `visible_keys`."""
        config: Any = module.config
        if config is not self._config:  # reading its attributes takes as long as an operation
            self._config, self._backend = config, str(config._attn_implementation)
        backend = self._backend
        if backend != "flex_attention" and not is_flash(backend):
            return visible_keys(module, backend, q_BHTD, mask, kwargs)
        given = (mask, *(kwargs.get(name) for name in _MASKING))
        for known, visible in self._known:
            if all(one is other for one, other in zip(known, given)):
                return visible
        self._known.append((given, visible_keys(module, backend, q_BHTD, mask, kwargs)))
        return self._known[-1][1]


def visible_keys(
    module: nn.Module, name: str, q_BHTD: torch.Tensor, mask: Any, kwargs: dict[str, Any]
) -> torch.Tensor | None:
    """Visible keys by mask and arguments of a backend, [B or 1, 1 or H, T, T], Boolean or additive; or None.

    Raises `UserError` for a mask that the backend itself would misread.
    """
    T = q_BHTD.shape[2]
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    if is_flash(name):
        return _of_flash(q_BHTD, mask, kwargs, causal)
    if mask is None:
        return None if causal else torch.ones(1, 1, T, T, dtype=torch.bool, device=q_BHTD.device)
    if not isinstance(mask, torch.Tensor):
        from torch.nn.attention.flex_attention import create_mask

        batch, heads = mask.shape[:2]
        return create_mask(mask.mask_mod, batch, heads, T, T, device=str(q_BHTD.device))
    if mask.dtype == torch.bool and name in ("eager", "flex_attention"):
        problem = f"is Boolean, which {name} adds to its scores as 0 and 1, hiding nothing"
        raise UserError.of("attention_mask", problem, "pass a mask of 0 and -inf, or load with sdpa")
    return mask


def _of_flash(
    q_BHTD: torch.Tensor, mask: torch.Tensor | None, kwargs: dict[str, Any], causal: bool
) -> torch.Tensor | None:
    B, _, T, _ = q_BHTD.shape
    at_T = torch.arange(T, device=q_BHTD.device)
    distance_QK = at_T[:, None] - at_T
    hidden = []
    window, positions, ends = (kwargs.get(x) for x in ("sliding_window", "position_ids", "cu_seq_lens_q"))
    if window is not None and window < T:
        hidden.append((distance_QK.abs() >= window)[None])
    if mask is not None:
        if mask.ndim != 2:
            problem = f"has {mask.ndim} dimensions, and flash attention takes [batch, positions]"
            remedy = "pass position_ids that begin again with each document, or load with sdpa"
            raise UserError.of("attention_mask", problem, remedy)
        # It computes padding neither as keys nor as queries.
        valid_BT = mask.bool()
        hidden.append(~(valid_BT[:, None] & valid_BT[:, :, None]))
    elif ends is not None:
        document_BT = torch.bucketize(torch.arange(B * T, device=ends.device), ends, right=True).view(B, T)
        hidden.append((document_BT[:, None] != document_BT[:, :, None]).to(q_BHTD.device))
    elif positions is not None and B == 1 and positions.ndim == 2:
        document_BT = (positions == positions.min()).cumsum(-1)
        hidden.append(document_BT[:, None] != document_BT[:, :, None])
    if causal and not hidden:
        return None
    hidden_BQK = (distance_QK < 0)[None] if causal else torch.zeros_like(distance_QK, dtype=torch.bool)[None]
    for each_BQK in hidden:
        hidden_BQK = hidden_BQK | each_BQK
    return ~hidden_BQK[:, None]
