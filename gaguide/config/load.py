"""From YAML and dotted overrides to a checked RunConfig; every fault is reported at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gaguide.config.run import RunConfig
from gaguide.config.validation import takes_text, validation_faults
from gaguide.config.yaml_tree import apply_overrides, merge, read_yaml
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.shipped import RECIPES

EMBEDDED = Path(__file__).parent / "embedded.yaml"
"""The run that needs nothing but this package; it is what `launch/train.py` does without `--config`."""


def load_config(path: Path | None, overrides: dict[str, str]) -> RunConfig:
    """The run in `path` with overrides, whose values are read as YAML.

    path: a YAML file or the name of a shipped recipe; None for the embedded run.
    """
    tree = _read_with_base(EMBEDDED if path is None else RECIPES.find(path, "--config"))
    with FaultCollector() as faults:
        faults.add(*apply_overrides(tree, overrides, partial(takes_text, RunConfig)))
        try:
            return RunConfig.model_validate(tree)
        except ValidationError as error:
            raise UserError(validation_faults(error, RunConfig, tree)) from None


def dump_config(run: RunConfig) -> str:
    """The run as YAML text that `load_config` reads back."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_with_base(path: Path, depth: int = 0) -> dict[str, Any]:
    """The file's tree over that of the file it names in `extends` (relative to itself)."""
    tree = read_yaml(path, "--config")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str) or depth > 8:
        raise UserError(Fault("extends", "names no file, or itself", f"mend {path}", base))
    return merge(_read_with_base(path.parent / base, depth + 1), tree)
