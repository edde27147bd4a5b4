"""Embeddings for added tokens, and the identity of a model by content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gaguide.config import ModelSection
from gaguide.model import build_model, find_model, with_vocabulary
from tests.support.models import VOCABULARY, tiny_model


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query"])
def test_added_rows_are_the_mean_and_tied_weights_stay_tied(kind: str, tmp_path: Path) -> None:
    base = tiny_model(kind)
    base.save_pretrained(tmp_path)
    source = find_model(ModelSection(name=str(tmp_path)), VOCABULARY, 0)
    larger = with_vocabulary(source, VOCABULARY + 5)
    assert larger.config.vocab_size == VOCABULARY + 5 and source.config.vocab_size == VOCABULARY
    assert larger.fingerprint != source.fingerprint and with_vocabulary(source, 3) is source
    model = build_model(larger, 0)
    assert model.config.vocab_size == VOCABULARY + 5
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    for mine, theirs in (
        (model.get_input_embeddings().weight, base.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, base.get_output_embeddings().weight),
    ):
        assert torch.equal(mine[:VOCABULARY], theirs)
        torch.testing.assert_close(mine[VOCABULARY:], theirs.mean(0).expand(5, -1))


def test_a_model_is_identified_by_its_content(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    tiny_model(seed=1).save_pretrained(tmp_path / "other")

    def fingerprint(name: str, **more: float) -> str:
        return find_model(ModelSection(name=name, **more), VOCABULARY, 0).fingerprint

    one = fingerprint(str(tmp_path / "one"))
    assert one == fingerprint(f"{tmp_path}/one/") == fingerprint(str(tmp_path / "copy"))
    assert one == fingerprint(str(tmp_path / "one"), dropout=0.2)
    assert one != fingerprint(str(tmp_path / "other"))
