"""What is known of runs without their guided heads: the ablations in their folders, by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gaguide.ablate.records import FILE, AblationRecord, Effect, HeadRecord, ModelRecord, read_ablation
from gaguide.report.ablation_tables import verdict_table
from gaguide.report.document import Table

FOLDER = "ablation"
"""Folder in a run's that holds its ablation."""


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


def read_ablations(folders: Sequence[Path]) -> Mapping[Path, RunAblation]:
    """Run folder → its model in the first ablation of these folders that has it; their own comes first."""
    records = {
        folder: read_ablation(folder / FOLDER) for folder in folders if (folder / FOLDER / FILE).is_file()
    }
    found = {}
    for folder in folders:
        own = [records[folder]] if folder in records else []
        others = [record for of, record in records.items() if of != folder]
        places = {folder.resolve(), (folder / "model").resolve()}
        for record in (*own, *others):
            model = next((one for one in record.models if Path(one.model).resolve() in places), None)
            if model is not None:
                found[folder] = RunAblation(record, model)
                break
    return found


def ablation_table(ablations: Sequence[RunAblation | None]) -> Table:
    """The verdicts on the runs' heads, of each ablation once; without rows where there is none."""
    records = {id(one.record): one.record for one in ablations if one is not None}
    return verdict_table(list(records.values()))
