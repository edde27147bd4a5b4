"""The licence and notice files of a model's folder, which must accompany any model made from it."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"(licen[cs]e|copying|notice)([-_.].*)?", re.IGNORECASE)
_MAX_BYTES = 1_000_000


def read_licenses(folder: Path) -> dict[str, bytes]:
    """Name → content of the files in `folder` such as LICENSE, LICENSE.txt, COPYING and NOTICE."""
    found = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file())
    return {path.name: path.read_bytes() for path in found if path.stat().st_size <= _MAX_BYTES}
