"""Rows of data in their publisher's columns → rows in ours, as a task file describes it.

    template:
      prompt: "{premise}\\nDoes it follow that {hypothesis}? Answer:"
      classes: {entailment: " Yes", neutral: " No"}     # by the label in the column `label` names
      label: gold_label
      group: "{pair}"

`{name}` stands for the row's column of that name, also `{a.b}` for a nested one and `{original cue}`; `{{`
and `}}` are braces. Nothing else is evaluated. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_NAME = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class TemplateError(Exception):
    """A row that does not fit the template; `args` are problem and remedy."""


def label_text(value: Any) -> str:
    """A label as text, the same for `true` in YAML, JSON and CSV."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _by_label(value: Any) -> Any:
    return {label_text(key): one for key, one in value.items()} if isinstance(value, Mapping) else value


ByLabel = BeforeValidator(_by_label)


class Template(BaseModel):
    """How a row becomes an example. Texts are templates over the row's columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = ""
    """The prompt."""
    classes: Annotated[Mapping[str, str] | tuple[str, ...], ByLabel] = ()
    """The classes: a list, or the text for each label, in the order of the classes."""
    classes_by: Annotated[Mapping[str, tuple[str, ...]], ByLabel] = {}
    """The classes for each value of the column `classes_column`, instead of `classes`."""
    classes_column: str | None = None
    """Column that chooses among `classes_by`."""
    label: str | None = None
    """Column of the right answer's label, or of its index where the classes are a list."""
    answers: Annotated[Mapping[str, int], ByLabel] = {}
    """Label → index of the right class, where the classes are a list."""
    answer: int | None = Field(default=None, ge=0)
    """Index of the right class in every row."""
    completion: str | None = None
    """The text to score, kind sequence_prob."""
    last_word: bool = False
    """Whether the text to score is the prompt's last word, with the space before it."""
    alternate: bool = False
    """Whether every second row has its classes in reverse, so that a position is right in half of them."""
    group: str | tuple[str, ...] | None = None
    """Group of an example (a minimal pair, a contrast set); a list is the same in any order."""
    part: str | None = None
    """Part of the task for which results are also reported, such as a condition."""
    parts: Mapping[str, str] = {}
    """Name → text: a row belongs to the first whose text its `part` contains."""
    id: str | None = None
    """The example's id; the row's number by default."""
    skip_other_labels: bool = False
    """Whether rows with another label than those of `classes` are left out, which a warning counts."""

    @model_validator(mode="after")
    def _check(self) -> Template:
        ways = [bool(self.classes), bool(self.classes_by), self.completion is not None, self.last_word]
        if sum(ways) != 1:
            raise ValueError("must have one of classes, classes_by, completion and last_word")
        if bool(self.classes_by) != (self.classes_column is not None):
            raise ValueError("must have classes_by and classes_column together")
        chosen = (self.label is not None) + (self.answer is not None)
        if chosen != int(ways[0] or ways[1]):
            raise ValueError("must have one of label and answer with classes, and none without")
        return self


def fill(text: str, row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """`text` with the row's values; `names` maps names in it to the row's columns."""

    def value_of(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        value = _column(row, names.get(match[1], match[1]))
        return value if isinstance(value, str) else label_text(getattr(value, "text", value))

    return _NAME.sub(value_of, text)


def apply_template(
    template: Template, row: Mapping[str, Any], names: Mapping[str, str], at: int
) -> dict[str, Any] | None:
    """Our columns of the row with number `at`; None where it is left out for its label.

    Raises `TemplateError`.
    """
    found: dict[str, Any] = {"prompt": fill(template.prompt, row, names)}
    if template.last_word:
        found["prompt"], found["completion"] = _split_last_word(found["prompt"])
    elif template.completion is not None:
        found["completion"] = fill(template.completion, row, names)
    else:
        answered = _classes(template, row, names)
        if answered is None:
            return None
        classes, answer = answered
        if template.alternate and at % 2:
            classes, answer = classes[::-1], len(classes) - 1 - answer
        found |= {"classes": classes, "answer_index": answer}
    if template.group is not None:
        found["group"] = _group(template.group, row, names)
    if template.part is not None:
        found["part"] = _part(fill(template.part, row, names), template.parts)
    if template.id is not None:
        found["id"] = fill(template.id, row, names)
    return found


def _classes(
    template: Template, row: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[list[str], int] | None:
    texts: Sequence[str]
    labels: dict[str, int] = dict(template.answers)
    if template.classes_column is not None:
        chosen = label_text(_column(row, names.get(template.classes_column, template.classes_column)))
        if chosen not in template.classes_by:
            raise TemplateError(f"{template.classes_column} is {chosen!r}", _one_of(template.classes_by))
        texts = template.classes_by[chosen]
    elif isinstance(template.classes, Mapping):
        texts = list(template.classes.values())
        labels = {label: index for index, label in enumerate(template.classes)}
    else:
        texts = template.classes
    classes = [fill(text, row, names) for text in texts]
    if template.label is None:
        assert template.answer is not None
        return classes, template.answer
    label = label_text(_column(row, names.get(template.label, template.label)))
    if label in labels:
        return classes, labels[label]
    if not labels and label.isdecimal():
        return classes, int(label)
    if template.skip_other_labels:
        return None
    expected = _one_of(labels) if labels else "give an index, counted from 0, or list `answers`"
    raise TemplateError(f"{template.label} is {label!r}", expected)


def _one_of(known: Mapping[str, Any]) -> str:
    return f"give one of {', '.join(known)}"


def _column(row: Mapping[str, Any], name: str) -> Any:
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            remedy = f"the row has {', '.join(map(str, row))}; see `columns` of the file in the task file"
            raise TemplateError(f"missing column {name!r}", remedy)
        value = value[part]
    if value is None:
        raise TemplateError(f"column {name!r} is null", "give it a value, or remove the row")
    return value


def _split_last_word(text: str) -> tuple[str, str]:
    before, space, word = text.rpartition(" ")
    if not before or not word:
        raise TemplateError("has no last word after a space", "give a text of at least two words")
    return before, space + word


def _group(group: str | tuple[str, ...], row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    if isinstance(group, str):
        return fill(group, row, names)
    return " | ".join(sorted(fill(text, row, names) for text in group))


def _part(text: str, parts: Mapping[str, str]) -> str:
    if not parts:
        return text
    for name, inside in parts.items():
        if inside in text:
            return name
    raise TemplateError(f"its part {text!r} contains none of {', '.join(parts.values())}", "list it in parts")
