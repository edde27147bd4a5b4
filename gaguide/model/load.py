"""Finding a model, its configuration first and its weights later, and building it.

Python code in a model folder runs only with `model.trust_remote_code`. Configurations are copied, because
models built from one configuration object share and change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from gaguide.config import ModelSection
from gaguide.errors import Fault, UserError, first_line, suggestion
from gaguide.files import read_object
from gaguide.model.content import ADAPTER_CONFIG, adapter_fault
from gaguide.model.fast import fuse_activations
from gaguide.model.fingerprint import model_fingerprint
from gaguide.model.licenses import read_licenses
from gaguide.model.shape import DROPOUT_FIELDS
from gaguide.model.sizes import SIZES, scratch_config


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, without its weights."""

    section: ModelSection
    """The settings that name it."""
    config: PretrainedConfig
    """Its configuration."""
    generation: dict[str, Any] | None = None
    """Content of its generation_config.json; None for a model with random weights, or without that file."""
    licenses: Mapping[str, bytes] = field(default_factory=dict)
    """Name → content of the licence files in its folder, or in the hub's cache."""
    fingerprint: str = ""
    """Identifies it by content."""
    weights: str = ""
    """Identifies its weights alone by content."""
    checkpoint: Path | None = None
    """Checkpoint whose weights replace the model's own, which are then not read."""
    base_vocabulary: int | None = None
    """Rows of the stored embeddings, if `config` has more: the others are added."""

    @property
    def positions(self) -> int | None:
        """Longest sequence that the model accepts, in tokens; None if the configuration does not state it."""
        return getattr(self.config, "max_position_embeddings", None)


def find_model(section: ModelSection, vocab_size: int, end_of_text: int | None) -> ModelSource:
    """The model that `section` names; a scratch model gets the data's vocabulary and end-of-text token.

    Raises a `UserError` if there is no such size, folder or hub model, or the hub cannot be reached.
    """
    folder = Path(section.name)
    if folder.is_dir() and ((folder / "checkpoints").is_dir() or folder.name.startswith("step-")):
        kind = "checkpoint" if folder.name.startswith("step-") else "run"
        remedy = (
            f"give the model of a finished run (RUN/model), or add --init_from {section.name} and leave "
            "model.name as in that run; or export it: gaguide checkpoint export"
        )
        raise UserError.of("model.name", f"is the folder of a {kind}, not of a model", remedy, section.name)
    if section.init == "scratch" and section.name in SIZES:
        config: PretrainedConfig = scratch_config(SIZES[section.name], vocab_size, end_of_text)
    else:
        config = _pretrained_config(section)
    if getattr(config, "quantization_config", None):
        raise UserError(_quantized(section.name, config.quantization_config))
    if section.revision is not None and (Path(section.name).is_dir() or section.name in SIZES):
        remedy = "remove it: revisions are for hub models"
        raise UserError.of("model.revision", f"{section.name} is not a hub model", remedy, section.revision)
    if section.init == "pretrained" and Path(section.name).is_dir() and not _has_weights(Path(section.name)):
        remedy = "give a folder made by save_pretrained, or init: scratch"
        raise UserError.of("model.name", "the folder contains no weights", remedy, section.name)
    fingerprint, weights = model_fingerprint(section, config)
    _set_dropout(config, section)
    generation, licenses = _generation_config(section), _licenses(section)
    return ModelSource(section, config, generation, licenses, fingerprint, weights)


def with_vocabulary(source: ModelSource, vocabulary: int) -> ModelSource:
    """The model with embeddings for ids in [0, vocabulary); it never loses rows."""
    stored = source.config.get_text_config().vocab_size
    if vocabulary <= stored:
        return source
    config = deepcopy(source.config)
    config.get_text_config().vocab_size = vocabulary
    fingerprint = f"{source.fingerprint}+{vocabulary - stored}"
    return replace(source, config=config, fingerprint=fingerprint, base_vocabulary=stored)


def _quantized(name: str, settings: Any) -> Fault:
    """The fault of a model with quantized weights, whatever the library."""
    given = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(given.get("quant_method") or "by an unnamed method")
    remedy = "give the model with its full weights; train.lora.quantize puts them into 4 bits for training"
    problem = f"its weights are quantized ({method}), so trained weights could not be merged and exported"
    return Fault("model.name", problem, remedy, name)


def _add_rows(model: PreTrainedModel, vocabulary: int) -> None:
    """Resize the embeddings to `vocabulary` rows; the new ones are the mean of the others."""
    embeddings: Any = model.get_input_embeddings()
    stored = len(embeddings.weight)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    tables: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for table in tables:
            for rows in (getattr(table, "weight", None), getattr(table, "bias", None)):
                if rows is not None and len(rows) == vocabulary:
                    rows[stored:] = rows[:stored].mean(dim=0)
    model.tie_weights()


