"""Files of an export other than the weights: configuration, tokenizer, generation settings, licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from gaguide.checkpoint.store import MODEL_FOLDER
from gaguide.checkpoint.verify import MANIFEST
from gaguide.config import ModelSection
from gaguide.errors import UserError
from gaguide.files import read_object, write_bytes, write_json
from gaguide.model import find_model, skeleton
from gaguide.model.content import ADAPTER_CONFIG
from gaguide.model.licenses import read_licenses
from gaguide.model.lora import Adapter, check_libraries, find_adapter, read_adapter_section

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Companions:
    """Files of a model's folder other than its weights."""

    config: PretrainedConfig
    """The model's configuration."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of the training data, with the base model's chat template if it has none of its own."""
    generation: dict[str, Any] | None = None
    """Content of the base model's generation_config.json, kept as it is; None where it has none."""
    adapter: Adapter | None = None
    """The adapters that were trained; None where the model's own weights were."""
    licenses: Mapping[str, bytes] = field(default_factory=dict)
    """Name → content of the base model's licence and notice files."""

    def write(self, folder: Path) -> None:
        """Write all of it into `folder`, which exists."""
        self.config.save_pretrained(folder)
        if self.adapter is not None:
            self.adapter.write_config(folder)
        self.write_tokenizer(folder)

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, the generation settings and the licence files into `folder`.

        The tokenizer's `model_max_length` is at most the number of the model's positions: tokenizers without
        a limit have 10^30 there, and truncation relies on it by default.
        """
        tokenizer = deepcopy(self.tokenizer)
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        tokenizer.save_pretrained(folder)
        if self.generation is not None:
            write_json(folder / GENERATION_CONFIG, self.generation)
        for name, content in self.licenses.items():
            write_bytes(folder / name, content)


def read_companions(checkpoint: Path, base: Path | None = None) -> Companions:
    """Files of a checkpoint's export other than the weights; no code from the checkpoint is executed.

    base: folder of its adapters' base model, if it was moved. Raises a `UserError` if that is another
    model, or if it is given and the checkpoint has no adapters.
    """
    source = checkpoint / MODEL_FOLDER
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    adapter = None
    if (source / ADAPTER_CONFIG).is_file():
        adapter = _read_adapter(checkpoint, base)
    elif base is not None:
        problem = "the checkpoint has whole weights, not adapters on a base"
        raise UserError.of("--base", problem, "leave it out", str(base))
    generation = read_object(source / GENERATION_CONFIG) or None
    return Companions(config, tokenizer, generation, adapter, read_licenses(source))


def _read_adapter(checkpoint: Path, base: Path | None) -> Adapter:
    section, name, revision = read_adapter_section(checkpoint / MODEL_FOLDER)
    given = ModelSection(name=name, revision=revision) if base is None else ModelSection(name=str(base))
    try:
        found = find_model(given, 0, None)
    except UserError as error:
        problem = f"the base of the adapters: {error.faults[0].problem}"
        raise UserError.of("--base", problem, "give its folder with --base", given.name) from None
    identity = json.loads((checkpoint / MANIFEST).read_text("utf-8"))["identity"]
    section = section.model_copy(update={"quantize": identity["train.lora"].get("quantize")})
    if found.weights != identity["base weights"]:
        problem = f"its weights are not those that the adapters were trained on ({name})"
        raise UserError.of("--base", problem, "give the folder of that model with --base", given.name)
    check_libraries(section)
    return find_adapter(skeleton(found), found, section)
