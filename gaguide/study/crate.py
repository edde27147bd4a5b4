"""The RO-Crate of a study: its records, and the text, models, tasks and software that they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gaguide.errors import FaultCollector
from gaguide.evaluate.tasks.locate import LocatedTask, files_hash, locate_tasks, split_names
from gaguide.files import hash_file
from gaguide.log import run_files
from gaguide.publish.citation import doi_url
from gaguide.publish.crate import Crate
from gaguide.study.grid import Cell, Grid
from gaguide.study.record_files import STUDY, tables_folder
from gaguide.study.state import read_summary
from gaguide.study.study_records import StudyRecords

_RECORDS = (
    run_files.CONFIG, run_files.DEEPSPEED, run_files.SUMMARY, run_files.METRICS, run_files.VALIDATIONS,
    run_files.EVALUATIONS, run_files.SKIPPED, "evaluation/results.json", "ablation/ablation.json",
)  # fmt: skip
"""A cell's records; its models and checkpoints are identified by their inputs."""


def write_study_crate(grid: Grid, records: StudyRecords) -> Path:
    """Write ro-crate-metadata.json into the study's folder."""
    study = grid.study
    crate = Crate(
        grid.folder,
        f"study {study.name}",
        f"{len(study.sizes)} sizes, {len(study.experiments)} experiments and {len(study.seeds)} seeds of "
        "attention-guided training, evaluated on the same tasks.",
        study.license,
    )
    authors = [_author(crate, name) for name in study.authors]
    if authors:
        crate.root["author"] = authors
    for path in [grid.folder / STUDY, *sorted(tables_folder(grid.folder).glob("*.*"))]:
        if path.is_file():
            crate.add_file(path)
    data = Path(study.task_data).expanduser() if study.task_data else None
    faults = FaultCollector()  # what is wrong with tasks was reported before the study ran
    tasks = [add_task(crate, located) for located in locate_tasks(split_names(study.tasks), data, faults)]
    code = records.provenance["code"]
    software = crate.add_software(records.provenance["versions"], code["sha256"], code["commit"])
    for cell in grid.cells:
        _add_cell(crate, grid, cell, tasks)
    tables = [{"@id": each["@id"]} for each in crate.root["hasPart"]]
    crate.add_action("collection of the study", "./", [*tasks, *tables], software)
    return crate.write()


def _author(crate: Crate, author: Any) -> dict[str, str]:
    place = author.orcid or f"#{author.name.replace(' ', '-').lower()}"
    return crate.add(
        {"@id": place, "@type": "Person", "name": author.name, "affiliation": author.affiliation}
    )


def _add_cell(crate: Crate, grid: Grid, cell: Cell, tasks: list[dict[str, str]]) -> None:
    """A cell's records, and the inputs of its training."""
    folder, summary = grid.path(cell), read_summary(grid.path(cell))
    for name in _RECORDS:
        if (folder / name).is_file():
            crate.add_file(folder / name)
    if summary:
        made = (folder / run_files.SUMMARY).relative_to(grid.folder).as_posix()
        crate.add_training(f"training and evaluation of {cell.id}", made, summary, tasks)


def add_task(crate: Crate, located: LocatedTask) -> dict[str, str]:
    """Add a task's data: where they are published and described, and their licence."""
    task = located.task
    citation = None
    if task.doi is not None:
        citation = crate.add(
            {"@id": doi_url(task.doi), "@type": "ScholarlyArticle", "identifier": doi_url(task.doi)}
        )
    hub = f"https://huggingface.co/datasets/{task.hub}" if task.hub else None
    return crate.add(
        {
            "@id": f"#task-{task.name}",
            "@type": "Dataset",
            "name": task.name,
            "description": task.summary,
            "url": task.source or hub,
            "license": task.license,
            "sha256": files_hash([hash_file(path) for path in located.paths if path.is_file()]),
            "citation": citation,
        }
    )
