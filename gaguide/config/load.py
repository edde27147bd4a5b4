"""From a YAML file and dotted overrides to a validated `RunConfig`, with every fault reported at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gaguide.config.partners import leaves, replace_partners
from gaguide.config.run import RunConfig
from gaguide.config.validation import takes_text, validation_faults
from gaguide.config.yaml_tree import apply_overrides, merge, read_yaml
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.shipped import RECIPES

EMBEDDED = Path(__file__).parent / "embedded.yaml"
"""The run that needs nothing but this package; training without `--config` uses it."""

_MAX_EXTENDS = 8


def load_config(
    path: Path | None, overrides: dict[str, str], note: Callable[[str], None] = lambda text: None
) -> RunConfig:
    """Read the run in `path` and apply the overrides, whose values are parsed as YAML.

    `path` is a YAML file or the name of a shipped recipe, or None for the embedded run. Of two settings that
    exclude each other (steps and epochs, plan and experiment) an override replaces the file's, and a file
    that of the file it extends; `note` is called with a sentence for each. Raises a `UserError` with every
    fault of the file and of the overrides.
    """
    tree = _read_with_base(EMBEDDED if path is None else RECIPES.find(path, "--config"), note)
    with FaultCollector() as faults:
        faults.add(*apply_overrides(tree, overrides, partial(takes_text, RunConfig)))
        for text in replace_partners(tree, overrides):
            note(f"--{text} of {path or 'the embedded run'}")
        try:
            return RunConfig.model_validate(tree)
        except ValidationError as error:
            raise UserError(validation_faults(error, RunConfig, tree)) from None


def dump_config(run: RunConfig) -> str:
    """The run as YAML text that `load_config` reads back to an equal one."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_with_base(path: Path, note: Callable[[str], None], depth: int = 0) -> dict[str, Any]:
    """The file's tree, merged onto that of the file its `extends` names, relative to its own folder."""
    tree = read_yaml(path, "--config")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(Fault("extends", "must be the path of a YAML file", f"correct {path}", base))
    if depth > _MAX_EXTENDS:
        problem = f"names more than {_MAX_EXTENDS} files in a row, or itself"
        raise UserError(Fault("extends", problem, f"correct {path}", base))
    merged = merge(_read_with_base(path.parent / base, note, depth + 1), tree)
    for text in replace_partners(merged, leaves(tree)):
        note(f"{path}: {text} of {base}")
    return merged
