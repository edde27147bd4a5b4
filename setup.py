"""Adds to a wheel the files from outside the package that `gaguide/shipped.py` finds in `gaguide/_shipped`.

Everything else is in pyproject.toml. An editable install copies nothing: it uses the repository's own files.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ("ds_configs/*.json", "launch/recipes/*.yaml", "launch/slurm/*.sbatch")


class BuildWithShippedFiles(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._shipped():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, *(str(target) for _, target in self._shipped())]

    def _shipped(self) -> list[tuple[Path, Path]]:
        folder = Path(self.build_lib) / "gaguide" / "_shipped"
        found = [path for pattern in SHIPPED for path in sorted(ROOT.glob(pattern))]
        return [(path, folder / path.relative_to(ROOT)) for path in found]


setup(cmdclass={"build_py": BuildWithShippedFiles})
