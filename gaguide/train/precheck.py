"""Faults that settings and files alone reveal, found in a fraction of a second without torch.

Those that depend on the model or the tokenizer are found by `gaguide.train.preflight`, again all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gaguide.config import (
    CheckpointSection,
    DataSection,
    GuidanceSection,
    ModelSection,
    RunConfig,
    TrainSection,
    ValidationSection,
    plan_batch,
)
from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.config.experiments import EXPERIMENTS
from gaguide.config.load import read_settings
from gaguide.engine.config import check_top_level, load_deepspeed_json
from gaguide.errors import Fault, FaultCollector, UserError, is_masked, suggestion
from gaguide.files import output_folder
from gaguide.guidance.lexicon import read_lexicons
from gaguide.guidance.registry import check_pattern_name
from gaguide.model.lora import check_libraries


def precheck(
    config: Path | None,
    overrides: dict[str, str],
    deepspeed_json: Path,
    ranks: int,
    note: Callable[[str], None] = lambda text: None,
) -> RunConfig:
    """The run of these arguments. Raises one `UserError` with every fault that needs no model to be found.

    A faulty setting hides only the checks that use it. Nothing is written.
    """
    with FaultCollector() as faults:
        settings = faults.attempt(read_settings, config, overrides, note)
        if settings is not None:
            faults.add(*settings.faults)
        else:  # faults of the command line alone
            faults.add(*(each for each in read_settings(None, overrides).faults if each.field in overrides))
        sections = settings.sections if settings else {}
        train: TrainSection | None = sections.get("train")
        batch = None
        if train is not None:
            batch = faults.attempt(plan_batch, train.global_batch, train.micro_batch, ranks)
        with faults.catching():
            clipping = train.gradient_clipping if train else None
            check_top_level(load_deepspeed_json(deepspeed_json), batch, clipping)
        if "output" in sections:
            faults.attempt(output_folder, sections["output"], "output")
        _check_data(sections, faults)
        _check_model(sections, faults)
        _check_guidance(sections.get("guidance"), faults)
        if train is not None and train.lora is not None:
            faults.attempt(check_libraries, train.lora)
        faults.attempt(check_best_is_measured, *map(sections.get, ("checkpoint", "validation", "train")))
    assert settings is not None and settings.run is not None
    return settings.run


def check_best_is_measured(
    checkpoint: CheckpointSection | None, validation: ValidationSection | None, train: TrainSection | None
) -> None:
    """Raise a `UserError` if no checkpoint falls on a step at which the held-out loss is measured."""
    if checkpoint is None or validation is None or not checkpoint.keep_best:
        return
    both = math.lcm(validation.every, checkpoint.every)  # 0 where either is
    steps = train.steps if train is not None else None
    if both == 0 or (steps is not None and both >= steps):
        raise UserError.of(
            "checkpoint.keep_best",
            "no validation before the last step falls on a checkpoint "
            f"(validation.every {validation.every}, checkpoint.every {checkpoint.every})",
            "make one of them a multiple of the other, and smaller than the number of steps",
            checkpoint.keep_best,
        )


def _check_data(sections: Mapping[str, Any], faults: FaultCollector) -> None:
    from gaguide.data.format.manifest import read_manifest

    data: DataSection | None = sections.get("data")
    train: TrainSection | None = sections.get("train")
    if data is None:
        return
    addresses = [(f"data.mixture.{at}.shards", entry.shards) for at, entry in enumerate(data.mixture)]
    addresses += [("data.shards", data.shards or "")]
    addresses += [("data.source.files", name) for name in (data.source.files if data.source else ())]
    for field, address in addresses:
        if is_masked(address):
            problem = "its credentials are masked, as in the config.yaml that a run writes"
            faults.add(Fault(field, problem, f"give it with them: --{field} ADDRESS", address))
    if data.source is not None:
        if train is not None and train.steps is None:
            problem = "cannot be given for a source, whose size is unknown until it is tokenised"
            faults.add(Fault("train.epochs", problem, "give train.steps, or build shards first"))
        return
    folders = {f"data.mixture.{at}.shards": entry.shards for at, entry in enumerate(data.mixture)}
    if data.shards is not None:
        folders["data.shards"] = data.shards
    for field, folder in folders.items():
        if folder == EMBEDDED_SHARDS or "://" in folder:
            continue
        try:
            read_manifest(Path(folder).expanduser())
        except (OSError, ValueError) as error:
            faults.add(Fault(field, f"cannot be read ({error})", "give a folder of shards", folder))
        except UserError as error:
            faults.add(*(replace(fault, field=field) for fault in error.faults))


def _check_model(sections: Mapping[str, Any], faults: FaultCollector) -> None:
    from gaguide.model.sizes import SIZES

    model: ModelSection | None = sections.get("model")
    origins = (sections.get("resume_from"), sections.get("init_from"))
    if model is None or model.name in SIZES or any(origins) or _has_checkpoints(sections.get("output")):
        return
    is_path = model.name.startswith(("/", ".", "~")) or model.name.count("/") > 1
    if is_path and not Path(model.name).expanduser().is_dir():
        remedy = "give a folder made by save_pretrained, or a hub id on a machine that reaches the hub"
        faults.add(Fault("model.name", "does not exist or is not a folder", remedy, model.name))


def _has_checkpoints(output: str | None) -> bool:
    """Whether a run is resumed; its checkpoints then replace the model's folder."""
    try:
        return output is not None and any((Path(output).expanduser() / "checkpoints").glob("step-*"))
    except (OSError, ValueError, RuntimeError):
        return False


def _check_guidance(guidance: GuidanceSection | None, faults: FaultCollector) -> None:
    if guidance is None:
        return
    if not guidance.plan and guidance.experiment not in EXPERIMENTS:
        remedy = suggestion(guidance.experiment, EXPERIMENTS)
        faults.add(Fault("guidance.experiment", "unknown experiment", remedy, guidance.experiment))
    own = None
    if guidance.lexicons is not None:
        own = faults.attempt(read_lexicons, Path(guidance.lexicons).expanduser())
        if own is None:
            return  # names may be those of its lexicons
    for at, entry in enumerate(guidance.plan):
        faults.attempt(check_pattern_name, entry.pattern, own, f"guidance.plan.{at}.pattern")
