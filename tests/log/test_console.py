"""Output whose reader has gone; progress of slow work."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from gaguide.log import console
from tests.support.patience import patience
from tests.support.ranks import rank_environment


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


@pytest.mark.processes
@pytest.mark.parametrize("program", ["cli", "train", "evaluate", "ablate"])
def test_an_encoding_without_our_characters_ends_no_program(program: str) -> None:
    """Of a Latin-1 locale, or PYTHONIOENCODING: each help has an ellipsis."""
    start = {"cli": ["-c", "import sys; from gaguide.cli import main; main()"]}.get(
        program, ["-m", f"gaguide.{program}"]
    )
    done = subprocess.run(
        [sys.executable, *start, "--help"],
        env=rank_environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0 and done.stdout.isascii(), done.stderr
    assert "--help" in done.stdout


def test_slow_work_says_what_it_does_and_how_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_PATIENCE", 0.01)
    said = threading.Event()
    monkeypatch.setattr(console, "say", lambda text: (print(text), said.set()))

    def words(work: console.SlowWork, *done: int) -> str:
        work.done(*done)
        said.clear()
        with work:
            assert said.wait(patience(60))
        return capsys.readouterr().out

    assert words(console.SlowWork("validating: blocks", 64), 12).startswith(
        "validating: blocks: 12 of 64 (0s)"
    )
    assert words(console.SlowWork("passes"), 12).startswith("passes: 12 (0s)")
    assert words(console.SlowWork("passes"), 12, 60).startswith("passes: 12 of 60 (0s)")
    monkeypatch.setattr(console, "_ESTIMATE_AFTER", 0.0)
    assert words(console.SlowWork("passes", 60), 12).startswith("passes: 12 of 60 (0s, 0s left)")
    with console.SlowWork("quick", shown=False):
        pass
    assert capsys.readouterr().out == ""
