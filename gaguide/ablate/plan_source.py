"""Where an ablation's heads are named: an experiment, a run, or a file with a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gaguide.config import GuidanceSection, RunConfig, load_config
from gaguide.config.experiments import EXPERIMENTS
from gaguide.config.validation import validation_faults
from gaguide.config.yaml_tree import read_yaml
from gaguide.errors import UserError, suggestion
from gaguide.evaluate.model_folder import model_path
from gaguide.log import run_files


@dataclass(frozen=True)
class PlanSource:
    """Where the guided heads are named."""

    section: GuidanceSection
    """The settings of the guidance."""
    run: RunConfig | None
    """The run that names them; None for an experiment and for a file with guidance only."""
    name: str
    """The plan's name, as given."""


def find_plan(models: Sequence[str], given: str | None) -> PlanSource:
    """The guidance that `given` names: an experiment, a file of a run or with a `guidance` or `plan` alone,
    or FILE:NAME for one of several in a file.

    None takes the first run among the models' folders that guides, else one that measures.
    """
    if given is None:
        runs = [run for name in models if (run := _run_of(Path(model_path(name)))) is not None]
        naming = [run for run in runs if run.guidance.plan or run.guidance.experiment != "finetuned"]
        if not naming:
            problem = "is required: none of the models is in the folder of a run that names heads"
            remedy = (
                f"give an experiment ({', '.join(_guiding())}), a run's config.yaml, or a plan's YAML file"
            )
            raise UserError.of("--plan", problem, remedy)
        run = next((run for run in naming if run.guidance.weight > 0), naming[0])
        return PlanSource(run.guidance, run, str(Path(run.output) / run_files.CONFIG))
    if given in _guiding():
        return PlanSource(GuidanceSection(experiment=given), None, given)
    path, name = Path(given).expanduser(), ""
    if not path.exists() and ":" in given:
        path, name = Path(given.rpartition(":")[0]).expanduser(), given.rpartition(":")[2]
    if path.is_dir() and (path / run_files.CONFIG).is_file():
        path = path / run_files.CONFIG
    if not path.is_file():
        remedy = f"give an experiment ({', '.join(_guiding())}), a run's config.yaml, or a plan's YAML file"
        raise UserError.of("--plan", "is not an experiment or a file", remedy, given)
    tree = read_yaml(path, "--plan")
    if name:
        if not isinstance(tree.get(name), dict):
            raise UserError.of("--plan", f"{path} has no such plan", suggestion(name, tree), name)
        tree = tree[name]
    if {"train", "data", "extends"} & set(tree):
        run = load_config(path, {})
        return PlanSource(run.guidance, run, str(path))
    from pydantic import ValidationError

    section = tree.get("guidance", tree)
    try:
        return PlanSource(GuidanceSection.model_validate(section), None, str(path))
    except ValidationError as error:
        raise UserError(validation_faults(error, GuidanceSection, section, "--plan")) from None


def _guiding() -> list[str]:
    return [name for name, words in EXPERIMENTS.items() if words]


def _run_of(model: Path) -> RunConfig | None:
    """The settings of the run whose folder holds a model; None where there are none."""
    path = model.parent / run_files.CONFIG
    if model.name != "model" or not path.is_file():
        return None
    run = load_config(path, {})
    return run.model_copy(update={"output": str(model.parent)})
