"""What a run folder's records say, read defensively: an unfinished run has less, never an error.

Records: config.yaml, metrics.jsonl and validation.jsonl (one object a logged step), summary.json once the
run has ended, evaluation/results.json once it was evaluated.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gaguide.errors import Fault, UserError
from gaguide.log import read_metrics
from gaguide.report.evaluation import TaskScore, read_evaluation

_RECORDS = ("summary.json", "metrics.jsonl", "config.yaml")


@dataclass(frozen=True)
class HeadMass:
    """Attention mass of one head on its pattern's targets, in [0, 1]; None where no target was seen."""

    layer: int
    head: int
    pattern: str
    attention: float | None


@dataclass(frozen=True)
class Validation:
    """Held-out loss (nats a token), mean attention mass on the guided words, and each guided head's."""

    lm_loss: float | None
    guided_attention: float | None
    per_head: tuple[HeadMass, ...]
    blocks: int | None


@dataclass(frozen=True)
class RunRecord:
    """One run. `finished` is False where summary.json is missing; what it would say is then None."""

    folder: Path
    name: str
    finished: bool
    experiment: str | None
    guidance_weight: float | None
    steps: int | None
    tokens: int | None
    seconds: float | None
    world_size: int | None
    before: Validation | None
    after: Validation | None
    metrics: tuple[Mapping[str, Any], ...]
    validations: tuple[Mapping[str, Any], ...]
    scores: tuple[TaskScore, ...] | None
    versions: Mapping[str, str]
    fingerprints: Mapping[str, str]
    config: str

    @property
    def tokens_per_second(self) -> float | None:
        """Training tokens a second over the whole run, all ranks together."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Every folder's records, in order; equal names are told apart by their folder.

    Raises one `UserError` for all folders that are no runs and all records that can't be read.
    """
    runs: list[RunRecord] = []
    faults: list[Fault] = []
    for folder in folders:
        try:
            runs.append(_read_run(folder))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    names = Counter(run.name for run in runs)
    paths = Counter(run.folder.resolve() for run in runs)
    for path, count in paths.items():
        if count > 1:
            raise UserError(Fault("RUN", "is named twice", "name each run once", str(path)))
    return [
        replace(run, name=f"{run.name} ({_distinct(run, runs)})") if names[run.name] > 1 else run
        for run in runs
    ]


def _distinct(run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """The shortest end of its path that no other run of that name has."""
    parts = run.folder.resolve().parts
    others = [other.folder.resolve().parts for other in runs if other.name == run.name and other is not run]
    for length in range(1, len(parts) + 1):
        if all(other[-length:] != parts[-length:] for other in others):
            return "/".join(parts[-length:])
    return str(run.folder)


def _read_run(folder: Path) -> RunRecord:
    if not any((folder / name).is_file() for name in _RECORDS):
        problem = "holds no records of a run" if folder.is_dir() else "is no folder"
        raise UserError(Fault("RUN", problem, "give the output folder of launch/train.py", str(folder)))
    summary = _read_object(folder / "summary.json")
    validation = _mapping(summary.get("validation"))
    return RunRecord(
        folder=folder,
        name=str(summary.get("name") or folder.resolve().name),
        finished=bool(summary),
        experiment=_text(summary.get("experiment")),
        guidance_weight=_number(summary.get("guidance_weight")),
        steps=_whole(summary.get("steps")),
        tokens=_whole(summary.get("tokens")),
        seconds=_number(summary.get("seconds")),
        world_size=_whole(summary.get("world_size")),
        before=_validation(validation.get("before")),
        after=_validation(validation.get("after")),
        metrics=_lines(folder / "metrics.jsonl"),
        validations=_lines(folder / "validation.jsonl"),
        scores=read_evaluation(folder / "evaluation" / "results.json"),
        versions=_texts(summary.get("versions")),
        fingerprints=_texts(summary.get("fingerprints")),
        config=(folder / "config.yaml").read_text("utf-8") if (folder / "config.yaml").is_file() else "",
    )


def _validation(value: Any) -> Validation | None:
    if not isinstance(value, Mapping):
        return None
    heads = [head for head in value.get("per_head") or () if isinstance(head, Mapping)]
    return Validation(
        _number(value.get("lm_loss")),
        _number(value.get("guided_attention")),
        tuple(
            HeadMass(
                int(head["layer"]), int(head["head"]), str(head["pattern"]), _number(head.get("attention"))
            )
            for head in heads
            if {"layer", "head", "pattern"} <= head.keys()
        ),
        _whole(value.get("blocks")),
    )


def _read_object(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(Fault(str(path), f"is not JSON ({error})", "restore it, or run again")) from None
    if not isinstance(value, Mapping):
        raise UserError(Fault(str(path), "holds no JSON object", "restore it, or run again"))
    return value


def _lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The records that carry a step."""
    if not path.is_file():
        return ()
    records = [record for record in read_metrics(path) if isinstance(record, dict)]
    return tuple(record for record in records if _number(record.get("step")) is not None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> Mapping[str, str]:
    return {str(key): str(item) for key, item in _mapping(value).items()}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
