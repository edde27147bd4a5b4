"""Everything of an export but the weights: configuration, tokenizer, generation settings."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from gaguide.files import write_json

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Companions:
    """What a model's folder holds besides its weights."""

    config: PretrainedConfig
    """The model's configuration."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of the training data, with the base model's chat template if it has none of its own."""
    generation: dict[str, Any] | None = None
    """Content of the base model's generation_config.json, kept as it is; None where it has none."""

    def write(self, folder: Path) -> None:
        """Write all of it into `folder`, which exists."""
        self.config.save_pretrained(folder)
        self.write_tokenizer(folder)

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer and the generation settings into `folder`.

        The tokenizer's `model_max_length` is at most the number of the model's positions: tokenizers that
        know none say 10^30, on which truncation by default relies.
        """
        tokenizer = deepcopy(self.tokenizer)
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        tokenizer.save_pretrained(folder)
        if self.generation is not None:
            write_json(folder / GENERATION_CONFIG, self.generation)


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """The generation settings in a folder; None where it has none or they cannot be read."""
    try:
        found = json.loads((folder / GENERATION_CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
