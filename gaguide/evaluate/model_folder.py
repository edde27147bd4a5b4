"""A model's configuration and tokenizer, read before its weights; and its weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.log import run_files
from gaguide.model import fuse_activations
from gaguide.model.content import ADAPTER_CONFIG, adapter_fault, folder_record
from gaguide.model.load import whole_model
from gaguide.model.precision import PRECISIONS, torch_dtype

DTYPES = {name: torch_dtype(name) for name in PRECISIONS}
"""Precisions by their name after --dtype."""

_UNSET_LENGTH = 1_000_000_000_000_000_019_884_624_838_656
"""transformers' `model_max_length` for a tokenizer without one."""
_DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class ModelFolder:
    """A model without its weights."""

    name: str
    """Folder or hub id."""
    config: Any
    """transformers' configuration."""
    tokenizer: Any
    """transformers' tokenizer."""

    @property
    def positions(self) -> int:
        """Longest input in tokens: the configuration's, else the tokenizer's, else 2,048."""
        config = getattr(self.config, "text_config", None) or self.config
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            length = getattr(config, name, None)
            if length:
                return int(length)
        length = getattr(self.tokenizer, "model_max_length", None)
        return int(length) if length and length != _UNSET_LENGTH else _DEFAULT_LENGTH

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a text: the tokenizer's, the configuration's, and those of generation_config.json."""
        generation = None
        with suppress(OSError, ValueError):  # has none
            generation = GenerationConfig.from_pretrained(self.name).eos_token_id
        return self._flat_ids(generation)

    def _flat_ids(self, generation: Any) -> frozenset[int]:
        found = (self.tokenizer.eos_token_id, getattr(self.config, "eos_token_id", None), generation)
        listed = (one if isinstance(one, (list, tuple)) else [one] for one in found)
        return frozenset(token for ids in listed for token in ids if token is not None)

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON that changes whenever the model's content does, wherever its folder is."""
        folder = Path(self.name)
        if not folder.is_dir():
            return {"name": self.name, "commit": getattr(self.config, "_commit_hash", None)}
        return folder_record(folder)


def model_path(name: str) -> str:
    """The model's folder where a run's folder is given, else the name as it is."""
    inner = Path(name) / "model"
    is_run = not (Path(name) / "config.json").is_file() and (inner / "config.json").is_file()
    return str(inner) if is_run and (Path(name) / run_files.SUMMARY).is_file() else name


def short_name(model: str) -> str:
    """The last part of a model's name; of a run's model, the run's."""
    path = Path(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def find_model_folder(name: str) -> ModelFolder:
    """Configuration and tokenizer of a folder or hub model; no code from it is executed.

    Raises `UserError` where they cannot be loaded or do not fit each other.
    """
    if not Path(name).is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        remedy = "give a folder made by save_pretrained"
        raise UserError.of("--model", "does not exist or is not a folder", remedy, name)
    if fault := _run_fault(Path(name)):
        raise UserError(fault)
    config = _from_pretrained(AutoConfig, "configuration", name)
    tokenizer = _from_pretrained(AutoTokenizer, "tokenizer", name)
    with FaultCollector() as faults:
        faults.add(*tokenizer_faults(tokenizer, config, "--model", name))
    return ModelFolder(name, config, tokenizer)


def tokenizer_faults(tokenizer: Any, config: Any, field: str, value: str | None = None) -> list[Fault]:
    """Why a tokenizer cannot be that of a model with `config`."""
    if not tokenizer.encode("any text", add_special_tokens=False):
        # Where its files are missing, transformers silently builds an empty tokenizer.
        problem = "its tokenizer has an empty vocabulary, so its files are probably missing"
        return [Fault(field, problem, "save the tokenizer into the model's folder", value)]
    rows = getattr(getattr(config, "text_config", None) or config, "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        problem = f"its tokenizer has {len(tokenizer)} tokens, its embedding only {rows} rows"
        return [Fault(field, problem, "use the tokenizer that the model was trained with", value)]
    return []


def _run_fault(folder: Path) -> Fault | None:
    """The fault of giving a training run's folder, or a checkpoint's, in place of a model's."""
    if (folder / ADAPTER_CONFIG).is_file():
        return adapter_fault("--model", str(folder))
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    if (folder / "model" / "config.json").is_file():
        remedy = f"give {folder / 'model'}"
        if not (folder / run_files.SUMMARY).is_file():  # a checkpoint: its `model` has no weights
            remedy = f"export it: gaguide checkpoint export {folder} --output DIR"
        return Fault("--model", "is a folder of a run, not of a model", remedy, str(folder))
    if (folder / "checkpoints").is_dir() or (folder / run_files.CONFIG).is_file():
        remedy = f"wait for the run to end, or: gaguide checkpoint export {folder} --output DIR"
        return Fault("--model", "is the folder of a run that has not ended", remedy, str(folder))
    return None


def pretrained_model(folder: ModelFolder, dtype: str) -> Any:
    """The model as transformers loads it, with SDPA where the architecture has it, its activations fused."""
    options = {"config": folder.config, "dtype": DTYPES[dtype], "output_loading_info": True}
    loaded = _from_pretrained(AutoModelForCausalLM, "model", folder.name, **options)
    model = whole_model(loaded, "--model", folder.name)
    fuse_activations(model)
    return model


def load_model(folder: ModelFolder, dtype: str, device: torch.device) -> Any:
    """The model in eval mode on `device`."""
    return pretrained_model(folder, dtype).to(device).eval()


def _from_pretrained(auto: Any, what: str, name: str, **options: Any) -> Any:
    load: Callable[..., Any] = auto.from_pretrained
    transformers_logging.disable_progress_bar()  # every rank would show one
    try:
        return load(name, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        problem = f"its {what} cannot be loaded ({reason})"
        remedy = "give a folder made by save_pretrained with its tokenizer, or a hub id that can be reached"
        raise UserError.of("--model", problem, remedy, name) from None
