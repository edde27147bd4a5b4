"""Every setting of a run with its type, default and meaning: for `gaguide train --help` and docs/settings.md.

    python -m gaguide.config.reference docs/settings.md

writes that page again after a setting has changed.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gaguide.config.run import RunConfig
from gaguide.config.validation import accepted
from gaguide.files import write_text

_HEAD = """\
# Settings of a run

Every setting of a run's YAML. The page is made from `gaguide/config/run.py` by
`python -m gaguide.config.reference docs/settings.md`; `gaguide train --help` prints the same.

On the command line a setting is written `--section.field VALUE` and takes precedence over the file. `null`
unsets a field that allows it: `--train.epochs null --train.steps 100` trains by steps where the file says
epochs. Whole numbers may be written `1e6`. A list of sections (`[]` below) is given as a whole, in YAML:
`--data.mixture "[{shards: a, weight: 1}, {shards: b, weight: 2}]"`.

ZeRO, precision, offload and communication belong to the DeepSpeed JSON:
[ds_configs/README.md](../ds_configs/README.md).
"""


@dataclass(frozen=True)
class Setting:
    """One setting of a run."""

    name: str
    """Dotted name; `[]` stands for the index of a list."""
    accepts: str
    """Accepted values, in words."""
    default: str
    """Default as YAML; `required` without one."""
    meaning: str
    """The sentence under the field."""

    @property
    def section(self) -> str:
        """The section that it belongs to; empty for a field of the run itself."""
        return self.name.rpartition(".")[0]


def settings() -> list[Setting]:
    """All settings, by section; those of the run itself come first."""
    return list(_settings(RunConfig, (), ""))


def settings_help(width: int = 100) -> str:
    """The settings as plain text."""
    lines = ["settings (docs/settings.md says the same; null where allowed means not set):"]
    section = None
    for each in settings():
        if each.section != section:
            section = each.section
            lines.append(f"\n  {section or 'the run'}")
        dashes = "" if "[]" in each.name else "--"
        default = each.default if each.default == "required" else f"default {each.default}"
        lines.append(f"    {dashes}{each.name}  ({each.accepts}; {default})")
        lines += textwrap.wrap(each.meaning, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
    # argparse formats the epilog with %.
    return "\n".join(lines).replace("%", "%%")


def settings_page() -> str:
    """The settings as a page of the documentation."""
    parts = [_HEAD]
    section = None
    for each in settings():
        if each.section != section:
            section = each.section
            heading = f"\n## {section or 'The run'}\n"
            parts.append(f"{heading}\n| setting | accepts | default | meaning |\n|---|---|---|---|\n")
        default = "required" if each.default == "required" else f"`{each.default}`"
        cells = (f"`{each.name}`", each.accepts, default, each.meaning)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _settings(model: type[BaseModel], path: tuple[str, ...], prefix: str) -> Iterator[Setting]:
    """The fields of a section, then those of the sections in it."""
    below = {name: _section_of(field.annotation) for name, field in model.model_fields.items()}
    for name, field in model.model_fields.items():
        if not _is_section(field.annotation):
            meaning = " ".join((field.description or "").split())
            yield Setting(f"{prefix}{name}", accepted(RunConfig, (*path, name)), _default(field), meaning)
    for name, field in model.model_fields.items():
        section = below[name]
        if section is not None:
            is_list = get_origin(field.annotation) is tuple
            inner = (*path, name, "0") if is_list else (*path, name)
            yield from _settings(section, inner, f"{prefix}{name}{'[]' if is_list else ''}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation is, or that it may be, or whose list it is; else None."""
    if _is_section(annotation):
        found: type[BaseModel] = annotation
        return found
    return next((found for found in map(_section_of, get_args(annotation)) if found is not None), None)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value)


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), settings_page())
