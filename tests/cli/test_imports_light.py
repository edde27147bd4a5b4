"""Commands that only list, describe or report do not import torch and transformers, which take seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.synthetic import write_run
from tests.study.sample import sample_study
from tests.support.ranks import REPOSITORY, rank_environment

COMMANDS = (
    "--help",
    "--version",
    "lexicon --help",
    "lexicon list",
    "eval list",
    "eval show scone-nli",
    "attention --help",
    "checkpoint --help",
    "checkpoint list run",
    "checkpoint list nothing",
    "checkpoint verify run",
    "data --help",
    "data info nothing",
    "eval --help",
    "eval compare --help",
    "eval compare nothing --output nothing.doc",
    "lexicon show contrastt --tokenizer nothing --mode word --lexicons nothing.yaml",
    "ablate --help",
    "heads --help",
    "heads profile --help",
    "plan --help",
    "plan --model gpt2-xl --gpus 8 --nodes 4",
    "plan --model gpt2 --json",
    "plan --config gpt2-4-transition --gpus 8",
    "plan --model gpt2 --gpu h1000 --stage 7",
    "report --help",
    "study --help",
    "study list",
    "study status scaling",
    "submit train --help",
    "submit evaluate --help",
    "submit data --help",
    "doctor --help",
    # Last: the tables of a study are pandas.
    "report run",
    "report study",
)
SCRIPT = """
import sys
from gaguide.cli import main

for line in sys.argv[1:]:
    sys.argv = ["gaguide", *line.split()]
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (0, 2), (line, ended.code)
    heavy = {"torch", "transformers", "deepspeed", "datasets"}
    if not line.startswith("report "):
        heavy |= {"scipy", "pandas", "matplotlib"}
    heavy &= sys.modules.keys()
    assert not heavy, f"gaguide {line} imports {', '.join(sorted(heavy))}"
"""


@pytest.mark.processes
def test_describing_commands_import_neither_torch_nor_transformers(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "run")
    sample_study(tmp_path / "study")
    environment = rank_environment() | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", SCRIPT, *COMMANDS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
