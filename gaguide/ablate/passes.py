"""Losses of whole passes, and of passes that resume at a layer from the previous layer's output.

An intervention in layer L leaves the layers before it as they were: their outputs of one pass without an
intervention serve all interventions on the same text.

Shapes: B batch, T positions, V vocabulary, N positions whose logits exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.evaluate.score.logits import MAX_LOGIT_POSITIONS, logsumexp
from gaguide.guidance.measurement import IGNORED
from gaguide.model.attention_support import causal_attention_modules

_TOLERANCE = 1e-4
"""Largest difference of a token's loss from that of the whole model, in nats; rounding is below 1e-5."""


class Passes:
    """Passes of one model in eval mode. Call `check` with the first batch before the others."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.layers = _decoder_layers(model)
        """Layer → the module whose output is the next layer's input."""
        self.resumes = bool(self.layers)
        """Whether passes may resume; `check` unsets it for a model whose layers need more than that."""
        self.whole = False
        """Whether logits must come from the model as a whole; `check` finds out."""
        self.count = 0.0
        """Layers computed so far, in whole passes of all of them."""
        self._kept: dict[int, Any] = {}

    @torch.no_grad()
    def check(self, inputs: Mapping[str, torch.Tensor], layers: Sequence[int] = ()) -> None:
        """Compare both shortcuts with a whole pass on the first of these sequences, and disable one that
        differs. Passes resume at the first, the middle and the last of `layers`, by default of all."""
        inputs = {name: value[:1] for name, value in inputs.items()}
        ids_BT = inputs["input_ids"]
        logits_BTV = self.model(**without_labels(inputs), use_cache=False).logits[:, :-1].float()
        right = logits_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
        want_BT = (torch.logsumexp(logits_BTV, -1) - right) * self.counted(inputs)

        def differs() -> bool:
            return not bool((self._losses(inputs) - want_BT).abs().max() < _TOLERANCE)

        with self.keeping():
            self.whole = differs()
        if self.whole and self.resumes:
            with self.keeping():
                self._losses(inputs)
        tried = sorted(layers or self.layers)
        for layer in dict.fromkeys((tried[0], tried[len(tried) // 2], tried[-1])) if self.resumes else ():
            with self.from_layer(layer):
                self.resumes = self.resumes and not differs()
        self._kept, self.count = {}, 0.0

    def losses(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Loss of each token, without the first [B, T - 1], fp32, in nats; 0 where a label is -100."""
        self.count += 1
        return self._losses(inputs)

    def counted(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """1 where a token counts [B, T - 1], fp32, without the first."""
        labels_BT = inputs.get("labels", inputs["input_ids"])
        return (labels_BT[:, 1:] != IGNORED).float()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, passes keep the layers' outputs, for `from_layer` blocks after this one."""
        with ExitStack() as stack:
            if self.resumes:
                for layer, module in self.layers.items():
                    stack.callback(module.register_forward_hook(self._keeper(layer)).remove)
            yield

    @contextmanager
    def from_layer(self, layer: int) -> Iterator[None]:
        """Inside, passes on the inputs of the kept pass begin at `layer`; whole where they cannot resume."""
        before = layer - 1
        if not self.resumes or before not in self._kept:
            yield
            return
        skipped = [module for index, module in self.layers.items() if index < layer]
        output = self._kept[before]
        self.count -= len(skipped) / len(self.layers)
        for module in skipped:
            vars(module)["forward"] = lambda *args, **kwargs: output
        try:
            yield
        finally:
            for module in skipped:
                del vars(module)["forward"]

    def _keeper(self, layer: int) -> Any:
        def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._kept[layer] = output

        return keep

    def _losses(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        targets_N = inputs["input_ids"][:, 1:].reshape(-1)
        if self.whole:
            states = self.model(**without_labels(inputs), use_cache=False).logits[:, :-1].flatten(0, 1)
            head: Any = torch.nn.Identity()
        else:
            arguments = without_labels(inputs)
            hidden = self.model.base_model(**arguments, use_cache=False, return_dict=True).last_hidden_state
            states, head = hidden[:, :-1].flatten(0, 1), self.model.get_output_embeddings()
        losses = []
        for start in range(0, len(states), MAX_LOGIT_POSITIONS):
            here = slice(start, start + MAX_LOGIT_POSITIONS)
            logits_NV = head(states[here]).float()
            right_N = logits_NV.gather(1, targets_N[here, None]).squeeze(1)
            losses.append(logsumexp(logits_NV.clone() if self.whole else logits_NV) - right_N)
        B = inputs["input_ids"].shape[0]
        return torch.cat(losses).view(B, -1) * self.counted(inputs)


def without_labels(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arguments of the model's layers, which accept no labels."""
    return {name: value for name, value in inputs.items() if name != "labels"}


def _decoder_layers(model: PreTrainedModel) -> dict[int, torch.nn.Module]:
    """Layer index → decoder layer; empty where attention modules are not each in one layer of one list."""
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[int, str] = {}
    for index, module in causal_attention_modules(model).items():
        parts = names[id(module)].split(".")
        place = next((at for at, part in enumerate(parts) if part.isdigit()), None)
        if place is None or int(parts[place]) != index:
            return {}
        found[index] = ".".join(parts[: place + 1])
    parents = {name.rpartition(".")[0] for name in found.values()}
    if len(parents) != 1:
        return {}
    stack: Any = model.get_submodule(parents.pop())
    return {index: module for index, module in enumerate(stack)}
