"""The records in a run's folder. An unfinished run has fewer of them, which is not an error.

Files: config.yaml; metrics.jsonl, validation.jsonl, evaluations.jsonl and skipped.jsonl (one object per
logged step); summary.json once the run has ended, FOLDER/results.json for every evaluation of its model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from gaguide.config.yaml_tree import parse_yaml
from gaguide.errors import Fault, FaultCollector, UserError, mask_credentials
from gaguide.log import read_metrics, run_files
from gaguide.model.content import FileRecord, file_record
from gaguide.numbers import finite
from gaguide.report.run_ablations import RunAblation, read_ablations
from gaguide.report.run_scores import TaskScore, read_evaluations
from gaguide.report.run_validation import Validation, comparable, mapping, read_validation, text, whole

_RECORDS = (run_files.SUMMARY, run_files.METRICS, run_files.CONFIG)


@dataclass(frozen=True)
class RunRecord:
    """One run. An unfinished one is described by its config.yaml and its latest records."""

    folder: Path
    """The run's folder."""
    name: str
    """The run's name, or else its folder's."""
    finished: bool
    """Whether summary.json exists."""
    experiment: str | None
    """Name of the guidance experiment."""
    guidance_weight: float | None
    """Weight of the guidance loss; 0 only measures."""
    steps: int | None
    """Optimizer steps; of an unfinished run, those it has logged."""
    tokens: int | None
    """Training tokens, of all ranks together."""
    seconds: float | None
    """Seconds spent in training steps; validation, evaluation and saving are left out."""
    world_size: int | None
    """Number of ranks."""
    before: Validation | None
    """Measurement before the first step."""
    after: Validation | None
    """Measurement after the last step; of an unfinished run, the latest after step 0."""
    metrics: tuple[Mapping[str, Any], ...]
    """Records of metrics.jsonl that have a step."""
    validations: tuple[Mapping[str, Any], ...]
    """Records of validation.jsonl that have a step."""
    scores: tuple[TaskScore, ...] | None
    """Task scores; None where the run was not evaluated."""
    versions: Mapping[str, str]
    """Version by package."""
    fingerprints: Mapping[str, str]
    """Fingerprint of the data, tokenizer, order and code."""
    config: str
    """Text of config.yaml."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Content of config.yaml; empty where it cannot be read."""
    total_steps: int | None = None
    """Planned optimizer steps; None where that is not known."""
    dropped: int | None = None
    """Steps that were dropped because their gradient was not finite; None where that is not known."""
    diverged: str | None = None
    """Why the run is taken to have diverged; None where it is not."""
    evaluations: Mapping[str, Path] = field(default_factory=dict)
    """Task → folder of the evaluation that its scores are from."""
    notes: tuple[str, ...] = ()
    """Notes for the reader of its numbers."""
    trained: int | None = None
    """Parameters that were trained; None where all of the model were, or where that is not known."""
    ablation: RunAblation | None = None
    """Its loss without its guided heads; None where that was not measured."""
    patterns: Mapping[str, Any] = field(default_factory=dict)
    """Pattern → the words or pieces that it marks; empty in records of older versions."""

    @property
    def state(self) -> str:
        """finished, diverged, or the run's progress."""
        if self.diverged:
            return "diverged"
        if self.finished:
            return "finished"
        steps = "" if self.steps is None else f" (step {self.steps:,}"
        of = "" if self.total_steps is None else f" of {self.total_steps:,}"
        return f"not finished{steps}{of})" if steps else "not finished"

    @property
    def tokens_per_second(self) -> float | None:
        """Training tokens per second over the whole run, all ranks together."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    @property
    def rise(self) -> float | None:
        """Rise of the guided heads' attention; None where before and after are means over other heads."""
        before, after = self.before, self.after
        if before is None or after is None or before.heads != after.heads:
            return None
        if before.guided_attention is None or after.guided_attention is None:
            return None
        return after.guided_attention - before.guided_attention

    def has_blocks_of(self, other: RunRecord) -> bool:
        """Whether both were measured on the same held-out blocks after training, as far as is known."""
        known = {one.after.measure for one in (self, other) if one.after is not None}
        return len(known - {None}) < 2

    def has_heads_of(self, other: RunRecord) -> bool:
        """Whether the attention of both after training is of the same heads on the same words and blocks."""
        if self.after is None or other.after is None or self.after.heads != other.after.heads:
            return False
        if not self.has_blocks_of(other):
            return False
        shared = {pattern for *_, pattern in self.after.heads} & self.patterns.keys() & other.patterns.keys()
        return all(self.patterns[name] == other.patterns[name] for name in shared)


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The records of every folder, in order; runs of one name get a part of their path added to it.

    Raises one `UserError` for all folders without a run, folders given twice and records that cannot be read.
    """
    record_of = cache(file_record)  # evaluations and ablations are compared with the same files
    with FaultCollector() as faults:
        found = [faults.attempt(_read_run, folder, record_of) for folder in folders]
        for path, count in Counter(folder.resolve() for folder in folders).items():
            if count > 1:
                faults.add(Fault("RUN", "is given twice", "give each run once", str(path)))
        ablations = faults.attempt(read_ablations, folders, record_of)
    assert ablations is not None
    runs = [
        replace(
            run,
            ablation=ablations.found.get(run.folder),
            notes=(*run.notes, *([note] if (note := ablations.notes.get(run.folder)) else [])),
        )
        for run in found
        if run is not None
    ]
    names = Counter(run.name for run in runs)
    return [
        replace(run, name=f"{run.name} ({_distinct(run, runs)})") if names[run.name] > 1 else run
        for run in runs
    ]


def _distinct(run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """The shortest end of the run's path that no other run of its name has."""
    parts = run.folder.resolve().parts
    others = [other.folder.resolve().parts for other in runs if other.name == run.name and other is not run]
    for length in range(1, len(parts) + 1):
        if all(other[-length:] != parts[-length:] for other in others):
            return "/".join(parts[-length:])
    return str(run.folder)


