"""Everything that decides a study's numbers, as the hashes that are part of cells' ids and done-records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gaguide.config import RunConfig
from gaguide.config.data import SourceSection
from gaguide.errors import UserError
from gaguide.files import hash_json
from gaguide.study.content import ContentHashes
from gaguide.study.file import StudyConfig

_IMMATERIAL: Any = {
    "name": True,
    "output": True,
    "checkpoint": True,
    "train": {"log_every"},
    "data": {"cache_gb"},
}
"""Settings of a run that change none of its numbers, so they are not part of a cell's id."""


def material_settings(run: RunConfig, base: str | None) -> dict[str, Any]:
    """The settings that decide a run's numbers; the folder of its base is replaced by the id `base`.

    Fields at their default are left out, so that a setting added to gaguide later keeps the ids of finished
    cells.
    """
    tree = run.model_dump(mode="json", exclude=_IMMATERIAL, exclude_defaults=True)
    tree["guidance_weight"] = run.guidance.weight
    if base is not None:
        tree["model"]["name"] = base
    return tree


def data_identity(study: StudyConfig, hashes: ContentHashes) -> list[str]:
    """Fingerprints of shards on this machine, or of the text that they are built from: another corpus under
    the same name makes different cells."""
    if study.data.source is not None:
        return _source_identity(study.data.source, study.data.shards, hashes)
    names = [study.data.shards, *(entry.shards for entry in study.data.mixture)]
    local = [Path(name).expanduser() for name in names if name and "://" not in name]
    folders = [path for path in local if path.is_dir()]
    if not folders:
        return []
    from gaguide.data.format.manifest import is_complete, read_manifest  # imports torch

    return [read_manifest(path).fingerprint for path in folders if is_complete(path)]


def _source_identity(source: SourceSection, shards: str | None, hashes: ContentHashes) -> list[str]:
    """The same before the shards are built and after it, when the text may be gone."""
    from gaguide.data.build.request import SOURCE_CONTENT
    from gaguide.data.build.sources import local_content
    from gaguide.data.format.manifest import is_complete, read_manifest

    folder = None if shards is None else Path(shards).expanduser()
    try:
        found = [local_content(source.files, folder)]
    except UserError:  # training reports files that it needs
        built = folder is not None and is_complete(folder)
        found = [str(read_manifest(folder).build_identity.get(SOURCE_CONTENT))] if folder and built else []
    for name in (source.tokenizer, source.template):
        path = None if name is None else Path(name).expanduser()
        if path is not None and path.exists():
            found.append(hashes.model(path) if path.is_dir() else hashes.file(path))
    return [one for one in found if one is not None]


def evaluation_id(study: StudyConfig) -> str:
    """Hash of the tasks' names and the settings of the evaluation."""
    # Fields that were added later are left out at their default, so that finished evaluations keep their ids.
    added = {"shots": None, "on_overflow": "cut"}
    settings = study.evaluate.model_dump()
    settings = {name: value for name, value in settings.items() if name not in added or value != added[name]}
    return short_hash([list(study.tasks), study.task_data, settings])


def ablation_id(study: StudyConfig) -> str | None:
    """Hash of the settings of the ablation; None where the study leaves it out."""
    if study.ablation is None:
        return None
    # Precision is left out at its default, so that finished ablations keep their ids.
    dtype = study.evaluate.dtype
    return short_hash(study.ablation.model_dump() | ({} if dtype == "fp32" else {"dtype": dtype}))


def short_hash(parts: Iterable[Any] | Mapping[str, Any]) -> str:
    """The first ten hexadecimal digits of the SHA-256 of `parts` as JSON."""
    return hash_json(parts, default=str)[:10]
