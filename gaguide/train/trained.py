"""The parameters that a run trains: all, those that are not frozen, or adapters."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from gaguide.config import LoraSection, RunConfig
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.guidance import GuidancePlan
from gaguide.model import ModelSource
from gaguide.model.freeze import count_unfrozen, frozen_parameters
from gaguide.model.lora import Adapter, check_adapter_guides, check_libraries, find_adapter
from gaguide.model.reach import movable_from, unmoved_layers


@dataclass(frozen=True)
class TrainedPart:
    """The parameters that a run trains; all of the model by default."""

    frozen: tuple[str, ...] = ()
    """Names of the parameters that are not trained."""
    adapter: Adapter | None = None
    """The adapters that are trained in place of the model."""
    parameters: int | None = None
    """Number of trained parameters; None for all."""


def find_trained(
    architecture: PreTrainedModel,
    model: ModelSource,
    run: RunConfig,
    plan: GuidancePlan | None,
    faults: FaultCollector,
) -> TrainedPart:
    """The part that `train.freeze`, `train.trainable` and `train.lora` leave to train; adds to `faults` those
    that do not fit the model, or leave a guided head without a parameter that influences it."""
    frozen: tuple[str, ...] = ()
    parameters, adapter = None, None
    if run.train.freeze or run.train.trainable:
        frozen = faults.attempt(_find_frozen, architecture, run, plan) or ()
        parameters = count_unfrozen(architecture, frozen)
    if run.train.lora is not None:
        adapter = faults.attempt(_find_adapter, architecture, model, run.train.lora, plan)
        parameters = None if adapter is None else adapter.parameters
    return TrainedPart(frozen, adapter, parameters)


def partition_faults(deepspeed: DeepSpeedConfig) -> list[Fault]:
    """Faults of 4-bit weights: ZeRO stage 3 partitions floating-point tensors only."""
    if deepspeed.zero_stage < 3:
        return []
    problem = "ZeRO stage 3 cannot partition weights in 4 bits"
    return [
        Fault("train.lora.quantize", problem, "use a JSON of ZeRO stage 0, 1 or 2, or leave it out", "nf4")
    ]


def _find_frozen(architecture: PreTrainedModel, run: RunConfig, plan: GuidancePlan | None) -> tuple[str, ...]:
    frozen = frozen_parameters(architecture, run.train.freeze, run.train.trainable)
    guided = _guided_layers(architecture, plan)
    trained = {name for name, _ in architecture.named_parameters()}.difference(frozen)
    if layers := unmoved_layers(architecture, trained, guided):
        problem = (
            f"trains no parameter that influences the heads guided in layers {', '.join(map(str, layers))}"
        )
        remedy = f"train the embeddings or a layer below them, or {movable_from(layers, guided)}"
        raise UserError.of("train.trainable" if run.train.trainable else "train.freeze", problem, remedy)
    return frozen


def _find_adapter(
    architecture: PreTrainedModel, model: ModelSource, section: LoraSection, plan: GuidancePlan | None
) -> Adapter:
    check_libraries(section)
    adapter = find_adapter(architecture, model, section)
    check_adapter_guides(adapter, architecture, _guided_layers(architecture, plan))
    return adapter


def _guided_layers(architecture: PreTrainedModel, plan: GuidancePlan | None) -> list[int]:
    """Layers with a head that guidance moves; none where it has weight 0."""
    if plan is None or not plan.weight:
        return []
    shape = architecture.config.get_text_config()
    heads = plan.resolve(shape.num_hidden_layers, shape.num_attention_heads)
    return sorted({layer for (layer, _), head in heads.items() if head.weight})
