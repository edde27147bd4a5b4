"""How many parameters a run trains, counted on its model without weights."""

from __future__ import annotations

from transformers import PretrainedConfig

from gaguide.config import RunConfig
from gaguide.model import ModelSource, skeleton
from gaguide.model.freeze import count_unfrozen, frozen_parameters
from gaguide.model.lora import find_adapter


def count_trained(run: RunConfig, config: PretrainedConfig) -> tuple[int, int, int]:
    """Parameters that `run` trains in a model with `config`, those of adapters among them, and the model's
    weights that it keeps in 4 bits.

    Raises a `UserError` if `train.freeze`, `trainable` or `lora` do not fit the model.
    """
    source = ModelSource(run.model, config)
    model = skeleton(source)
    if run.train.lora is not None:
        adapter = find_adapter(model, source, run.train.lora)
        return adapter.parameters, adapter.parameters, adapter.packed
    frozen = frozen_parameters(model, run.train.freeze, run.train.trainable)
    return count_unfrozen(model, frozen), 0, 0
