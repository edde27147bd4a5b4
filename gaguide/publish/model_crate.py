"""The RO-Crate of an exported model."""

from __future__ import annotations

import json
from pathlib import Path

from gaguide.model.content import CRATE
from gaguide.publish.base import BaseModel
from gaguide.publish.crate import Crate


def write_model_crate(run: Path, model: Path) -> Path:
    """Write ro-crate-metadata.json into `model`, from summary.json of its run."""
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    base = BaseModel.from_record(summary["base_model"])
    prints, versions = summary.get("fingerprints") or {}, summary.get("versions") or {}
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
    made_of = [crate.add_model(base)]
    if "data" in prints:
        made_of.append(crate.add_data(prints["data"], summary.get("sources") or (), prints.get("tokenizer")))
    software = crate.add_software(versions, prints.get("code"), versions.get("commit"))
    crate.add_action("training", "./", made_of, software)
    return crate.write()
