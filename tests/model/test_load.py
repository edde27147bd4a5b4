"""Loading a model's weights: all of them, or a fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gaguide.config import ModelSection
from gaguide.errors import UserError
from gaguide.evaluate.model_folder import ModelFolder, load_model
from gaguide.model import build_model, find_model
from tests.support.models import VOCABULARY, tiny_model


def load(folder: Path, name: str) -> None:
    found = find_model(ModelSection(name=str(folder)), VOCABULARY, 0)
    if name == "train":
        build_model(found, 0)
    else:
        load_model(ModelFolder(str(folder), found.config, None), "fp32", torch.device("cpu"))


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query"])  # with tied embeddings and without
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_weights_that_are_missing_are_not_replaced_by_random_ones(
    name: str, kind: str, tmp_path: Path
) -> None:
    tiny_model(kind).save_pretrained(tmp_path)
    load(tmp_path, name)
    weights = load_file(tmp_path / "model.safetensors")
    missing = next(key for key in weights if "attn" in key and "1." in key and "weight" in key)
    save_file({key: of for key, of in weights.items() if key != missing}, tmp_path / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(UserError, match="lack 1 of its tensors, which would be random numbers") as caught:
        load(tmp_path, name)
    assert missing in str(caught.value)