def saved_model(section: ModelSection, folder: Path, checkpoint: Path, fingerprint: str) -> ModelSource:
    """The model of a checkpoint, for a base model that cannot be found; `folder` holds its configuration."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=section.trust_remote_code)
    _set_dropout(config, section)
    generation = _generation_config(section.model_copy(update={"name": str(folder), "init": "pretrained"}))
    return ModelSource(section, config, generation, read_licenses(folder), fingerprint, checkpoint=checkpoint)


def _set_dropout(config: PretrainedConfig, section: ModelSection) -> None:
    if section.dropout is not None:
        for name in DROPOUT_FIELDS:
            if hasattr(config, name):
                setattr(config, name, section.dropout)


def skeleton(source: ModelSource) -> PreTrainedModel:
    """The model on the meta device, without memory for its weights, for checks of its architecture.

    Raises a `UserError` if it cannot be built.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                deepcopy(source.config),
                attn_implementation=source.section.attention,
                dtype=torch.float32,
                trust_remote_code=source.section.trust_remote_code,
            )
    except Exception as error:  # whatever a configuration makes a model's constructor raise
        reason = first_line(error)
        name, attention = source.section.name, source.section.attention
        if attention == "sdpa":
            remedy = (
                "choose a causal language model of transformers that runs on SDPA, or model.attention: eager"
            )
            raise UserError.of("model.name", f"cannot be built ({reason})", remedy, name) from None
        remedy = "choose sdpa or eager, or another model"
        problem = f"{name} cannot be built with it ({reason})"
        raise UserError.of("model.attention", problem, remedy, attention) from None


def build_model(source: ModelSource, seed: int) -> PreTrainedModel:
    """The model with its weights (random ones where a checkpoint's replace them): fp32, the attention
    that its section names, fused activations, train mode.

    Random weights depend on `seed` alone. Raises a `UserError` if weights are damaged or do not fit.
    """
    config = deepcopy(source.config)
    vocabulary = config.get_text_config().vocab_size
    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    if source.section.init == "scratch" or source.checkpoint is not None:
        model = AutoModelForCausalLM.from_config(
            config,
            attn_implementation=source.section.attention,
            dtype=torch.float32,
            trust_remote_code=source.section.trust_remote_code,
        )
    else:
        config.get_text_config().vocab_size = source.base_vocabulary or vocabulary
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                source.section.name,
                config=config,
                revision=source.section.revision or "main",
                attn_implementation=source.section.attention,
                dtype=torch.float32,
                trust_remote_code=source.section.trust_remote_code,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = first_line(error)
            remedy = "copy or download the weights again"
            raise UserError.of(
                "model.name", f"its weights cannot be loaded ({reason})", remedy, source.section.name
            ) from None
        model = whole_model(loaded, "model.name", source.section.name)
        if source.base_vocabulary is not None:
            _add_rows(model, vocabulary)
    # transformers guesses it from the class name, and warns because it does not know GPT-2's.
    model.loss_type = "ForCausalLM"
    # Training needs no cache, and with one transformers ignores position ids.
    model.config.use_cache = False
    fuse_activations(model)
    return model.train()


def whole_model(loaded: Any, field: str, name: str) -> Any:
    """The model of `from_pretrained(…, output_loading_info=True)`.

    Raises a `UserError` if weights are missing, for which transformers draws random ones.
    """
    model, gaps = loaded
    missing = sorted(gaps["missing_keys"])
    if missing:
        listed = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        problem = f"its weights lack {len(missing)} of its tensors, which would be random numbers: {listed}"
        remedy = "give a whole causal language model: one saved by AutoModelForCausalLM, with all its files"
        raise UserError.of(field, problem, remedy, name)
    return model


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute each layer's activations in backward, with non-reentrant checkpointing.

    Reentrant checkpointing would silently drop the gradient of guidance.
    """
    # Renamed in transformers 5.24, which warns about the old name.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def _generation_config(section: ModelSection) -> dict[str, Any] | None:
    """The model's generation_config.json as it is: transformers refuses to save some that it loads."""
    if section.init == "scratch":
        return None
    try:
        path = cached_file(section.name, "generation_config.json", revision=section.revision or "main")
    except (OSError, ValueError):  # most models before 2023 have none
        return None
    return (read_object(Path(path)) or None) if path else None


def _licenses(section: ModelSection) -> dict[str, bytes]:
    """The licence files next to the model's configuration, as far as they are on this machine."""
    if section.init == "scratch":
        return {}
    try:
        path = cached_file(section.name, "config.json", revision=section.revision or "main")
        return read_licenses(Path(path).parent) if path else {}
    except (OSError, ValueError):
        return {}


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))


def _pretrained_config(section: ModelSection) -> PretrainedConfig:
    folder = Path(section.name)
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(adapter_fault("model.name", section.name))
    if folder.is_dir() and not (folder / "config.json").is_file():
        # transformers 5.1 would guess the architecture from the folder's name: "options" has an "opt" in it.
        remedy = "give a folder made by save_pretrained"
        raise UserError.of("model.name", "the folder contains no config.json", remedy, section.name)
    try:
        return deepcopy(
            AutoConfig.from_pretrained(
                section.name, revision=section.revision or "main", trust_remote_code=section.trust_remote_code
            )
        )
    except Exception as error:  # transformers validates configurations with errors of many types
        reason = first_line(error)
        remedy = "give a folder made by save_pretrained, or a hub id on a machine that reaches the hub"
        if "trust_remote_code" in str(error):
            remedy = (
                "read the Python files of the model; if you trust them, set model.trust_remote_code: true"
            )
        if "/" not in section.name:
            remedy += f"; or with init: scratch a size: {suggestion(section.name, SIZES)}"
        raise UserError.of("model.name", f"cannot be loaded ({reason})", remedy, section.name) from None
