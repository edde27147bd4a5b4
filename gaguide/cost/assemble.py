"""Builds a `CostRequest` from command-line options, a run's YAML and a DeepSpeed JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaguide.config import RunConfig, load_config
from gaguide.config.run import ModelSection
from gaguide.cost.deepspeed import with_deepspeed
from gaguide.cost.hardware import GPUS
from gaguide.cost.recommend import CHOOSABLE
from gaguide.cost.request import CostRequest, check, trains_part, with_run
from gaguide.engine.config import load_deepspeed_json
from gaguide.errors import FaultCollector, UserError
from gaguide.model import SIZES, ModelShape, gpt2_shape
from gaguide.model.sizes import GPT2_VOCABULARY

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def assemble_request(
    model: str | None, run_file: Path | None, deepspeed_file: Path | None, options: Mapping[str, Any]
) -> tuple[CostRequest, list[str]]:
    """The request, and the names of the settings that were left open for `recommend` to choose.

    `options` are fields of `CostRequest`, None where not given; they take precedence over the DeepSpeed
    JSON, which takes precedence over the run's YAML. A run fixes micro batch and checkpointing, the JSON
    fixes stage, offload and precision. Raises a `UserError` with the faults of all sources.
    """
    given = {name: value for name, value in options.items() if value is not None}
    with FaultCollector() as faults:
        run = faults.attempt(load_config, run_file, {}) if run_file else None
        zero = faults.attempt(load_deepspeed_json, deepspeed_file) if deepspeed_file else None
        shape = None
        if model or run or run_file is None:
            shape = faults.attempt(find_shape, model, run)
        request = CostRequest(shape or _placeholder_shape(), gpu=given.get("gpu", "a100-80"))
        if request.gpu in GPUS and not GPUS[request.gpu].bf16:
            request = replace(request, precision="fp16")
        if run is not None:
            config = find_config(model, run) if shape is not None and trains_part(run) else None
            request = faults.attempt(with_run, request, run, config) or request
        if zero is not None:
            resolved = faults.attempt(with_deepspeed, replace(request, **given), zero, run)
            request = resolved or request
        request = replace(request, **given)
        fixed = set(given) | ({"micro_batch", "checkpointing"} if run_file else set())
        fixed |= {"zero_stage", "offload_optimizer", "precision"} if deepspeed_file else set()
        fixed |= {"precision"} if "zero_stage" in fixed else set()  # open only because of stage 0
        open_settings = [name for name in CHOOSABLE if name not in fixed]
        faults.attempt(check, _with_harmless_settings(request, open_settings))
    return request, open_settings


def find_shape(model: str | None, run: RunConfig | None = None) -> ModelShape:
    """Shape of `model`: a GPT-2 size, a folder with a config.json or a hub id. None is the run's model.

    Raises a `UserError` if there is neither, or if the model cannot be found.
    """
    section = run.model if model is None and run is not None else None
    name = section.name if section else model
    if name is None:
        remedy = f"give one of {', '.join(SIZES)}, a folder or a hub id, or --config RUN.yaml"
        raise UserError.of("--model", "is missing", remedy)
    if _is_size(name, section):
        return gpt2_shape(SIZES[name], GPT2_VOCABULARY)
    from gaguide.model import shape_of  # only transformers reads a model's configuration

    return shape_of(find_config(model, run))


def find_config(model: str | None, run: RunConfig | None) -> PretrainedConfig:
    """The configuration of `model`, or of the run's, as `find_shape` names them; raises as it does."""
    from gaguide.model import find_model, scratch_config

    section = run.model if model is None and run is not None else None
    name = section.name if section else str(model)
    if _is_size(name, section):
        return scratch_config(SIZES[name], GPT2_VOCABULARY, None)
    revision = section.revision if section else None
    # `scratch`: the configuration is enough, so a folder need not hold weights.
    return find_model(
        ModelSection(name=name, init="scratch", revision=revision), GPT2_VOCABULARY, None
    ).config


def _is_size(name: str, section: ModelSection | None) -> bool:
    """Whether a size of GPT-2 is meant, whose shape needs no configuration."""
    return name in SIZES and not (section and section.init == "pretrained" and section.revision)


def _with_harmless_settings(request: CostRequest, open_settings: list[str]) -> CostRequest:
    """`request` with values for the open settings that pass `check`, so only given ones are judged."""
    harmless = {"micro_batch": None, "checkpointing": False, "offload_optimizer": "none", "zero_stage": 3}
    changes = {name: value for name, value in harmless.items() if name in open_settings}
    return replace(request, **changes)  # type: ignore[arg-type]


def _placeholder_shape() -> ModelShape:
    """A shape that passes every check, so that a missing model does not hide the other faults."""
    shape = gpt2_shape(SIZES["gpt2"], GPT2_VOCABULARY)
    return replace(shape, positions=0, heads=10**6)
