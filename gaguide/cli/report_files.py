"""The files that a command's --output and --formats ask for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from gaguide.errors import Fault, FaultCollector, suggestion


def wanted_files(
    outputs: list[Path], formats: str | None, known: Mapping[str, str], faults: FaultCollector
) -> list[tuple[Path, str]]:
    """(path, format) of each file to write; faults of the two options are added to `faults`.

    known: format → suffix.
    """
    kinds = {suffix: kind for kind, suffix in known.items()}
    wanted = []
    for path in outputs:
        if path.suffix.lower() in kinds:
            wanted.append((path, kinds[path.suffix.lower()]))
        else:
            remedy = f"use one of {', '.join(kinds)}"
            faults.add(Fault("--output", "unknown kind of file", remedy, str(path)))
        faults.add(*_folder_faults(path))
    given = list(known) if formats == "all" else formats.split(",") if formats else []
    for kind in (part.strip() for part in given):
        if kind not in known:
            faults.add(Fault("--formats", "unknown format", suggestion(kind, known), kind))
        elif outputs and kind not in [other for _, other in wanted]:
            wanted.append((outputs[0].with_suffix(known[kind]), kind))
    if given and not outputs:
        faults.add(Fault("--formats", "needs a name for its files", "add --output report.html"))
    return wanted


def _folder_faults(path: Path) -> list[Fault]:
    """Make the folder of an output if it is missing; faults if it cannot be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-"):
            pass
    except OSError as error:
        problem = f"its folder cannot be written to ({error.strerror or error})"
        return [Fault("--output", problem, "choose another folder", str(path))]
    return (
        [Fault("--output", "is a folder", "give the name of a file in it", str(path))]
        if path.is_dir()
        else []
    )
