"""From a YAML file and dotted overrides to a validated `RunConfig`, with every fault reported at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from gaguide.config.partners import leaves, replace_partners
from gaguide.config.run import RunConfig
from gaguide.config.validation import takes_text, validation_faults
from gaguide.config.yaml_tree import apply_overrides, merge, read_yaml
from gaguide.errors import Fault, UserError, mask_all
from gaguide.shipped import RECIPES

EMBEDDED = Path(__file__).parent / "embedded.yaml"
"""The run that needs nothing but this package; training without `--config` uses it."""

_MAX_EXTENDS = 8
_LAX = ConfigDict(coerce_numbers_to_str=True)  # as in the sections


@dataclass(frozen=True)
class Settings:
    """The settings of a run as far as they can be read: `run`, or `faults` and the sections without them."""

    run: RunConfig | None
    """The run; None if there are faults."""
    faults: tuple[Fault, ...]
    """Faults of the settings themselves."""
    sections: Mapping[str, Any]
    """Fields of `RunConfig` by name: values and sections. Faulty values have their defaults; sections that
    are not valid even so are left out."""


def load_config(
    path: Path | None, overrides: dict[str, str], note: Callable[[str], None] = lambda text: None
) -> RunConfig:
    """Read the run in `path` and apply the overrides, whose values are parsed as YAML.

    `path` is a YAML file or the name of a shipped recipe, or None for the embedded run. Of two settings that
    exclude each other (steps and epochs, plan and experiment) an override replaces the file's, and a file
    that of the file it extends; `note` is called with a sentence for each. Raises a `UserError` with every
    fault of the file and of the overrides.
    """
    settings = read_settings(path, overrides, note)
    if settings.run is None:
        raise UserError(settings.faults)
    return settings.run


def read_settings(
    path: Path | None, overrides: dict[str, str], note: Callable[[str], None] = lambda text: None
) -> Settings:
    """The same, for checks that continue where settings are faulty. Raises only for an unreadable file."""
    tree = _read_with_base(EMBEDDED if path is None else RECIPES.find(path, "--config"), note)
    faults = apply_overrides(tree, overrides, partial(takes_text, RunConfig))
    for text in replace_partners(tree, overrides):
        note(f"--{text} of {path or 'the embedded run'}")
    try:
        run = RunConfig.model_validate(tree)
    except ValidationError as error:
        faults += validation_faults(error, RunConfig, tree)
        return Settings(None, tuple(faults), _valid_fields(RunConfig, tree))
    sections = {name: getattr(run, name) for name in RunConfig.model_fields}
    return Settings(None if faults else run, tuple(faults), sections)


def _valid_fields(model: type[BaseModel], tree: Any) -> dict[str, Any]:
    """The fields of `model` that are valid in `tree`, others with their defaults; sections are objects.

    Faulty fields without a default, and their sections, are left out. Rules between fields are not checked.
    """
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        given = tree.get(name) if isinstance(tree, dict) else None
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found = _valid_fields(section, given)
            if all(each in found or not part.is_required() for each, part in section.model_fields.items()):
                values[name] = section.model_construct(**found)
            continue
        if not field.is_required():
            values[name] = field.default
        if isinstance(tree, dict) and name in tree:
            # A field describes itself, bounds and validators included.
            adapter: Any = TypeAdapter(Annotated[section, field], config=_LAX)  # type: ignore[arg-type]
            with suppress(ValidationError):
                values[name] = adapter.validate_python(given)
    return values


def dump_config(run: RunConfig, masked: bool = False) -> str:
    """The run as YAML text that `load_config` reads back to an equal one.

    masked: for people and records, with the credentials of addresses replaced by `***`.
    """
    tree = run.model_dump(mode="json")
    return yaml.safe_dump(mask_all(tree) if masked else tree, sort_keys=False, allow_unicode=True)


def _read_with_base(path: Path, note: Callable[[str], None], depth: int = 0) -> dict[str, Any]:
    """The file's tree, merged onto that of the file its `extends` names, relative to its own folder."""
    tree = read_yaml(path, "--config")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError.of("extends", "must be the path of a YAML file", f"correct {path}", base)
    if depth > _MAX_EXTENDS:
        problem = f"names more than {_MAX_EXTENDS} files in a row, or itself"
        raise UserError.of("extends", problem, f"correct {path}", base)
    merged = merge(_read_with_base(path.parent / base, note, depth + 1), tree)
    for text in replace_partners(merged, leaves(tree)):
        note(f"{path}: {text} of {base}")
    return merged
