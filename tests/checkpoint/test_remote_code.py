"""Python code in a model folder runs only with `model.trust_remote_code`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaguide.config import ModelSection
from gaguide.errors import UserError
from gaguide.model import build_model, find_model, skeleton
from gaguide.model.load import ModelSource

CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel

Path({canary!r}).write_text("executed")


class OwnConfig(GPT2Config):
    model_type = "own"


class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


def test_code_in_a_folder_runs_only_when_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, canary = tmp_path / "own", tmp_path / "executed"
    folder.mkdir()
    (folder / "own.py").write_text(CODE.format(canary=str(canary)))
    shape = {"model_type": "own", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32}
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(shape | {"auto_map": classes}))

    section = ModelSection(name=str(folder), init="scratch")
    with pytest.raises(UserError, match=r"set model\.trust_remote_code: true"):
        find_model(section, 32, None)
    assert not canary.exists()

    trusted = ModelSection(name=str(folder), init="scratch", trust_remote_code=True)
    source = find_model(trusted, 32, None)
    assert canary.exists()
    # A trusted configuration does not imply a trusted model class.
    with pytest.raises(UserError, match="cannot be built"):
        skeleton(ModelSource(section, source.config))
    assert type(build_model(source, 0)).__name__ == "OwnModel"
