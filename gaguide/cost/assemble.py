"""A request from what a person gives: options over a run's YAML and a DeepSpeed JSON, and what stays free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gaguide.config import RunConfig, load_config
from gaguide.config.run import ModelSection
from gaguide.cost.deepspeed import with_deepspeed
from gaguide.cost.hardware import GPUS
from gaguide.cost.recommend import FREE
from gaguide.cost.request import PlanRequest, check, with_run
from gaguide.engine.config import load_deepspeed_json
from gaguide.errors import Fault, UserError
from gaguide.model import SIZES, ModelShape, find_model, scratch_config, shape_of

GPT2_VOCABULARY = 50_257
_Result = TypeVar("_Result")


def assemble(
    model: str | None, run_file: Path | None, deepspeed_file: Path | None, options: Mapping[str, Any]
) -> tuple[PlanRequest, list[str]]:
    """The request and the names of settings that nothing fixed, for `recommend` to choose.

    options: fields of `PlanRequest`; None is not given. They come before the DeepSpeed JSON, that before the
    run's YAML. A run fixes micro batch and checkpointing, the JSON stage and offload. Raises a `UserError`
    with every fault of all three.
    """
    faults: list[Fault] = []
    given = {name: value for name, value in options.items() if value is not None}
    run = None if run_file is None else _collect(faults, lambda: load_config(run_file, {}))
    zero = None if deepspeed_file is None else _collect(faults, lambda: load_deepspeed_json(deepspeed_file))
    shape = None
    if model or run or run_file is None:
        shape = _collect(faults, lambda: find_shape(model, run))
    request = PlanRequest(shape or _anything(), gpu=given.get("gpu", "a100-80"))
    if request.gpu in GPUS and not GPUS[request.gpu].bf16:
        request = replace(request, precision="fp16")
    if run is not None:
        request = with_run(request, run)
    if zero is not None:
        request = _collect(faults, lambda: with_deepspeed(replace(request, **given), zero, run)) or request
    request = replace(request, **given)
    fixed = set(given) | ({"micro_batch", "checkpointing"} if run_file else set())
    fixed |= {"zero_stage", "offload_optimizer"} if deepspeed_file else set()
    free = [name for name in FREE if name not in fixed]
    _collect(faults, lambda: check(_mildest(request, free)))
    if faults:
        raise UserError(faults)
    return request, free


def find_shape(model: str | None, run: RunConfig | None = None) -> ModelShape:
    """The shape of a GPT-2 size, a folder with a config.json or a hub model; of the run's, without a name."""
    section = run.model if model is None and run is not None else None
    name = section.name if section else model
    if name is None:
        remedy = f"give one of {', '.join(SIZES)}, a folder or a hub id, or --config RUN.yaml"
        raise UserError(Fault("--model", "is missing", remedy))
    if name in SIZES and not (section and section.init == "pretrained" and section.revision):
        return shape_of(scratch_config(SIZES[name], GPT2_VOCABULARY, None))
    revision = section.revision if section else None
    # `scratch`: its configuration is enough, a folder need not hold weights.
    source = find_model(ModelSection(name=name, init="scratch", revision=revision), GPT2_VOCABULARY, None)
    return shape_of(source.config)


def _mildest(request: PlanRequest, free: list[str]) -> PlanRequest:
    """The request with free settings that nothing is wrong with: what is to be chosen can't be at fault."""
    mild = {"micro_batch": None, "checkpointing": False, "offload_optimizer": "none", "zero_stage": 3}
    return replace(request, **{name: value for name, value in mild.items() if name in free})  # type: ignore[arg-type]


def _anything() -> ModelShape:
    """Stands in for a model that was not found, so that the other faults are found with it."""
    shape = shape_of(scratch_config(SIZES["gpt2"], GPT2_VOCABULARY, None))
    return replace(shape, positions=0, heads=10**6)


def _collect(faults: list[Fault], make: Callable[[], _Result]) -> _Result | None:
    try:
        return make()
    except UserError as error:
        faults += error.faults
        return None
