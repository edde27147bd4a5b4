"""Files that come with gaguide, found by name or by path: DeepSpeed JSONs, recipes, Slurm templates.

They live once, in the repository's `ds_configs/` and `launch/`. `setup.py` puts copies into a wheel, in
`gaguide/_shipped`, laid out as in the repository; a checkout and an editable install use the originals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gaguide
from gaguide.errors import UserError, suggestion

_PACKAGE = Path(gaguide.__file__).resolve().parent
_IN_WHEEL = _PACKAGE / "_shipped"


@dataclass(frozen=True)
class Collection:
    """Shipped files of one kind."""

    folder: str
    """Their folder, relative to the repository's root."""
    suffix: str
    """Ending of their names; a file's short name is without it."""

    def names(self) -> list[str]:
        """Short names, sorted."""
        return sorted(path.stem for path in (root() / self.folder).glob(f"*{self.suffix}"))

    def find(self, given: str | Path, field: str) -> Path:
        """The file that `given` means: a path, a path from the repository's root, or a short name.

        An existing path wins. Raises a `UserError` under `field` that lists the names where nothing matches.
        """
        path = Path(given).expanduser()
        if path.is_file():
            return path
        # Joining an absolute path gives that path again, which does not exist.
        for candidate in (root() / path, root() / self.folder / f"{given}{self.suffix}"):
            if candidate.is_file():
                return candidate
        known = self.names()
        remedy = suggestion(str(given), known, limit=0) if len(path.parts) == 1 else ""
        if not remedy.startswith("did you mean"):
            remedy = "give one of these names or the path of a file"
        problem = f"must be one of {', '.join(known)}, or the path of a file"
        raise UserError.of(field, problem, remedy, str(given))


DEEPSPEED_JSONS = Collection("ds_configs", ".json")
RECIPES = Collection("launch/recipes", ".yaml")
SLURM_TEMPLATES = Collection("launch/slurm", ".sbatch")


def root() -> Path:
    """The folder that holds `ds_configs/` and `launch/`."""
    return _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent
