"""Attribution patching: change of the loss without each head, estimated from one gradient (Nanda 2023; Syed
et al. 2023).

A head's output z is to be replaced by its mean m. To first order the loss changes by the sum over tokens of
(m - z) · dL/dz: all heads from one backward pass, in place of a forward pass for each. Large effects are
underestimated where the model saturates; the heads that matter are therefore removed exactly afterwards.

Shapes: B batch, H heads, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from transformers import PreTrainedModel

from gaguide.ablate.passes import without_labels
from gaguide.ablate.text import pattern_bands
from gaguide.guidance.cues import BANDS, NEAR
from gaguide.guidance.patterns import Marks, Pattern, marked
from gaguide.interventions import record_outputs

Key = tuple[int, int]
_NEAR = [BANDS.index(name) for name in NEAR]


def attribute(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, torch.Tensor]],
    pattern: Pattern,
    means: Mapping[Key, torch.Tensor],
    tick: Callable[[int, int], None] = lambda done, of: None,
    marks: Sequence[Marks] = (),
) -> dict[Key, np.ndarray]:
    """(layer, head) → estimated changes of the summed loss [sequences, 2]: near the pattern's cues, and all.

    means: of every head, as from `mean_outputs`. marks: those of each batch's tokens, for patterns given by
    the data. `model` is in eval mode; its parameters get no gradient.
    """
    found: dict[Key, list[np.ndarray]] = {}
    sequences = [
        [{name: value[at : at + 1] for name, value in of.items()} for of in (batch, own)]
        for batch, own in zip(batches, marks or [{}] * len(batches), strict=True)
        for at in range(len(batch["input_ids"]))
    ]
    with ExitStack() as stack:
        _begin_at_embeddings(model, stack)
        outputs = stack.enter_context(record_outputs(model, keep_graph=True))
        for done, (inputs, own) in enumerate(sequences, start=1):
            with marked(own):
                near, every = _losses(model, inputs, pattern)
            layers = sorted(outputs.by_layer)
            outs = [outputs.by_layer[layer] for layer in layers]
            gradients = []
            for loss, last in ((near, False), (every, True)):
                given = torch.autograd.grad(loss, outs, retain_graph=not last)
                gradients.append(given)
            for at, layer in enumerate(layers):
                z_BTHD = outs[at].detach().double()
                m_HD = torch.stack([means[layer, head] for head in range(z_BTHD.shape[2])]).to(z_BTHD)
                changes = [
                    ((m_HD - z_BTHD) * of[at].double()).sum((0, 1, 3)).cpu().numpy() for of in gradients
                ]
                for head, pair in enumerate(zip(*changes, strict=True)):
                    found.setdefault((layer, head), []).append(np.asarray(pair))
            tick(done, len(sequences))
    return {key: np.stack(parts) for key, parts in found.items()}


def _begin_at_embeddings(model: PreTrainedModel, stack: ExitStack) -> None:
    """Until `stack` closes, the graph begins at the embeddings, and parameters have no gradient."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)

    def begin(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_(True)

    stack.callback(model.get_input_embeddings().register_forward_hook(begin).remove)


def _losses(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], pattern: Pattern
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss near cues, and of all tokens; 0 where a label is -100."""
    logits_BTV = model(**without_labels(inputs), use_cache=False).logits[:, :-1].float()
    targets_BT = inputs.get("labels", inputs["input_ids"])[:, 1:]
    loss_BT = torch.nn.functional.cross_entropy(logits_BTV.mT, targets_BT, reduction="none")
    band_BT = pattern_bands([pattern], inputs)
    near_BT = torch.isin(band_BT, torch.tensor(_NEAR, device=band_BT.device))
    return (loss_BT * near_BT).sum(), loss_BT.sum()
