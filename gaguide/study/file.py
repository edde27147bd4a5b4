"""The study file: every setting of a study, with one sentence for each, and its faults all at once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from gaguide.config.run import DataSection, Fraction, ValidationSection
from gaguide.errors import Fault, UserError, suggestion

ORIGINAL, FINETUNED = "original", "finetuned"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Words = Annotated[tuple[str, ...], BeforeValidator(lambda value: _split(value)), Field(min_length=1)]


def _split(value: Any) -> Any:
    """`a,b` on the command line means the list."""
    if isinstance(value, (str, int)):
        return tuple(part.strip() for part in str(value).split(",") if part.strip())
    return value


def _named(value: Any) -> Any:
    """A bare word in a list of sizes or experiments is the one of that name."""
    return {"name": value} if isinstance(value, str) else value


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


class SizeSection(_Section):
    name: Name
    """Name in tables."""
    model: str | None = None
    """What `model.name` of a run takes: hub id, folder or size; null takes the name."""
    tokens: PositiveInt | None = None
    """Training tokens of a cell of this size; null takes the study's."""
    ds_config: str | None = None
    """DeepSpeed JSON for this size; null takes the study's."""
    ranks: PositiveInt | None = None
    """Ranks of a cell of this size; null takes the study's."""
    train: dict[str, Any] = {}
    """Fields of a run's `train` that differ for this size."""


class ExperimentSection(_Section):
    name: Name
    """Column in tables; `original` is the model before fine-tuning, and is not trained."""
    guidance: dict[str, Any] | None = None
    """A run's `guidance` section; null takes the study's experiment of that name."""
    start: Literal["base", "scratch"] = "base"
    """Fine-tune the base model, or train the same architecture from random weights."""
    tokens: PositiveInt | None = None
    """Training tokens of this column; null takes the size's or the study's."""
    train: dict[str, Any] = {}
    """Fields of a run's `train` that differ for this column."""
    against: tuple[str, ...] | None = None
    """Columns that it is compared with; null takes the study's baselines."""


class PretrainSection(_Section):
    tokens: PositiveInt
    """Training tokens of each base model."""
    train: dict[str, Any] = {}
    """Fields of a run's `train` that differ for base models."""


