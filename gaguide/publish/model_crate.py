"""The RO-Crate of an exported model."""

from __future__ import annotations

import json
from pathlib import Path

from gaguide.log import run_files
from gaguide.model.content import CRATE
from gaguide.publish.base import BaseModel
from gaguide.publish.crate import Crate


def write_model_crate(run: Path, model: Path) -> Path:
    """Write ro-crate-metadata.json into `model`, from summary.json of its run."""
    summary = json.loads((run / run_files.SUMMARY).read_text("utf-8"))
    base = BaseModel.from_record(summary["base_model"])
    crate = Crate(
        model,
        f"{summary['name']}: a language model",
        f"{base.name}, trained for {summary['steps']:,} steps; experiment {summary.get('experiment')}, "
        f"guidance weight {summary.get('guidance_weight')}.",
        base.license_link or base.license_name or base.license,
    )
    for path in sorted(model.rglob("*")):
        if path.is_file() and path.name != CRATE and not path.name.startswith("."):
            crate.add_file(path)
    crate.add_training("training", "./", summary, ())
    return crate.write()
