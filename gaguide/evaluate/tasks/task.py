"""Task files: what is asked of a model, and where its data are.

The sets of the Inverse Scaling Prize and the synthetic ones ship with this package. A task of your own
needs a name, a kind and a data file:

    name: my-quiz
    kind: classification
    file: my-quiz.jsonl
    columns: {prompt: question, classes: choices, answer_index: label}
    delimiter: " "
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gaguide.config.validation import validation_faults
from gaguide.config.yaml_tree import read_yaml
from gaguide.errors import UserError
from gaguide.evaluate.tasks.template import Template
from gaguide.grouping import grouped

Kind = Literal[
    "classification",
    "sequence_prob",
    "logodds",
    "absolute_logodds",
    "numeric",
    "perplexity",
    "rolling",
    "near_cue",
]


class Fewshot(BaseModel):
    """Demonstrations before every prompt of a task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1)
    """Number of demonstrations."""
    draw: Literal["once", "first", "each"] = "once"
    """`once`: the same ones for all examples, by `seed`; `first`: the first ones of the data; `each`: other
    ones for each example, the same as lm-evaluation-harness draws with that seed."""
    seed: int = 0
    """Seed of the draw."""
    file: str | None = None
    """Data file to draw from, relative to the task file; None draws from the task's own examples and removes
    those that were drawn from the task."""
    separator: str = "\n\n"
    """Text after each demonstration."""


class DataFile(BaseModel):
    """One data file of a task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(min_length=1)
    """Path, relative to the task file, or in the folder of --data."""
    also: tuple[str, ...] = ()
    """Other paths that it may have in the folder of --data."""
    sha256: str | None = None
    """SHA-256 of the released file; another file's hash is a warning."""
    columns: Mapping[str, str] = {}
    """Name in the task's template → the file's column."""
    part: str | None = None
    """Part of the task that its examples belong to, for which results are also reported."""


class Task(BaseModel):
    """One task, as its file describes it. Texts are used unchanged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    """Name in results and after --tasks."""
    kind: Kind | None = None
    """How examples are scored; None infers it from the columns of the data."""
    group: str | None = None
    """Name that stands for several tasks after --tasks."""
    summary: str = ""
    """One sentence for people; no part of the prompts."""
    description: str = ""
    """Text before every prompt, demonstrations included; as in lm-evaluation-harness, nothing is put between
    them."""
    source: str | None = None
    """Where the data are published."""
    license: str | None = None
    """The data's licence, as its publishers state it."""
    doi: str | None = Field(default=None, pattern=r"^10\.\d{4,9}/\S+$")
    """DOI of the data, or of the paper that describes them."""
    shows: str = ""
    """Meaning of a good score, for people."""
    hides: str = ""
    """Limits of a score: facts that it cannot show, for people."""

    file: str | None = None
    """Data file, relative to the task file."""
    sha256: str | None = None
    """SHA-256 of the released data file; another file's hash is a warning."""
    files: tuple[DataFile, ...] = ()
    """Several data files, or one with a description of its own, instead of `file`."""
    template: Template | None = None
    """How a row of data in other columns becomes an example."""
    hub: str | None = None
    """Data set on the Hugging Face hub, used where no file is given or found."""
    hub_file: str | None = None
    """File in the hub's data set; None loads the data set with `datasets`."""
    split: str | None = None
    """Split: `train` of a hub data set, `validation` of shards by default."""
    generator: str | None = None
    """Name of a generator in `synthetic.py`, which makes the data."""
    count: int = 0
    """Examples to generate."""
    seed: int = 0
    """Seed of the generator."""

    shards: str | None = None
    """Kinds perplexity and near_cue: folder (relative to the task file) or address of shards."""
    block_length: int | None = Field(default=None, ge=2)
    """Kind perplexity: tokens of a block; None takes the model's positions, at most 1,024."""
    blocks: int = Field(default=256, ge=1)
    """Kind perplexity: blocks to evaluate, spread evenly over the split."""
    lexicon: str | None = None
    """Kind near_cue: word set whose words are the cues."""
    lexicons: str | None = None
    """Kind near_cue: YAML file of own word sets, relative to the task file."""
    cue_mode: Literal["pieces", "words"] = "words"
    """Kind near_cue: whether whole words are cues, or vocabulary pieces, as guidance's `pieces`."""
    isolate_documents: bool = False
    """Kind perplexity: whether documents of a block are evaluated separately."""

    columns: Mapping[str, str] = {}
    """Our column name → the data's, with dots into nested columns."""
    spans: Mapping[str, str] = {}
    """Mark → column with character spans of the prompt, as `--spans` of `gaguide data build`: the targets of
    the pattern `spans:MARK` in this task's prompts. No score depends on them."""
    header: tuple[str, ...] | None = None
    """Names of the columns of a CSV file that does not begin with them."""
    delimiter: str = ""
    """Text before every class and completion."""
    mutual_information: bool = False
    """Kind classification: also score each class without a prompt, for `acc_mutual_info`."""
    fewshot: Fewshot | None = None
    """Demonstrations before every prompt."""
    new_tokens: int = Field(default=8, ge=1)
    """Kind numeric: tokens to generate."""

    lm_eval: str | None = None
    """The task's name in lm-evaluation-harness."""
    paper: Mapping[str, Mapping[str, float]] = {}
    """Accuracies in the paper, by model and experiment."""

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.files and (self.file is not None or self.sha256 is not None):
            raise ValueError("must have files or file and sha256, not both")
        if self.template is not None and self.columns:
            raise ValueError("must have a template or columns, not both")
        if self.spans and (self.template, self.shards, self.generator) != (None, None, None):
            raise ValueError("spans need prompts in columns: not with template, shards, generator")
        return self

    @property
    def data_files(self) -> tuple[DataFile, ...]:
        """The task's data files; () where its data are not files."""
        if self.file is not None:
            return (DataFile(file=self.file, sha256=self.sha256),)
        return self.files


@cache
def built_in_tasks() -> dict[str, Task]:
    """The tasks that ship with the package, by name."""
    with as_file(files("gaguide.evaluate.tasks")) as folder:
        return {task.name: task for task in map(read_task_file, sorted(folder.glob("*.yaml")))}


def groups() -> dict[str, list[str]]:
    """Names of the built-in tasks by group."""
    return grouped((task.group, task.name) for task in built_in_tasks().values() if task.group is not None)


def read_task_file(path: Path) -> Task:
    """The task in a YAML file. Raises `UserError` with every unknown or invalid key."""
    tree = {str(key): value for key, value in read_yaml(path, "task file").items()}
    try:
        return Task(**tree)
    except ValidationError as error:
        raise UserError(
            replace(fault, field=f"{path}: {fault.field}")
            for fault in validation_faults(error, Task, tree, "task")
        ) from None