def _read_run(folder: Path, record_of: FileRecord) -> RunRecord:
    if not any((folder / name).is_file() for name in _RECORDS):
        problem = "contains no records of a run" if folder.is_dir() else "is not a folder"
        raise UserError.of("RUN", problem, "give the output folder of a training", str(folder))
    summary = _read_object(folder / run_files.SUMMARY)
    validation = mapping(summary.get("validation"))
    path = folder / run_files.CONFIG
    config = mask_credentials(path.read_text("utf-8")) if path.is_file() else ""
    settings = _settings(config)
    metrics = _lines(folder / run_files.METRICS)
    validations = comparable(_lines(folder / run_files.VALIDATIONS))
    last = metrics[-1] if metrics else {}
    if not summary:
        first = validations[0] if validations and validations[0]["step"] == 0 else None
        latest = validations[-1] if validations and validations[-1]["step"] > 0 else None
        validation = {"before": _measured(first), "after": _measured(latest)}
    evaluations = read_evaluations(folder, _lines(folder / run_files.EVALUATIONS), record_of)
    experiment, weight = _guidance(settings)
    return RunRecord(
        folder=folder,
        name=str(summary.get("name") or settings.get("name") or folder.resolve().name),
        finished=bool(summary),
        experiment=text(summary.get("experiment", experiment)),
        guidance_weight=finite(summary.get("guidance_weight", weight)),
        steps=whole(summary.get("steps", last.get("step"))),
        tokens=whole(summary.get("tokens", last.get("tokens"))),
        seconds=finite(summary.get("seconds", last.get("seconds"))),
        world_size=whole(summary.get("world_size")),
        before=read_validation(validation.get("before")),
        after=read_validation(validation.get("after")),
        metrics=metrics,
        validations=validations,
        scores=evaluations.scores,
        versions=_texts(summary.get("versions")),
        fingerprints=_texts(summary.get("fingerprints")),
        config=config,
        settings=settings,
        total_steps=whole(summary.get("steps", mapping(settings.get("train")).get("steps"))),
        dropped=_dropped(folder, summary, last),
        diverged=_diverged(summary, validation, last),
        evaluations=evaluations.folders,
        notes=evaluations.notes,
        trained=whole(summary.get("trained_parameters")),
        patterns=mapping(summary.get("patterns")),
    )


def _settings(config: str) -> Mapping[str, Any]:
    try:
        return mapping(parse_yaml(config))
    except ValueError:
        return {}


def _guidance(settings: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Experiment and weight of an unfinished run, as its summary will give them."""
    section = mapping(settings.get("guidance"))
    if not section:
        return None, None
    experiment = "plan" if section.get("plan") else str(section.get("experiment", "finetuned"))
    return experiment, 0.0 if experiment == "finetuned" else finite(section.get("weight"))


def _measured(record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A record of validation.jsonl in the form that summary.json has."""
    return None if record is None else {**record, "blocks": record.get("blocks", record.get("sequences"))}


def _dropped(folder: Path, summary: Mapping[str, Any], last: Mapping[str, Any]) -> int | None:
    skipped = len({record["step"] for record in _lines(folder / "skipped.jsonl")})
    known = whole(summary.get("dropped_steps", last.get("skipped_steps")))
    return max(skipped, known or 0) if skipped or known is not None else None


def _diverged(
    summary: Mapping[str, Any], validation: Mapping[str, Any], last: Mapping[str, Any]
) -> str | None:
    """Why a run is taken to have diverged: its summary's reason, or a loss that is not finite."""
    if summary.get("diverged"):
        return str(summary["diverged"])
    for what, record, key in (
        ("held-out loss", mapping(validation.get("after")), "lm_loss"),
        ("training loss", last, "lm_loss"),
    ):
        if key in record and finite(record[key]) is None:
            return f"its last {what} is not finite"
    return None


def _read_object(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError.of(str(path), f"is not valid JSON ({error})", "restore it, or train again") from None
    if not isinstance(value, Mapping):
        raise UserError.of(str(path), "must be a JSON object", "restore it, or train again")
    return value


def _lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The records of a JSONL file that have a step; none where the file does not exist."""
    if not path.is_file():
        return ()
    records = [record for record in read_metrics(path) if isinstance(record, dict)]
    return tuple(record for record in records if finite(record.get("step")) is not None)


def _texts(value: Any) -> Mapping[str, str]:
    return {str(key): str(item) for key, item in mapping(value).items()}
