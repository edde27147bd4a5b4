"""A run's note of its tracker's run id, in its folder `monitor`, so that a resume finds it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gaguide.files import read_object, write_json


def read_note(place: Path, section: str) -> dict[str, Any]:
    """`id` and `settings` as kept; empty where nothing was kept."""
    return read_object(_file(place, section))


def write_note(place: Path, section: str, id: str, settings: str) -> None:
    """Keep the id, and the hash of the settings under which it was used."""
    write_json(_file(place, section), {"id": id, "settings": settings})


def _file(place: Path, section: str) -> Path:
    return place / f"{section}.json"
