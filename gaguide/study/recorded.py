"""A study from its own record: the folder that it was run into, in place of its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gaguide.config.validation import validation_faults
from gaguide.errors import Fault, UserError, is_masked
from gaguide.study.file import StudyConfig
from gaguide.study.grid import Grid, make_grid
from gaguide.study.record_files import STUDY

_GIVE_FILE = "give the study's YAML file, with the fields that it was run with"


def recorded_grid(folder: Path) -> Grid:
    """The cells of the study in `folder`, from its study.json; a folder that was moved is the same study.

    Raises one `UserError` where there is no such record, where addresses had passwords, which it does not
    keep, and where its settings and inputs now make other cells (another working folder, or a change).
    """
    path = folder / STUDY
    if not path.is_file():
        problem = f"is a folder without {STUDY}, so not that of a study that has run"
        raise UserError.of("FILE", problem, "give the study's YAML file", str(folder))
    record = json.loads(path.read_text("utf-8"))
    tree: dict[str, Any] = record["study"]
    if _lost_password(tree):
        raise UserError(
            Fault("FILE", f"its {STUDY} keeps no passwords of addresses", _GIVE_FILE, str(folder))
        )
    try:
        study = StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(validation_faults(error, StudyConfig, tree, str(path))) from None
    if Path(study.output).expanduser().resolve() != folder.resolve():
        study = study.model_copy(update={"output": str(folder.resolve())})
    grid = make_grid(study)
    known = {cell["id"] for cell in record["cells"]}
    if other := [cell.id for cell in grid.cells if cell.id not in known]:
        problem = (
            f"its settings and the inputs that they name make {len(other)} cells that its {STUDY} does not "
            f"have, such as {other[0]}"
        )
        remedy = f"call this from the folder where the study was run, with the same inputs; or {_GIVE_FILE}"
        raise UserError.of("FILE", problem, remedy, str(folder))
    return grid


def _lost_password(value: Any) -> bool:
    if isinstance(value, str):
        return is_masked(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_lost_password, items))