class EvaluateSection(_Section):
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the evaluation."""
    batch_tokens: PositiveInt | None = None
    """Padded tokens of an evaluation batch; null picks by device."""
    limit: PositiveInt | None = None
    """Only the first examples of each task."""


Sizes = Annotated[SizeSection, BeforeValidator(_named)]
Experiments = Annotated[ExperimentSection, BeforeValidator(_named)]


class StudyConfig(_Section):
    """A study."""

    name: Name
    """Name in reports."""
    output: str
    """Folder of everything the study writes."""
    sizes: Annotated[tuple[Sizes, ...], BeforeValidator(lambda v: _split(v)), Field(min_length=1)]
    """Models, as names or with their settings."""
    experiments: Annotated[tuple[Experiments, ...], BeforeValidator(lambda v: _split(v)), Field(min_length=1)]
    """Columns: original, finetuned, 1-negation, 3-negation, 4-transition, or any with a guidance section."""
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
        BeforeValidator(lambda value: _split(value)),
        Field(min_length=1),
    ] = (0,)
    """Seeds; each changes data order, dropout and random weights."""
    data: DataSection
    """A run's `data` section."""
    pretrain: PretrainSection | None = None
    """Train base models from random weights first, one a size and seed; null starts from pretrained ones."""
    data_tokens: PositiveInt | None = None
    """Training tokens that the data has, about: for --dry-run before it is built."""
    tokens: PositiveInt | None = None
    """Training tokens of a cell; null leaves the length to `train.epochs` or `train.steps`."""
    train: dict[str, Any] = {}
    """A run's `train` section, without the length where `tokens` is given."""
    dropout: Fraction | None = None
    """Dropout everywhere in the models; null leaves their own."""
    guidance: dict[str, Any] = {}
    """Fields of a run's `guidance` that all guided columns share, such as weight, mode and layers."""
    measure: str | None = None
    """Experiment whose words are measured, at weight 0, in columns without guidance; null measures none."""
    validation: ValidationSection = ValidationSection()
    """A run's `validation` section."""
    tasks: Words
    """What `launch/evaluate.py --tasks` takes."""
    task_data: str | None = None
    """What `launch/evaluate.py --data` takes."""
    evaluate: EvaluateSection = EvaluateSection()
    """How to evaluate."""
    ds_config: str = "ds_configs/zero2.json"
    """DeepSpeed JSON for all sizes that name none."""
    ranks: PositiveInt = 1
    """Ranks of a cell on this machine, where neither its size nor --ranks says otherwise."""
    baselines: tuple[str, ...] = (ORIGINAL, FINETUNED)
    """Columns that the others are compared with."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of finished cells; their exported models are always kept."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        problems = _twice("size", [size.name for size in self.sizes])
        problems += _twice("experiment", [experiment.name for experiment in self.experiments])
        problems += _twice("seed", [str(seed) for seed in self.seeds])
        for experiment in self.experiments:
            if experiment.name == ORIGINAL and (experiment.guidance or experiment.start == "scratch"):
                problems.append("experiment original is the model before fine-tuning: it takes no settings")
            unknown = set(experiment.against or ()) - {other.name for other in self.experiments}
            problems += [
                f"{experiment.name} is compared with {name!r}, which is no column" for name in unknown
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_study(path: Path | str, overrides: Mapping[str, str]) -> StudyConfig:
    """The study in a file, or the shipped one of that name, with dotted overrides read as YAML."""
    tree = _read(path)
    for field, text in overrides.items():
        *sections, leaf = field.split(".")
        below = tree
        for section in sections:
            if not isinstance(below.setdefault(section, {}), dict):
                raise UserError(Fault(f"--{field}", f"{section} is no section", "see docs/studies.md", text))
            below = below[section]
        try:
            below[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            below[leaf] = text
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError([_fault(found) for found in error.errors()]) from None


def shipped_studies() -> list[str]:
    """Names of the studies that come with gaguide."""
    entries = (files("gaguide.study") / "studies").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def _read(path: Path | str) -> dict[str, Any]:
    shipped = files("gaguide.study") / "studies" / f"{str(path).removesuffix('.yaml')}.yaml"
    is_name = "/" not in str(path) and not Path(path).is_file() and shipped.is_file()
    try:
        tree = yaml.safe_load(shipped.read_text("utf-8") if is_name else Path(path).read_text("utf-8"))
    except OSError as error:
        remedy = f"give a YAML file, or a shipped study: {', '.join(shipped_studies())}"
        raise UserError(Fault("FILE", f"cannot be read ({error.strerror})", remedy, str(path))) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(Fault("FILE", f"is not YAML: {error}", "mend the file", str(path))) from None
    if not isinstance(tree, dict):
        raise UserError(Fault("FILE", "holds no study", "see docs/studies.md", str(path)))
    return tree


def _twice(what: str, names: list[str]) -> list[str]:
    return [f"{what} {name} stands twice" for name in sorted({n for n in names if names.count(n) > 1})]


def _fault(found: Any) -> Fault:
    """One pydantic error in our words."""
    path = [str(part) for part in found["loc"]]
    section: Any = StudyConfig
    for part in path[:-1]:
        section = {"sizes": SizeSection, "experiments": ExperimentSection, "pretrain": PretrainSection,
                   "data": DataSection, "validation": ValidationSection,
                   "evaluate": EvaluateSection}.get(part, section)  # fmt: skip
    field, message = ".".join(path) or "study", found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        return Fault(field, "no such field", suggestion(path[-1], section.model_fields), found["input"])
    known = section.model_fields.get(path[-1]) if path else None
    described = (known.description if known else None) or "mend it"
    if found["type"] == "missing":
        return Fault(field, "is missing", f"give it: {described}")
    value = None if isinstance(found["input"], (dict, BaseModel)) else found["input"]
    return Fault(field, message[:1].lower() + message[1:], described, value)
