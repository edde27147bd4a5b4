"""Base weights in 4 bits under adapters (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

Each linear layer's weight becomes NF4 numbers in blocks of 64 with an fp32 scale each: 0.56 bytes a weight.
It computes with the numbers that they stand for, in the precision of its input. Quantizing is done on the
CPU, so that it depends on the weights alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gaguide.errors import UserError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FIELD = "train.lora.quantize"
_BLOCK = 64
BYTES_PER_WEIGHT = 0.5 + 4 / _BLOCK
"""Bytes of a weight in 4 bits, with its share of the block's scale."""


def check_bitsandbytes() -> None:
    """Raise a `UserError` if bitsandbytes is not installed; imports nothing."""
    if find_spec("bitsandbytes") is None:
        remedy = "pip install 'gaguide[qlora]', or leave it out: the base then keeps its precision"
        raise UserError.of(_FIELD, "needs bitsandbytes, which is not installed", remedy, "nf4")


def check_quantizes(device: torch.device) -> None:
    """Raise a `UserError` if bitsandbytes cannot quantize and compute on `device`, with its reason."""
    import torch

    check_bitsandbytes()
    try:
        layer = _layer(torch.eye(_BLOCK), None).to(device)
        ones = torch.ones(1, _BLOCK, device=device, requires_grad=True)
        layer(ones).sum().backward()
        assert ones.grad is not None and bool(torch.isfinite(ones.grad).all())
    except Exception as error:  # whatever a library without a kernel for this machine raises
        problem = f"bitsandbytes does not run here ({first_line(error)})"
        remedy = "install a bitsandbytes for this machine, or leave it out: the base then keeps its precision"
        raise UserError.of(_FIELD, problem, remedy, "nf4") from None


def quantize(model: PreTrainedModel, layers: Iterable[str]) -> None:
    """Put the weights of these linear layers into 4 bits, in place; `model` is on the CPU."""
    for name in layers:
        layer: Any = model.get_submodule(name)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, _layer(_weight(layer), layer.bias))
    vars(model)["is_loaded_in_4bit"] = True  # PEFT reads it


def round_to_4_bits(model: PreTrainedModel, layers: Iterable[str]) -> None:
    """Replace the weights of these linear layers by the numbers that `quantize` would keep, in place."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    with torch.no_grad():
        for name in layers:
            layer: Any = model.get_submodule(name)
            packed = _layer(_weight(layer), None).weight
            kept = dequantize_4bit(packed.data, packed.quant_state).to(layer.weight)
            layer.weight.copy_(kept if _is_linear(layer) else kept.T)


def _weight(layer: Any) -> torch.Tensor:
    """The weight as [outputs, inputs]; GPT-2's Conv1D has it transposed."""
    weight: torch.Tensor = layer.weight.detach()
    return weight if _is_linear(layer) else weight.T.contiguous()


def _is_linear(layer: Any) -> bool:
    from torch import nn

    return isinstance(layer, nn.Linear)


def _layer(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """A layer with `weight` [outputs, inputs] in 4 bits."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    outputs, inputs = weight.shape
    layer = Linear4bit(inputs, outputs, bias=bias is not None, compress_statistics=False, quant_type="nf4")
    layer.weight = Params4bit(
        weight.clone(),
        requires_grad=False,
        compress_statistics=False,
        blocksize=_BLOCK,
        quant_type="nf4",
        module=layer,
    )
    layer.bias = bias
    # In eval mode bitsandbytes 0.50 repacks weights in place for a kernel of some CPUs, from which training
    # does not come back.
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")  # here it quantizes
