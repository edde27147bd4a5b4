"""Output whose reader has gone."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.processes
def test_output_without_a_reader_does_not_end_the_program() -> None:
    """Both outputs are pipes whose readers are gone, as after the death of a launcher's ssh."""
    program = (
        "import sys; from gaguide.log import has_reader, say\n"
        "sys.stdin.readline(); say('a'); say('b', error=True); say('c'); print('d')\n"
        "sys.exit(1 if has_reader() else 75)"
    )
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen([sys.executable, "-c", program], **pipes, text=True) as process:
        process.stdout.close()
        process.stderr.close()
        process.stdin.write("\n")
    assert process.returncode == 75
