"""Runs without their guided heads: the ablations in their folders, by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gaguide.ablate.records import FILE, AblationRecord, Effect, HeadRecord, ModelRecord, read_ablation
from gaguide.model.content import FileRecord, file_record, folder_record, other_files, weight_files
from gaguide.report.ablation_tables import span_table, verdict_table
from gaguide.report.document import Table

FOLDER = "ablation"
"""Subfolder of a run's folder that holds its ablation."""


@dataclass(frozen=True)
class RunAblation:
    """One run's model in an ablation."""

    record: AblationRecord
    """The ablation."""
    model: ModelRecord
    """The run's model in it."""

    @property
    def heads(self) -> Sequence[HeadRecord]:
        """The heads of the plan."""
        return self.model.with_role("guided")

    @property
    def loss(self) -> Effect:
        """Change of held-out loss without all heads of the plan at once, or without the only one."""
        together = self.model.together.get(self.record.deciding)
        if together is not None:
            return together.loss
        return self.heads[0].methods[self.record.deciding].loss if self.heads else Effect(None)


@dataclass(frozen=True)
class RunAblations:
    """The ablations of the runs in some folders."""

    found: Mapping[Path, RunAblation]
    """Run folder → its model in an ablation."""
    notes: Mapping[Path, str]
    """Run folder → why an ablation of it is not shown, or is shown although its model is not certain."""


def read_ablations(folders: Sequence[Path], record_of: FileRecord = file_record) -> RunAblations:
    """The ablations of the runs' models, by content, from any of these folders; a run's own comes first.

    Where a run's weights are missing, its ablation is found by the model's name, with a note. Where the
    ablation in its folder, or one that has its name, is of other weights, there is only a note. `record_of`
    gives the content of a model's file.
    """
    records = {
        folder: read_ablation(folder / FOLDER) for folder in folders if (folder / FOLDER / FILE).is_file()
    }
    found: dict[Path, RunAblation] = {}
    notes: dict[Path, str] = {}
    for folder in folders if records else ():
        own = [records[folder]] if folder in records else []
        others = [record for of, record in records.items() if of != folder]
        models = [(record, model) for record in (*own, *others) for model in record.models]
        places = (folder.resolve(), (folder / "model").resolve())
        named = [(record, model) for record, model in models if Path(model.model).resolve() in places]
        weights = next((of for of in (folder / "model", folder) if of.is_dir() and weight_files(of)), None)
        if weights is None:
            if named:
                found[folder] = RunAblation(*named[0])
                notes[folder] = (
                    "its weights are missing, so it cannot be checked that the ablation is of this model"
                )
            continue
        now = folder_record(weights, record_of)
        same = [
            (record, model)
            for record, model in models
            if "files" in model.identity and not other_files(model.identity, weights, now)
        ]
        if same:
            found[folder] = RunAblation(*same[0])
        elif own or named:
            model = named[0][1] if named else own[0].models[-1]
            other = ", ".join(other_files(model.identity, weights, now))
            what = f"a model with other content ({other})" if other else f"another model ({model.model})"
            notes[folder] = (
                f"an ablation of it is of {what}, and is not shown; run gaguide ablate again, into another "
                "folder"
            )
    return RunAblations(found, notes)


def ablation_tables(ablations: Sequence[RunAblation | None]) -> list[Table]:
    """The verdicts on the runs' heads and their attention on tasks' spans, of each ablation once."""
    found = {id(one.record): one.record for one in ablations if one is not None}
    records = list(found.values())
    return [table for table in (verdict_table(records), span_table(records)) if table.rows]
